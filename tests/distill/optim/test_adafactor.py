import copy

import pytest
import torch
import transformers

from distill.optim import adafactor
from distill.optim.adafactor import Adafactor

SHAPES = [(6, 4), (6, 4), (4,), (4,), (9,), (3, 6, 4), (40, 30), (6, 4)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("small", [2**20, 100], ids=["stacked", "large alone"])
def test_equals_torchs_own(monkeypatch, weight_decay, small):
    monkeypatch.setattr(adafactor, "_SMALL", small)
    torch.manual_seed(0)
    theirs = [torch.nn.Parameter(torch.randn(shape) * 0.3) for shape in SHAPES]
    theirs[3].data.zero_()  # the lower bound of the step size has an effect
    ours = copy.deepcopy(theirs)
    pair = [
        (theirs, torch.optim.Adafactor(theirs, lr=0.06, weight_decay=weight_decay)),
        (ours, Adafactor(ours, lr=0.06, weight_decay=weight_decay)),
    ]
    for step in range(5):
        gradients = [torch.randn(shape) * 10 ** (step - 2) for shape in SHAPES]
        gradients[0].zero_()
        for parameters, optimizer in pair:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        for mine, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-7)


def test_equals_that_of_transformers_where_both_move_by_the_learning_rate():
    """In transformers, ``lr`` has no bound of 1/sqrt(step), and weight decay depends on the size of a tensor."""
    torch.manual_seed(0)
    theirs = [torch.nn.Parameter(torch.randn(shape) * 0.3) for shape in SHAPES]
    ours = copy.deepcopy(theirs)
    optimizers = [transformers.Adafactor(theirs, lr=0.06, relative_step=False), Adafactor(ours, lr=0.06)]
    for step in range(5):
        for expected, own in zip(theirs, ours, strict=True):
            expected.grad = torch.randn_like(expected) * 10 ** (step - 2)
            own.grad = expected.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        for expected, own in zip(theirs, ours, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-7)


def test_state_goes_on_where_it_was_and_a_parameter_without_gradient_stays():
    torch.manual_seed(0)
    first = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = Adafactor(first, lr=0.05)

    def steps(parameters, optimizer, seed):
        torch.manual_seed(seed)
        for _ in range(3):
            for parameter in parameters[1:]:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()

    untouched = first[0].detach().clone()
    steps(first, optimizer, 1)
    second = copy.deepcopy(first)
    resumed = Adafactor(second, lr=0.05)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(first, optimizer, 2), steps(second, resumed, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(first[0], untouched)
