import copy

import numpy as np
import pytest
import torch

from distill.optim.adafactor import Adafactor
from distill.optim.muon import Muon, orthogonal

MATRICES = [(6, 4), (6, 4), (4, 6), (40, 30)]
OTHERS = [(9,), (12, 5), (3, 6, 4)]
STEPS, LR = 5, 0.02
# Both iterate in bfloat16. A batched product may round differently from a single one.
ROUNDING = {"rtol": 0, "atol": STEPS * LR * 0.2 * 40**0.5 * 2**-7}


def _parameters(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_matrices_equal_torchs_own_and_all_else_adafactor(weight_decay):
    torch.manual_seed(0)
    matrices, others = _parameters(MATRICES), _parameters(OTHERS)
    mine = copy.deepcopy(matrices), copy.deepcopy(others)
    theirs = [
        torch.optim.Muon(matrices, lr=LR, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        Adafactor(others, lr=LR),
    ]
    ours = Muon([{"params": mine[0], "orthogonal": True, "weight_decay": weight_decay}, {"params": mine[1]}], lr=LR)
    for _ in range(STEPS):
        for theirs_own, own in zip([*matrices, *others], [*mine[0], *mine[1]], strict=True):
            theirs_own.grad = torch.randn_like(theirs_own)
            own.grad = theirs_own.grad.clone()
        for optimizer in (*theirs, ours):
            optimizer.step()
    for expected, own in zip(matrices, mine[0], strict=True):
        torch.testing.assert_close(own, expected, **ROUNDING)
    for expected, own in zip(others, mine[1], strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("shape", [(8, 8), (4, 10), (10, 4), (2, 3, 5, 7)])
def test_orthogonal_keeps_directions_and_evens_out_their_sizes(shape):
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrices = u * torch.linspace(5, 0.5, s.shape[-1]) @ v
    along = torch.einsum("...mk,...mn,...kn->...k", u, orthogonal(matrices).float(), v)
    assert ((along > 0.6) & (along < 1.3)).all(), along  # the range of the polynomial's iterations
    rest = orthogonal(matrices).float() - (u * along[..., None, :]) @ v
    assert rest.abs().max() < 0.05


def test_orthogonal_of_nothing_is_nothing():
    assert not orthogonal(torch.zeros(3, 4)).any()


def test_the_experts_of_a_layer_are_torchs_own_matrices_one_by_one():
    torch.manual_seed(0)
    experts = torch.nn.Parameter(torch.randn(4, 40, 30))
    alone = [torch.nn.Parameter(expert.clone()) for expert in experts.detach()]
    optimizers = [
        torch.optim.Muon(alone, lr=LR, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        Muon([{"params": [experts], "orthogonal": True}], lr=LR),
    ]
    for _ in range(STEPS):
        experts.grad = torch.randn_like(experts)
        for one, gradient in zip(alone, experts.grad, strict=True):
            one.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(experts, torch.stack(alone), **ROUNDING)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_in_float32_it_follows_its_equations(weight_decay):
    """The reference is in NumPy, because torch's Muon iterates only in bfloat16."""
    torch.manual_seed(0)
    ours = _parameters([*MATRICES, (3, 8, 5)])
    group = {"params": ours, "orthogonal": True, "weight_decay": weight_decay}
    optimizer = Muon([group], lr=LR, dtype=torch.float32)
    expected = [parameter.detach().double().numpy() for parameter in ours]
    momentum = [np.zeros_like(value) for value in expected]
    for _ in range(STEPS):
        for number, parameter in enumerate(ours):
            parameter.grad = torch.randn_like(parameter)
            gradient, value = parameter.grad.double().numpy(), expected[number]
            momentum[number] = 0.95 * momentum[number] + 0.05 * gradient
            direction = newton_schulz(0.95 * momentum[number] + 0.05 * gradient)  # Nesterov momentum
            rate = LR * 0.2 * max(value.shape[-2:]) ** 0.5
            expected[number] = value * (1 - LR * weight_decay) - rate * direction
        optimizer.step()
    for value, own in zip(expected, ours, strict=True):
        np.testing.assert_allclose(own.detach().numpy(), value, rtol=0, atol=1e-5)


def newton_schulz(matrices: np.ndarray) -> np.ndarray:
    """``x <- a x + b (x x^T) x + c (x x^T)^2 x``, five times, from a matrix whose norm is 1."""
    x = matrices / np.linalg.norm(matrices, axis=(-2, -1), keepdims=True)
    for _ in range(5):
        gram = x @ np.swapaxes(x, -1, -2)
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def test_state_goes_on_where_it_was():
    torch.manual_seed(0)
    first = _parameters([*MATRICES, *OTHERS])

    def optimizer_of(parameters):
        split = len(MATRICES)
        return Muon([{"params": parameters[:split], "orthogonal": True}, {"params": parameters[split:]}], lr=0.05)

    def steps(parameters, optimizer, seed):
        torch.manual_seed(seed)
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()

    optimizer = optimizer_of(first)
    steps(first, optimizer, 1)
    second = copy.deepcopy(first)
    resumed = optimizer_of(second)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(first, optimizer, 2), steps(second, resumed, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
