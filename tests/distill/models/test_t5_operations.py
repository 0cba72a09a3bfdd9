"""Operations with written-out gradients, compared with autograd and with torch's own."""

import pytest
import torch
from torch import nn

from distill.models.t5_operations import diagonals, linear, rms_norm


def test_gradients_of_the_written_out_operations():
    torch.manual_seed(0)
    norm = nn.Module()
    norm.weight, norm.variance_epsilon = nn.Parameter(torch.randn(6)), 1e-6
    x = torch.randn(4, 6, requires_grad=True)

    def formula(x, weight):
        return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    upstream = torch.randn(4, 6)
    expected = torch.autograd.grad((formula(x, norm.weight) * upstream).sum(), (x, norm.weight))
    found = torch.autograd.grad((rms_norm(x, norm, torch.float32) * upstream).sum(), (x, norm.weight))
    torch.testing.assert_close(rms_norm(x, norm, torch.float32), formula(x, norm.weight))
    torch.testing.assert_close(found, expected)
    torchs_own = nn.functional.rms_norm(x, (6,), norm.weight, 1e-6)
    torch.testing.assert_close(rms_norm(x, norm, torch.float32), torchs_own)
    torch.testing.assert_close(found, torch.autograd.grad((torchs_own * upstream).sum(), (x, norm.weight)))

    values = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    matrix = diagonals(values, 5)
    assert all(matrix[h, i, j] == values[h, j - i + 4] for h in range(2) for i in range(5) for j in range(5))
    weights = torch.randn(2, 5, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((matrix * weights).sum(), values)
    for h in range(2):
        for offset in range(-4, 5):
            assert gradient[h, offset + 4].item() == pytest.approx(weights[h].diagonal(offset).sum().item(), rel=1e-5)


@pytest.mark.parametrize("rows", [(7,), (2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_is_that_of_torch_on_cast_and_concatenated_weights(rows, dtype):
    torch.manual_seed(0)
    x, upstream = torch.randn(4, 6, 3).to(dtype).requires_grad_(), torch.randn(4, 6, 7).to(dtype)
    weights = [torch.randn(count, 3, requires_grad=True) for count in rows]
    expected = nn.functional.linear(x, torch.cat(weights).to(dtype))
    assert torch.equal(linear(x, *weights), expected)
    found = torch.autograd.grad(linear(x, *weights), (x, *weights), upstream)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (x, *weights), upstream))
    assert [one.dtype for one in found] == [dtype, *[torch.float32] * len(rows)]


def test_linear_saves_no_copy_of_weights():
    weights, saved = [torch.randn(5, 3, requires_grad=True) for _ in range(2)], []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.data_ptr()), lambda _: None):
        linear(x := torch.randn(2, 3).bfloat16(), *weights)
    assert saved == [tensor.data_ptr() for tensor in (x, *weights)]
