"""Trials of losses, of the layers' replacement, and of larger batches at the end."""

import math
import torch
import torch.nn.functional as F

from distill.models.t5_forward import hidden_states
from distill.training.train_modules import HardAndSoftLabels


class TrialLabels(HardAndSoftLabels):
    def __init__(self, model, teacher, *, trial, steps, **mix):
        super().__init__(model, teacher, **mix)
        self.trial, self.steps = trial, steps
        if trial.startswith("replace"):
            self._replace(teacher, float(trial.partition("-")[2] or 0.5))

    def _replace(self, teacher, until):
        import distill.models.t5_forward as t5
        from teachers.build import switch_layers

        original = t5._dense_ffn
        switches = {}
        for name, layer in switch_layers(teacher):
            switches[id(self.model.get_submodule(name))] = layer
        owner = self

        def ffn(layer, x, drop):
            switch = switches.get(id(layer))
            chance = 1 - owner.step / (until * owner.steps)
            if switch is not None and owner.model.training and torch.is_grad_enabled() and torch.rand(()) < chance:
                return switch.experts(x, None)
            return original(layer, x, drop)

        t5._dense_ffn = ffn

    def forward(self, input_ids, labels):
        if self.trial.startswith("replace"):
            return super().forward(input_ids, labels)
        with torch.no_grad():
            hidden_t, head_t = hidden_states(self._teacher[0], input_ids, labels)
        hidden, head = hidden_states(self.model, input_ids, labels)
        counted = labels.flatten() != -100
        target = labels.flatten()[counted]
        with torch.autocast(hidden.device.type, enabled=False):
            logq = F.linear(hidden[counted], head.to(hidden.dtype)).float().log_softmax(-1)
            logp = F.linear(hidden_t[counted], head_t.to(hidden_t.dtype)).float().log_softmax(-1)
        p = logp.exp()
        entropy = -(p * logp).sum(-1)
        hard = -logq.gather(-1, target[:, None])[:, 0]
        soft = -(p * logq).sum(-1)
        w = 1 - self.hard_fraction
        t = self.step / self.steps
        name = self.trial
        if name == "entropy-soft":
            w = entropy / (entropy + entropy.mean() + 1e-6)
        elif name == "entropy-hard":
            w = entropy.mean() / (entropy + entropy.mean() + 1e-6)
        elif name == "token-soft":
            w = (entropy > entropy.median()).float()
        elif name == "token-hard":
            w = (entropy <= entropy.median()).float()
        elif name == "trust":
            w = p.gather(-1, target[:, None])[:, 0]
        elif name == "right":
            w = (p.argmax(-1) == target).float()
        elif name == "decay":
            w = 0.75 - 0.5 * t
        elif name == "grow":
            w = 0.25 + 0.5 * t
        elif name == "warm-decay":
            w = 0.75 * (t / 0.25 if t < 0.25 else (1 - t) / 0.75)
        elif name.startswith("tail"):
            _, k, beta = name.split("-")
            top = p.topk(int(k), -1).indices
            mask = torch.zeros_like(p, dtype=torch.bool).scatter_(-1, top, True)
            mass_p = p.masked_fill(mask, 0).sum(-1).clamp(min=1e-8)
            logmass_q = logq.masked_fill(mask, -math.inf).logsumexp(-1)
            heads = -(p * logq).masked_fill(~mask, 0).sum(-1) - mass_p * logmass_q
            tail = -((p.masked_fill(mask, 0) / mass_p[:, None]) * logq.masked_fill(mask, 0)).sum(-1) + logmass_q
            soft = heads + float(beta) * tail
        elif name == "mixed":  # control: the plain loss
            pass
        else:
            raise ValueError(name)
        loss = ((1 - w) * hard + w * soft).sum()
        return loss, {"loss": loss.detach(), "hard_loss": hard.sum().detach(), "soft_loss": soft.sum().detach()}
