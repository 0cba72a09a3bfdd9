"""One dense FFN from the experts of a Switch layer, before any training of the student.

A Switch layer's output is ``p_i(x) E_i(x)`` (equation 2), a dense FFN has no gate. So what is measured of the gate goes
into ``wo``. Neurons are hidden ones: one row of ``wi`` and one of ``wo`` transposed.

N tokens, D d_model, E experts, F d_ff.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment

from students.calibration import Activations

# Two neurons are one where their input weights differ by less than this part of the longer one's length.
_DUPLICATE = 0.3
_RIDGE = 1e-4  # times the mean power of a hidden neuron
_CANDIDATES = 4  # of fit, for every neuron that is chosen
_STEPS, _BATCH, _LEARNING_RATE = 2000, 2048, 0.05  # of regress; the rate is relative to a weight's root mean square


class FFN(NamedTuple):
    """A dense FFN or, with E in front, the experts of a layer; one row for each neuron."""

    wi: torch.Tensor  # [F, D], or [F, 2D] where gated: wi and wi_gate side by side
    wo: torch.Tensor  # [F, D], transposed


class SwitchExperts(NamedTuple):
    """The experts of one Switch layer and, where there is calibration text, what it does on it."""

    experts: FFN  # [E, F, ...]
    activation: Callable[[torch.Tensor], torch.Tensor]
    seen: Activations | None

    @property
    def load(self) -> torch.Tensor:
        """[E], fraction of tokens whose argmax is the expert (equation 5)."""
        return torch.bincount(self.seen.expert, minlength=len(self.experts.wi)) / len(self.seen.expert)

    @property
    def gated_load(self) -> torch.Tensor:
        """[E], load times the mean gate of the expert's tokens; sums to the mean gate of all tokens."""
        gates = torch.zeros(len(self.experts.wi), device=self.seen.gate.device)
        return gates.index_add(0, self.seen.expert, self.seen.gate) / len(self.seen.expert)

    def hidden(self, wi: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """What ``wo`` reads: ``wi`` [F, D or 2D], ``inputs`` [N, D] -> [N, F]."""
        inner, *gate = (inputs @ part.mT for part in wi.split(inputs.shape[-1], -1))
        return self.activation(gate[0]) * inner if gate else self.activation(inner)


def mean(layer: SwitchExperts, seed: int) -> FFN:
    """The mean of the experts' weights (OneS, arXiv:2201.10890, "averaging"), times the mean gate where measured."""
    return FFN(layer.experts.wi.mean(0), layer.experts.wo.mean(0) * _mean_gate(layer))


def svd(layer: SwitchExperts, seed: int) -> FFN:
    """Each weight's strongest singular directions, its share of the rank, added up (after the SVD gathering of OneS).

    ``W = sum_i U_i S_i V_i^T`` with ``max(1, rank // E)`` directions of each expert; ``wo`` times the mean gate where
    measured.
    """
    width = layer.experts.wo.shape[-1]
    wi = torch.cat([_strongest(part) for part in layer.experts.wi.split(width, -1)], -1)
    return FFN(wi, _strongest(layer.experts.wo) * _mean_gate(layer))


def usage(layer: SwitchExperts, seed: int) -> FFN:
    """The mean of the experts weighted by their measured load, each expert's ``wo`` times its mean gate.

    Weighting by usage is from M-SMoE (arXiv:2310.01334), which merges experts so.
    """
    wi = torch.einsum("e,efd->fd", layer.load, layer.experts.wi)
    return FFN(wi, torch.einsum("e,efd->fd", layer.gated_load, layer.experts.wo))


def best(layer: SwitchExperts, seed: int) -> FFN:
    """The most used expert, its ``wo`` times its mean gate."""
    chosen = layer.load.argmax()
    gate = layer.gated_load[chosen] / layer.load[chosen]
    return FFN(layer.experts.wi[chosen], layer.experts.wo[chosen] * gate)


def aligned(layer: SwitchExperts, seed: int) -> FFN:
    """``usage`` after each expert's neurons are put in the order of the most used expert's that they match best.

    Weight matching of Git Re-Basin (arXiv:2209.04836): the permutation of largest inner product with it, here with
    ``wi`` and ``wo`` each in units of their own size.
    """
    reference = int(layer.load.argmax())
    experts = FFN(*(weight.clone() for weight in layer.experts))
    for expert in range(len(experts.wi)):
        similarity = sum(
            weight[reference] @ weight[expert].mT / weight.square().mean().clamp(min=1e-12) for weight in layer.experts
        )
        order = torch.from_numpy(linear_sum_assignment(similarity.cpu().numpy(), maximize=True)[1])
        for weight in experts:
            weight[expert] = weight[expert, order.to(weight.device)]
    return usage(layer._replace(experts=experts), seed)


def select(layer: SwitchExperts, seed: int) -> FFN:
    """The F neurons of all experts that add most to the layer's output, in squared length over the tokens.

    Score and select as in arXiv:2605.28207, by neuron instead of by expert. A neuron counts on the tokens of its own
    expert, times the gate. Of neurons with nearly the same input weights only the first is taken, and the ``wo`` of
    the others is added to its own. In the dense FFN a neuron sees every token: ``wo`` is scaled by what makes the
    neuron closest to what it did, ``sum p h^2`` over its expert's tokens divided by ``sum h^2`` over all tokens.
    """
    contribution, overlap = _contributions(layer)
    wi, wo = (weight.flatten(0, 1) for weight in layer.experts)
    chosen, same = _distinct(wi, contribution, layer.experts.wi.shape[1])
    wo = wo * overlap[:, None]
    power = layer.hidden(wi[chosen], layer.seen.inputs).square().sum(0)
    merged = torch.zeros_like(wo[chosen]).index_add(0, same[same >= 0], wo[same >= 0])
    return FFN(wi[chosen], merged / power.clamp(min=torch.finfo(power.dtype).tiny)[:, None])


def fit(layer: SwitchExperts, seed: int) -> FFN:
    """Neurons of all experts, one by one the one that most lowers the error of the best ``wo`` for those chosen so far.

    Orthogonal least squares (Chen, Cowan and Grant 1991, doi:10.1109/72.80341) towards the layer's measured output,
    gates and dropped tokens included, among the 4F neurons that add most to it; ``wo`` is the ridge solution.
    """
    neurons = layer.experts.wi.shape[1]
    most = _contributions(layer)[0].argsort(descending=True)[: _CANDIDATES * neurons]
    candidates = layer.experts.wi.flatten(0, 1)[most]
    wi = candidates[_orthogonal_least_squares(*_normal_equations(layer, candidates), neurons)]
    return FFN(wi, _least_squares(layer, wi))


def regress(layer: SwitchExperts, seed: int) -> FFN:
    """From ``fit``, two thousand steps of Adam on both weights towards the measured output; then ``wo`` once more."""
    start = fit(layer, seed)
    inputs, outputs = layer.seen.inputs, layer.seen.outputs
    weights = [weight.clone().requires_grad_() for weight in start]
    groups = [{"params": [w], "lr": _LEARNING_RATE * float(w.detach().square().mean().sqrt())} for w in weights]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    generator = torch.Generator().manual_seed(seed)
    scale = outputs.square().mean().clamp(min=1e-12)  # a layer may say nothing
    for _ in range(_STEPS):
        tokens = torch.randint(len(inputs), (min(_BATCH, len(inputs)),), generator=generator).to(inputs.device)
        with torch.enable_grad():
            error = layer.hidden(weights[0], inputs[tokens]) @ weights[1] - outputs[tokens]
            loss = error.square().mean() / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    wi = weights[0].detach()
    return FFN(wi, _least_squares(layer, wi))


# All but "random", T5's own initialisation, which needs no code.
METHODS: dict[str, Callable[[SwitchExperts, int], FFN]] = {
    method.__name__: method for method in (mean, svd, usage, best, aligned, select, fit, regress)
}
WITHOUT_CALIBRATION = frozenset({"random", "mean", "svd"})


def _mean_gate(layer: SwitchExperts) -> torch.Tensor | float:
    return 1.0 if layer.seen is None else layer.seen.gate.mean()


def _strongest(weight: torch.Tensor) -> torch.Tensor:
    """[E, F, D] -> [F, D], the sum of what the first ``max(1, min(F, D) // E)`` singular values of each expert make."""
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    kept = max(1, s.shape[-1] // len(weight))
    return (u[..., :kept] * s[:, None, :kept] @ v[:, :kept]).sum(0)


def _contributions(layer: SwitchExperts) -> tuple[torch.Tensor, torch.Tensor]:
    """[E * F] each, over the tokens of a neuron's own expert: ``sum |p h wo|^2`` and ``sum p h^2``."""
    (inputs, expert, gate, _), (wi, wo) = layer.seen, layer.experts
    contribution, overlap = torch.zeros(2, *wi.shape[:2], device=wi.device)
    for number in range(len(wi)):
        own = expert == number
        hidden, p = layer.hidden(wi[number], inputs[own]), gate[own, None]
        contribution[number] = (p * hidden).square().sum(0) * wo[number].square().sum(-1)
        overlap[number] = (p * hidden.square()).sum(0)
    return contribution.flatten(), overlap.flatten()


def _distinct(wi: torch.Tensor, score: torch.Tensor, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``wanted`` rows of highest score that are no duplicates of one another; of duplicates if there are too few.

    Returns:
        their indices [wanted], and for every row the place of its first among them, -1 if it has none.
    """
    order = score.argsort(descending=True)
    same = torch.full_like(order, -1)
    chosen, duplicates, looked_at = [], [], 0
    kept = wi.new_empty(wanted, wi.shape[1])
    for row in order.tolist():
        if len(chosen) == wanted:
            break
        looked_at += 1
        same[row] = _nearest(wi[row, None], kept[: len(chosen)]) if chosen else -1
        if same[row] >= 0:
            duplicates.append(row)
            continue
        same[row], kept[len(chosen)] = len(chosen), wi[row]
        chosen.append(row)
    for rows in order[looked_at:].split(4096):
        same[rows] = _nearest(wi[rows], kept)
    for row in duplicates[: wanted - len(chosen)]:
        same[row] = len(chosen)
        chosen.append(row)
    return torch.tensor(chosen, device=wi.device), same


def _nearest(rows: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """For each of ``rows`` the index of the row of ``kept`` that it is a duplicate of, else -1."""
    size, size_kept = rows.square().sum(-1)[:, None], kept.square().sum(-1)
    distance = (size + size_kept - 2 * rows @ kept.mT) / size.maximum(size_kept)
    nearest, index = distance.min(-1)
    return index.where(nearest < _DUPLICATE**2, -1)


def _least_squares(layer: SwitchExperts, wi: torch.Tensor) -> torch.Tensor:
    """[F, D], the ridge solution of ``hidden(wi, inputs) @ wo = outputs``."""
    return torch.linalg.solve(*_normal_equations(layer, wi)).to(wi)


def _normal_equations(layer: SwitchExperts, wi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``H^T H`` plus the ridge [K, K] and ``H^T y`` [K, D] of K neurons, in float64 on the CPU."""
    gram, cross = torch.zeros(len(wi), len(wi)).double(), torch.zeros(len(wi), layer.seen.outputs.shape[1]).double()
    for inputs, outputs in zip(layer.seen.inputs.split(8192), layer.seen.outputs.split(8192), strict=True):
        hidden = layer.hidden(wi, inputs)
        gram += (hidden.mT @ hidden).cpu()
        cross += (hidden.mT @ outputs).cpu()
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny))
    return gram, cross


def _orthogonal_least_squares(gram: torch.Tensor, cross: torch.Tensor, wanted: int) -> list[int]:
    """Greedy choice of ``wanted`` of K regressors, by a Cholesky decomposition of ``gram`` that pivots on the gain."""
    factor = gram.new_zeros(wanted, len(gram))  # row i: every regressor's part along the i-th chosen direction
    left, power, chosen = cross.clone(), gram.diagonal().clone(), []  # of what is orthogonal to the chosen ones
    floor = power.mean() * 1e-12
    for step in range(wanted):
        gain = left.square().sum(-1) / power.clamp(min=floor)
        gain[chosen] = -1
        pick = int(gain.argmax())
        row = gram[pick] - factor[:step, pick] @ factor[:step]
        factor[step] = row / power[pick].clamp(min=floor).sqrt()
        left -= factor[step, :, None] * (left[pick] / power[pick].clamp(min=floor).sqrt())
        power -= factor[step].square()
        chosen.append(pick)
    return chosen
