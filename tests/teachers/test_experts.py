"""The three implementations of the experts, compared with a plain loop that autograd differentiates."""

import pytest
import torch
import torch.nn.functional as F

from teachers import experts
from teachers.experts import run_experts, sort_by_expert

N, D, E, H = 90, 16, 6, 32
CAPACITY = 20


def plain(tokens, expert, inner, wi, wi_gate, wo):
    """A loop over the experts, each on its first CAPACITY tokens."""
    output = torch.zeros(N, D)
    for e in range(E):
        rows = (expert == e).nonzero()[:CAPACITY, 0]
        parts = [tokens[rows] @ w[e].T for w in (wi, wi_gate) if w is not None]
        output = output.index_copy(0, rows, inner(*parts) @ wo[e].T)
    return output


def case(gated: bool, dtype=torch.float32):
    torch.manual_seed(0)
    expert = torch.randint(0, E - 1, (N,))  # the last expert has no tokens
    expert[10:45] = 2  # more than its capacity
    expert[::9] = E  # without an expert
    weights = [torch.randn(E, H, D) * 0.2, torch.randn(E, H, D) * 0.2 if gated else None, torch.randn(E, D, H) * 0.2]
    tensors = [None if t is None else t.to(dtype).requires_grad_() for t in (torch.randn(N, D), *weights)]
    return expert, tensors


def inner(gated: bool):
    return (lambda a, gate: F.gelu(gate) * a) if gated else F.relu


def run(way, monkeypatch, expert, tensors, gated):
    routing = sort_by_expert(expert, E)
    if way == "grouped":
        tokens, *weights = tensors
        return experts._grouped(tokens, routing, inner(gated), *weights)
    monkeypatch.setattr(experts, "_SMALL", {"sliced": 0, "slotted": 2**30}[way])
    return run_experts(tensors[0], routing, CAPACITY, inner(gated), *tensors[1:])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    "way,dtype", [("sliced", torch.float32), ("slotted", torch.float32), ("grouped", torch.bfloat16)]
)
def test_outputs_and_gradients_equal_a_loop_over_the_experts(monkeypatch, gated, way, dtype):
    expert, tensors = case(gated, dtype)
    routing = sort_by_expert(expert, E)
    taken = (routing.position < CAPACITY) & (expert < E)
    upstream = torch.randn(N, D)

    def backward(output):
        (output.float().where(taken[:, None], 0) * upstream).sum().backward()
        return [None if t is None else t.grad for t in tensors]

    output = run(way, monkeypatch, expert, tensors, gated)
    ours = backward(output)
    reference = [None if t is None else t.detach().float().requires_grad_() for t in tensors]
    expected = plain(reference[0], expert, inner(gated), *reference[1:])
    (expected * upstream).sum().backward()
    error = 1e-5 if dtype == torch.float32 else 0.03
    assert (output.float() - expected)[taken].norm() <= error * expected.norm()
    for mine, theirs in zip(ours, reference, strict=True):
        if theirs is not None:
            assert float((mine.float() - theirs.grad).norm() / theirs.grad.norm()) <= error


def test_tokens_are_sorted_by_expert_and_in_order_within_one():
    expert, _ = case(False)
    routing = sort_by_expert(expert, E)
    assert expert[routing.order].tolist() == sorted(expert.tolist())
    assert routing.order[routing.rank].tolist() == list(range(N))
    for e in range(E):
        members = (expert == e).nonzero()[:, 0]
        assert routing.position[members].tolist() == list(range(len(members)))
        assert routing.load[e] == len(members)


@pytest.mark.parametrize("load", [1, 7, 8, 100, 1000, 8191])
def test_a_slice_is_rounded_up_by_at_most_a_sixteenth(load):
    (part,) = experts._slices([load], capacity=10**9)
    assert load <= part.rounded < load + max(8, load / 15)
    assert experts._slices([load, 3, 0], capacity=2)[1] == experts._Slice(1, load, 2, 8)


def test_no_gradient_keeps_nothing(monkeypatch):
    monkeypatch.setattr(experts, "_SMALL", 0)
    expert, tensors = case(False)
    with torch.no_grad():
        output = run_experts(tensors[0], sort_by_expert(expert, E), CAPACITY, F.relu, *tensors[1:])
    assert output.grad_fn is None


@pytest.mark.parametrize("width", [8, 12, 16, 20])
@pytest.mark.parametrize("inner_width", [8, 20, 24])
def test_experts_are_grouped_only_if_torch_accepts_the_length_of_their_rows(width, inner_width):
    tokens = torch.ones(4, width, dtype=torch.bfloat16, requires_grad=True)
    wi, wo = (torch.ones(2, *shape, dtype=torch.bfloat16) for shape in [(inner_width, width), (width, inner_width)])
    ends = torch.tensor([1, 4], dtype=torch.int32)
    try:
        F.grouped_mm(F.grouped_mm(tokens, wi.mT, offs=ends), wo.mT, offs=ends).backward(torch.ones_like(tokens))
        accepted = True
    except RuntimeError:
        accepted = False
    assert experts._rows_are_aligned(wi) == accepted
