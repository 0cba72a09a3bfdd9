"""Operations with written-out gradients, compared with autograd and with torch's own."""

import pytest
import torch
from torch import nn

from distill.models.t5_operations import diagonals, pack, rms_norm


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

    parts = [torch.randn(rows, 3, requires_grad=True) for rows in (2, 5)]
    packed = pack(torch.bfloat16, *parts)
    assert torch.equal(packed, torch.cat(parts).bfloat16())
    upstream = torch.randn(7, 3).bfloat16()
    gradients = torch.autograd.grad(packed, parts, upstream)
    assert all(torch.equal(g, u.float()) for g, u in zip(gradients, upstream.split([2, 5]), strict=True))
