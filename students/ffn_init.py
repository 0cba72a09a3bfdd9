"""One dense FFN from the experts of a Switch layer, before the student is trained.

The output of a Switch layer is ``p_i(x) E_i(x)``: the gate (the router's probability of expert i) times the output of
expert i (equation 2 of the paper). A dense FFN has no gate, so the methods scale ``wo`` by the measured gate. A neuron
is a hidden unit of an FFN: one row of ``wi`` and one row of ``wo`` transposed.

N tokens, D d_model, E experts, F d_ff of an expert, W neurons of the dense FFN (F, unless the student is wider).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment

from students.calibration import Activations

# Two neurons are duplicates if their rows of wi differ by less than this fraction of the longer row's norm.
_DUPLICATE = 0.3
_RIDGE = 1e-4  # times the mean power of a hidden neuron
_CANDIDATES = 4  # of fit, per neuron of the dense FFN
_STEPS, _BATCH, _LEARNING_RATE = 2000, 2048, 0.05  # of regress; the rate is relative to a weight's root mean square


class FFN(NamedTuple):
    """The weights of a dense FFN or, with a leading dimension E, of all experts of a layer. A row is a neuron."""

    wi: torch.Tensor  # [F, D]; [F, 2D] for a gated FFN, which concatenates wi and wi_gate
    wo: torch.Tensor  # [F, D], transposed


class SwitchExperts(NamedTuple):
    """The experts of one Switch layer and its activations on the calibration text."""

    experts: FFN  # [E, F, ...]
    activation: Callable[[torch.Tensor], torch.Tensor]
    activations: Activations | None  # None without calibration text
    wanted: int | None = None  # neurons of the dense FFN; None: as many as an expert has

    @property
    def neurons(self) -> int:
        """W, the neurons to choose: as many as wanted, or all that the experts have."""
        experts, neurons = self.experts.wi.shape[:2]
        return min(self.wanted or neurons, experts * neurons)

    @property
    def measured(self) -> Activations:
        """The activations, for a method that needs calibration text."""
        assert self.activations is not None  # ``init_student`` requires the text
        return self.activations

    @property
    def load(self) -> torch.Tensor:
        """[E], the fraction of tokens for which the router chooses each expert (equation 5)."""
        return torch.bincount(self.measured.expert, minlength=len(self.experts.wi)) / len(self.measured.expert)

    @property
    def gated_load(self) -> torch.Tensor:
        """[E], each expert's load times the mean gate of its tokens. The sum is the mean gate of all tokens."""
        gates = torch.zeros(len(self.experts.wi), device=self.measured.gate.device)
        return gates.index_add(0, self.measured.expert, self.measured.gate) / len(self.measured.expert)

    def hidden(self, wi: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """The hidden activations of an FFN: ``wi`` [F, D or 2D], ``inputs`` [N, D] -> [N, F]."""
        inner, *gate = (inputs @ part.mT for part in wi.split(inputs.shape[-1], -1))
        return self.activation(gate[0]) * inner if gate else self.activation(inner)


def mean(layer: SwitchExperts, seed: int) -> FFN:
    """The mean of the experts' weights ("averaging" of OneS, arXiv:2201.10890).

    ``wo`` is scaled by the mean gate if there is calibration text.
    """
    return FFN(layer.experts.wi.mean(0), layer.experts.wo.mean(0) * _mean_gate(layer))


def usage(layer: SwitchExperts, seed: int) -> FFN:
    """The mean of the experts weighted by their load, with each expert's ``wo`` scaled by its mean gate.

    M-SMoE (arXiv:2310.01334) merges experts with weights from their usage.
    """
    wi = torch.einsum("e,efd->fd", layer.load, layer.experts.wi)
    return FFN(wi, torch.einsum("e,efd->fd", layer.gated_load, layer.experts.wo))


def best(layer: SwitchExperts, seed: int) -> FFN:
    """The expert of the highest load, with its ``wo`` scaled by its mean gate."""
    chosen = layer.load.argmax()
    gate = layer.gated_load[chosen] / layer.load[chosen]
    return FFN(layer.experts.wi[chosen], layer.experts.wo[chosen] * gate)


def aligned(layer: SwitchExperts, seed: int) -> FFN:
    """``usage`` after the neurons of each expert are permuted to match those of the expert of the highest load.

    The permutation maximises the inner product of the two experts' weights (weight matching of Git Re-Basin,
    arXiv:2209.04836). Here ``wi`` and ``wo`` are each divided by their root mean square.
    """
    reference = int(layer.load.argmax())
    experts = FFN(*(weight.clone() for weight in layer.experts))
    for expert in range(len(experts.wi)):
        similarities = [
            weight[reference] @ weight[expert].mT / weight.square().mean().clamp(min=1e-12) for weight in layer.experts
        ]
        similarity = torch.stack(similarities).sum(0)
        order = torch.from_numpy(linear_sum_assignment(similarity.cpu().numpy(), maximize=True)[1])
        for weight in experts:
            weight[expert] = weight[expert, order.to(weight.device)]
    return usage(layer._replace(experts=experts), seed)


def select(layer: SwitchExperts, seed: int) -> FFN:
    """The W neurons of all experts that contribute most to the layer's output.

    The method scores and selects as arXiv:2605.28207 does, but neurons and not experts. The contribution of a neuron
    is the squared norm of its output times the gate, summed over the tokens of its expert. Duplicates (neurons with
    nearly the same rows of ``wi``) become one neuron, whose ``wo`` is the sum of theirs.

    In the dense FFN a neuron is active on every token, and not on its expert's tokens alone. Its ``wo`` is scaled by
    the least-squares factor: ``sum p h^2`` over the tokens of its expert, divided by ``sum h^2`` over all tokens.
    """
    contribution, overlap = _contributions(layer)
    wi, wo = (weight.flatten(0, 1) for weight in layer.experts)
    chosen, same = _distinct(wi, contribution, layer.neurons)
    wo = wo * overlap[:, None]
    powers = [layer.hidden(wi[chosen], inputs).square().sum(0) for inputs, _ in layer.measured.in_parts()]
    power = torch.stack(powers).sum(0)
    merged = torch.zeros_like(wo[chosen]).index_add(0, same[same >= 0], wo[same >= 0])
    return FFN(wi[chosen], merged / power.clamp(min=torch.finfo(power.dtype).tiny)[:, None])


def fit(layer: SwitchExperts, seed: int) -> FFN:
    """W neurons of all experts, chosen greedily by orthogonal least squares on the layer's output.

    Each step adds the neuron that most lowers the squared error of the best ``wo`` for the chosen neurons (Chen, Cowan
    and Grant 1991, doi:10.1109/72.80341). The candidates are the 4W neurons of the highest contribution (see
    ``select``). The layer's output includes the gate, and is 0 for dropped tokens. ``wo`` is the ridge solution for the
    chosen neurons.
    """
    most = _contributions(layer)[0].argsort(descending=True)[: _CANDIDATES * layer.neurons]
    candidates = layer.experts.wi.flatten(0, 1)[most]
    wi = candidates[_orthogonal_least_squares(*_normal_equations(layer, candidates), layer.neurons)]
    return FFN(wi, _least_squares(layer, wi))


def regress(layer: SwitchExperts, seed: int) -> FFN:
    """``fit``, followed by 2,000 steps of Adam on ``wi`` and ``wo`` towards the layer's output.

    At the end ``wo`` is the ridge solution for the trained ``wi``. ``seed`` draws the batches of tokens.
    """
    start = fit(layer, seed)
    inputs, outputs = layer.measured.inputs, layer.measured.outputs
    weights = [weight.clone().requires_grad_() for weight in start]
    groups = [{"params": [w], "lr": _LEARNING_RATE * float(w.detach().square().mean().sqrt())} for w in weights]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    generator = torch.Generator().manual_seed(seed)
    scale = outputs.square().mean().clamp(min=1e-12)  # the layer's output may be 0
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


# All values of ffn_init but "random", which is T5's own initialisation.
METHODS: dict[str, Callable[[SwitchExperts, int], FFN]] = {
    method.__name__: method for method in (mean, usage, best, aligned, select, fit, regress)
}
WITHOUT_CALIBRATION = frozenset({"random", "mean"})


def _mean_gate(layer: SwitchExperts) -> torch.Tensor | float:
    return 1.0 if layer.activations is None else layer.activations.gate.mean()


def _contributions(layer: SwitchExperts) -> tuple[torch.Tensor, torch.Tensor]:
    """``sum |p h wo|^2`` and ``sum p h^2`` over the tokens of each neuron's expert; both [E * F]."""
    (inputs, expert, gate, _), (wi, wo) = layer.measured, layer.experts
    contribution, overlap = torch.zeros(2, *wi.shape[:2], device=wi.device)
    for number in range(len(wi)):
        own = expert == number
        hidden, p = layer.hidden(wi[number], inputs[own]), gate[own, None]
        contribution[number] = (p * hidden).square().sum(0) * wo[number].square().sum(-1)
        overlap[number] = (p * hidden.square()).sum(0)
    return contribution.flatten(), overlap.flatten()


def _distinct(wi: torch.Tensor, score: torch.Tensor, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``wanted`` rows of the highest score, without duplicates. Duplicates fill up the rest if there are too few.

    Returns:
        The indices of the chosen rows [wanted]; and for every row the position in them of the row that it duplicates
        (its own if it is chosen), or -1.
    """
    order = score.argsort(descending=True)
    same = torch.full_like(order, -1)
    chosen: list[int] = []
    duplicates: list[int] = []
    num_examined = 0
    kept = wi.new_empty(wanted, wi.shape[1])
    for row in order.tolist():
        if len(chosen) == wanted:
            break
        num_examined += 1
        same[row] = _nearest(wi[row, None], kept[: len(chosen)]) if chosen else -1
        if same[row] >= 0:
            duplicates.append(row)
            continue
        same[row], kept[len(chosen)] = len(chosen), wi[row]
        chosen.append(row)
    for rows in order[num_examined:].split(4096):
        same[rows] = _nearest(wi[rows], kept)
    for row in duplicates[: wanted - len(chosen)]:
        same[row] = len(chosen)
        chosen.append(row)
    return torch.tensor(chosen, device=wi.device), same


def _nearest(rows: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """For each of ``rows``, the index of the nearest row of ``kept`` if the two are duplicates, else -1."""
    size, size_kept = rows.square().sum(-1)[:, None], kept.square().sum(-1)
    distance = (size + size_kept - 2 * rows @ kept.mT) / size.maximum(size_kept)
    nearest, index = distance.min(-1)
    return index.where(nearest < _DUPLICATE**2, -1)


def _least_squares(layer: SwitchExperts, wi: torch.Tensor) -> torch.Tensor:
    """[W, D], the ridge solution of ``hidden(wi, inputs) @ wo = outputs``."""
    return torch.linalg.solve(*_normal_equations(layer, wi)).to(wi)


def _normal_equations(layer: SwitchExperts, wi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``H^T H`` plus the ridge [K, K] and ``H^T y`` [K, D] of K neurons, in float64 on the CPU."""
    gram, cross = (
        torch.zeros(len(wi), len(wi)).double(),
        torch.zeros(len(wi), layer.measured.outputs.shape[1]).double(),
    )
    for inputs, outputs in layer.measured.in_parts():
        hidden = layer.hidden(wi, inputs)
        gram += (hidden.mT @ hidden).cpu()
        cross += (hidden.mT @ outputs).cpu()
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny))
    return gram, cross


def _orthogonal_least_squares(gram: torch.Tensor, cross: torch.Tensor, wanted: int) -> list[int]:
    """Choose ``wanted`` of K regressors greedily, by a Cholesky decomposition of ``gram`` that pivots on the gain."""
    factor = gram.new_zeros(wanted, len(gram))  # row i: the component of every regressor along the i-th chosen one
    # cross and the diagonal of gram for the parts of the regressors that are orthogonal to the chosen ones
    residual, power = cross.clone(), gram.diagonal().clone()
    chosen: list[int] = []
    floor = power.mean() * 1e-12
    for step in range(wanted):
        gain = residual.square().sum(-1) / power.clamp(min=floor)
        gain[chosen] = -1
        pick = int(gain.argmax())
        row = gram[pick] - factor[:step, pick] @ factor[:step]
        factor[step] = row / power[pick].clamp(min=floor).sqrt()
        residual -= factor[step, :, None] * (residual[pick] / power[pick].clamp(min=floor).sqrt())
        power -= factor[step].square()
        chosen.append(pick)
    return chosen
