import copy

import pytest
import torch

from distill.config import ModelConfig, TrainingConfig
from distill.optim.adafactor import Adafactor
from distill.optim.muon import Muon, orthogonal
from distill.training.loop import make_optimizer
from distill.training.train_modules import HardLabels
from teachers.config import SwitchConfig
from teachers.model import build_teacher

MATRICES = [(6, 4), (6, 4), (4, 6), (40, 30)]
OTHERS = [(9,), (12, 5), (3, 6, 4)]


def _parameters(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_matrices_equal_torchs_own_and_all_else_adafactor(weight_decay):
    torch.manual_seed(0)
    matrices, others = _parameters(MATRICES), _parameters(OTHERS)
    mine = copy.deepcopy(matrices), copy.deepcopy(others)
    theirs = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        Adafactor(others, lr=0.02),
    ]
    ours = Muon([{"params": mine[0], "orthogonal": True, "weight_decay": weight_decay}, {"params": mine[1]}], lr=0.02)
    for _ in range(5):
        for theirs_own, own in zip([*matrices, *others], [*mine[0], *mine[1]], strict=True):
            theirs_own.grad = torch.randn_like(theirs_own)
            own.grad = theirs_own.grad.clone()
        for optimizer in (*theirs, ours):
            optimizer.step()
    for expected, own in zip(matrices, mine[0], strict=True):
        # Both iterate in bfloat16; a batched product may round otherwise than a single one.
        torch.testing.assert_close(own, expected, rtol=0, atol=5 * 0.02 * 0.2 * 40**0.5 * 2**-7)
    for expected, own in zip(others, mine[1], strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("shape", [(8, 8), (4, 10), (10, 4), (2, 3, 5, 7)])
def test_orthogonal_keeps_directions_and_evens_out_their_sizes(shape):
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrices = u * torch.linspace(5, 0.5, s.shape[-1]) @ v
    along = torch.einsum("...mk,...mn,...kn->...k", u, orthogonal(matrices).float(), v)
    assert ((along > 0.6) & (along < 1.3)).all(), along  # what the polynomial's iterations come to
    rest = orthogonal(matrices).float() - (u * along[..., None, :]) @ v
    assert rest.abs().max() < 0.05


def test_orthogonal_of_nothing_is_nothing():
    assert not orthogonal(torch.zeros(3, 4)).any()


def test_each_expert_is_a_matrix_of_its_own():
    torch.manual_seed(0)
    experts = torch.nn.Parameter(torch.randn(4, 6, 3))
    alone = [torch.nn.Parameter(expert.clone()) for expert in experts.detach()]
    experts.grad = torch.randn_like(experts)
    for one, gradient in zip(alone, experts.grad, strict=True):
        one.grad = gradient.clone()
    for parameters in ([experts], alone):
        Muon([{"params": parameters, "orthogonal": True}], lr=0.1).step()
    torch.testing.assert_close(experts, torch.stack(list(alone)), rtol=0, atol=1e-3)


def test_of_a_teacher_it_moves_the_matrices_of_its_blocks_but_the_router():
    shape = ModelConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2)
    model = build_teacher(shape, SwitchConfig(), 64, 4, pad=0, eos=1, seed=0)
    optimizer = make_optimizer(HardLabels(model), TrainingConfig(optimizer="muon"))
    moved = {id(parameter) for group in optimizer.param_groups if group["orthogonal"] for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in moved}
    attention = {f"{part}.weight" for part in ("q", "k", "v", "o")}
    expected = {
        name
        for name, parameter in model.named_parameters()
        if ".".join(name.split(".")[-2:]) in {*attention, "wi.weight", "wo.weight", "mlp.wi", "mlp.wo"}
    }
    assert names == expected and len(names) == 2 * 4 + 2 * 8 + 4 * 2
    everything = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(everything) == len(list(model.parameters()))


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
