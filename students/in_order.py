"""Trial: after the FFNs are fitted, fit each again, in order, on the student's own states towards the teacher's states."""

import torch

import distill.models.t5_forward as t5
from distill.models.t5_forward import hidden_states
from students.calibration import Activations
from students.ffn_init import FFN, SwitchExperts, regress
import students.ffn_init as init
from teachers.build import switch_layers


@torch.no_grad()
def fit_in_order(teacher, student, calibration, seed):
    batches = list(calibration)
    blocks = [(s, n) for s in ("encoder", "decoder") for n in range(len(getattr(student, s).block))]
    layers = dict(switch_layers(teacher))
    for stack, number in blocks:
        block_t, block_s = getattr(teacher, stack).block[number], getattr(student, stack).block[number]
        layer = block_t.layer[-1]
        if not hasattr(layer, "experts"):
            continue
        kept = {"t": [], "mid": [], "normed": []}
        original_block, original_ffn = t5.run_block, t5._dense_ffn

        def run_block(stack_, block, x, mask, encoded, bias, dtype):
            y = original_block(stack_, block, x, mask, encoded, bias, dtype)
            if block is block_t:
                kept["t"].append((y if mask is None else y[mask]).reshape(-1, y.shape[-1]).float())
            if block is block_s:
                normed, out = kept.pop("last")
                pick = (lambda z: z.reshape(-1, z.shape[-1]).float()) if mask is None else (lambda z: z[mask].float())
                kept["mid"].append(pick(y - out))
                kept["normed"].append(pick(normed))
            return y

        def dense_ffn(layer_, x, drop):
            out = original_ffn(layer_, x, drop)
            if layer_ is block_s.layer[-1]:
                kept["last"] = (x, out)
            return out

        t5.run_block, t5._dense_ffn = run_block, dense_ffn
        try:
            for batch in batches:
                hidden_states(teacher.eval(), *batch[:2])
                hidden_states(student.eval(), *batch[:2])
        finally:
            t5.run_block, t5._dense_ffn = original_block, original_ffn
        inputs = torch.cat(kept["normed"])
        outputs = torch.cat(kept["t"]) - torch.cat(kept["mid"])
        ffn = block_s.layer[-1].DenseReluDense
        start = FFN(ffn.wi.weight.clone(), ffn.wo.weight.mT.clone())
        acts = Activations(inputs, torch.zeros(len(inputs), dtype=torch.long), torch.ones(len(inputs)), outputs)
        wrapped = SwitchExperts(FFN(start.wi[None], start.wo[None]), layer.mlp.activation, acts, len(start.wi))
        error = lambda f: float((wrapped.hidden(f.wi, inputs) @ f.wo - outputs).square().sum() / outputs.square().sum())
        before = error(start)
        fit, init.fit = init.fit, lambda *_: start
        try:
            built = regress(wrapped, seed)
        finally:
            init.fit = fit
        print(f"in order: {stack} {number}: error {before:.4f} -> {error(built):.4f}", flush=True)
        ffn.wi.weight.copy_(built.wi)
        ffn.wo.weight.copy_(built.wo.mT)
