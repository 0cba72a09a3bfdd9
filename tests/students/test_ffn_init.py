import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from distill.data.examples import Batch
from distill.models.build import count_parameters
from students.calibration import Activations, ffn_errors, record
from students.ffn_init import FFN, METHODS, WITHOUT_CALIBRATION, SwitchExperts
from students.initialise import init_student, init_student_with_counts
from teachers.build import build_teacher, switch_layers
from teachers.config import TeacherConfig

N, D, E, F = 400, 6, 3, 8
ACTIVATIONS = {"relu": ACT2FN["relu"], "gated-gelu": ACT2FN["gelu_new"]}


def sparse_layer(feed_forward: str = "relu", experts: FFN | None = None, seed: int = 0) -> SwitchExperts:
    """Random experts and a random router, with their activations on random tokens. The last tenth is dropped."""
    rng = torch.Generator().manual_seed(seed)
    width = 2 * D if feed_forward.startswith("gated") else D
    experts = experts or FFN(torch.randn(E, F, width, generator=rng), torch.randn(E, F, D, generator=rng))
    x = torch.randn(N, D, generator=rng)
    gate, expert = (x @ torch.randn(D, E, generator=rng) + torch.tensor([0.0, 1.0, -0.5])).softmax(-1).max(-1)
    gate[-N // 10 :] = 0
    y = torch.zeros(N, D)
    for e in range(E):
        y[expert == e] = dense(feed_forward, FFN(experts.wi[e], experts.wo[e]), x[expert == e])
    return SwitchExperts(experts, ACTIVATIONS[feed_forward], Activations(x, expert, gate, y * gate[:, None]))


def hidden(feed_forward: str, wi: torch.Tensor, x: torch.Tensor) -> np.ndarray:
    """Hidden activations in NumPy: ReLU, or for gated GELU, tanh-GELU of the second half times the first half."""
    inner = x.double().numpy() @ wi[:, :D].double().numpy().T
    if feed_forward == "relu":
        return np.maximum(inner, 0)
    gate = x.double().numpy() @ wi[:, D:].double().numpy().T
    return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * inner


def dense(feed_forward: str, ffn: FFN, x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(hidden(feed_forward, ffn.wi, x) @ ffn.wo.double().numpy()).float()


def error(feed_forward: str, ffn: FFN, seen: Activations) -> float:
    return float((dense(feed_forward, ffn, seen.inputs) - seen.outputs).square().sum() / seen.outputs.square().sum())


def measured(layer: SwitchExperts) -> tuple[np.ndarray, np.ndarray]:
    """Load and mean gate of each expert."""
    expert, gate = layer.activations.expert.numpy(), layer.activations.gate.double().numpy()
    return np.array([(expert == e).mean() for e in range(E)]), np.array([gate[expert == e].mean() for e in range(E)])


@pytest.mark.parametrize("feed_forward", ACTIVATIONS)
def test_merged_weights_follow_their_formulas(feed_forward):
    layer = sparse_layer(feed_forward)
    wi, wo = (weight.double().numpy() for weight in layer.experts)
    load, gate = measured(layer)
    mean_gate, top = layer.activations.gate.double().numpy().mean(), load.argmax()
    expected = {
        "mean": (wi.mean(0), wo.mean(0) * mean_gate),
        "usage": (np.tensordot(load, wi, 1), np.tensordot(load * gate, wo, 1)),
        "best": (wi[top], wo[top] * gate[top]),
    }
    for method, weights in expected.items():
        for weight, value in zip(METHODS[method](layer, 0), weights, strict=True):
            np.testing.assert_allclose(weight, value, atol=1e-5, err_msg=method)


@pytest.mark.parametrize("method", sorted(WITHOUT_CALIBRATION - {"random"}))
def test_without_calibration_wo_is_not_scaled_by_the_gate(method):
    layer = sparse_layer()
    gate = layer.activations.gate.mean()
    with_gate, without = METHODS[method](layer, 0), METHODS[method](layer._replace(activations=None), 0)
    torch.testing.assert_close(with_gate.wi, without.wi)
    torch.testing.assert_close(with_gate.wo, without.wo * gate)


def permuted_copies(feed_forward: str) -> tuple[FFN, FFN]:
    """An FFN, and experts that are permutations of it."""
    one = FFN(*(weight[0] for weight in sparse_layer(feed_forward).experts))
    orders = [torch.randperm(F, generator=torch.Generator().manual_seed(e)) for e in range(E)]
    return one, FFN(*(torch.stack([weight[order] for order in orders]) for weight in one))


@pytest.mark.parametrize("feed_forward", ACTIVATIONS)
@pytest.mark.parametrize("method", ["aligned", "select", "fit"])
def test_experts_that_are_permutations_of_one_ffn_give_that_ffn(feed_forward, method):
    one, experts = permuted_copies(feed_forward)
    layer = sparse_layer(feed_forward, experts)
    built = METHODS[method](layer, 0)
    order = torch.cdist(built.wi, one.wi).argmin(-1)
    assert sorted(order.tolist()) == list(range(F))
    torch.testing.assert_close(built.wi, one.wi[order])
    if method == "aligned":
        torch.testing.assert_close(built.wo, one.wo[order] * layer.activations.gate.mean())
    if method == "select":  # the mean gate of each neuron, weighted by its squared activation
        ratio = built.wo / one.wo[order]
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
        assert ((ratio > 0) & (ratio < 1)).all()


@pytest.mark.parametrize("feed_forward", ACTIVATIONS)
def test_select_chooses_the_neurons_of_the_largest_contribution(feed_forward):
    layer = sparse_layer(feed_forward)
    x, expert, gate = (part.double().numpy() for part in layer.activations[:3])
    contributions, scaled = {}, {}
    for e in range(E):
        for neuron in range(F):
            wi, wo = layer.experts.wi[e, neuron], layer.experts.wo[e, neuron].double().numpy()
            h = hidden(feed_forward, wi[None], torch.from_numpy(x))[:, 0]
            p = gate * (expert == e)
            contributions[e, neuron] = np.square((p * h)[:, None] * wo).sum()
            scaled[e, neuron] = wo * (p * h * h).sum() / (h * h).sum()
    top = sorted(contributions, key=contributions.get, reverse=True)[:F]
    built = METHODS["select"](layer, 0)
    assert torch.equal(built.wi, torch.stack([layer.experts.wi[index] for index in top]))
    np.testing.assert_allclose(built.wo, [scaled[index] for index in top], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("feed_forward", ACTIVATIONS)
def test_fit_gives_the_ridge_solution_and_no_nearby_wo_is_better(feed_forward):
    layer = sparse_layer(feed_forward)
    built = METHODS["fit"](layer, 0)
    h, y = hidden(feed_forward, built.wi, layer.activations.inputs), layer.activations.outputs.double().numpy()
    ridge = 1e-4 * (h * h).sum(0).mean()
    stacked = np.concatenate([h, np.sqrt(ridge) * np.eye(F)]), np.concatenate([y, np.zeros((F, D))])
    np.testing.assert_allclose(built.wo, np.linalg.lstsq(*stacked, rcond=None)[0], atol=1e-4)
    least = error(feed_forward, built, layer.activations)
    for seed in range(5):
        noise = 0.05 * torch.randn(F, D, generator=torch.Generator().manual_seed(seed))
        assert error(feed_forward, FFN(built.wi, built.wo + noise), layer.activations) > least


@pytest.mark.parametrize("feed_forward", ACTIVATIONS)
def test_fit_greedily_chooses_the_neuron_of_the_least_error(feed_forward):
    """Brute force: each step tries every neuron of every expert with its own least-squares solution."""
    layer = sparse_layer(feed_forward)
    rows, y = layer.experts.wi.flatten(0, 1), layer.activations.outputs.double().numpy()
    h = hidden(feed_forward, rows, layer.activations.inputs)
    ridge = np.sqrt(1e-4 * (h * h).sum(0).mean())
    chosen: list[int] = []
    for _ in range(F):
        left = []
        for neuron in range(len(rows)):
            tried = [*chosen, neuron]
            a = np.concatenate([h[:, tried], ridge * np.eye(len(tried))])
            b = np.concatenate([y, np.zeros((len(tried), D))])
            left.append(
                np.square(a @ np.linalg.lstsq(a, b, rcond=None)[0] - b).sum() if neuron not in chosen else np.inf
            )
        chosen.append(int(np.argmin(left)))
    assert torch.equal(METHODS["fit"](layer, 0).wi, rows[chosen])


@pytest.mark.parametrize("feed_forward", ACTIVATIONS)
def test_fitted_methods_have_a_lower_error(feed_forward):
    layer = sparse_layer(feed_forward)
    errors = {method: error(feed_forward, METHODS[method](layer, 0), layer.activations) for method in METHODS}
    assert (
        errors["regress"] < errors["fit"] < min(errors[other] for other in METHODS if other not in ("fit", "regress"))
    )


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"mean", "usage"}))
def test_the_order_of_neurons_does_not_matter(method):
    """Experts with permuted neurons give the same function, except for methods that merge neurons by position."""
    layer = sparse_layer()
    orders = [torch.randperm(F, generator=torch.Generator().manual_seed(e)) for e in range(E)]
    shuffled = FFN(*(torch.stack([w[e][order] for e, order in enumerate(orders)]) for w in layer.experts))
    one, other = (METHODS[method](each, 0) for each in (layer, layer._replace(experts=shuffled)))
    x = layer.activations.inputs
    torch.testing.assert_close(dense("relu", one, x), dense("relu", other, x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_experts_does_not_matter(method):
    layer = sparse_layer()
    order = torch.tensor([2, 0, 1])
    seen = layer.activations._replace(expert=order.argsort()[layer.activations.expert])
    moved = SwitchExperts(FFN(*(weight[order] for weight in layer.experts)), layer.activation, seen)
    x = layer.activations.inputs
    one, other = METHODS[method](layer, 0), METHODS[method](moved, 0)
    torch.testing.assert_close(dense("relu", one, x), dense("relu", other, x), rtol=1e-3, atol=1e-3)


def test_an_expert_without_tokens_has_no_effect():
    layer = sparse_layer()
    expert = layer.activations.expert.where(layer.activations.expert != 2, 0)
    layer = layer._replace(activations=layer.activations._replace(expert=expert))
    changed = layer._replace(experts=FFN(*(weight.clone() for weight in layer.experts)))
    changed.experts.wi[2], changed.experts.wo[2] = 1.0, -1.0
    for method in ("usage", "best", "aligned", "select"):
        for one, other in zip(METHODS[method](layer, 0), METHODS[method](changed, 0), strict=True):
            assert one.isfinite().all() and torch.equal(one, other), method


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_with_zero_output_gives_finite_weights(method):
    zero = FFN(torch.randn(E, F, D, generator=torch.Generator().manual_seed(0)), torch.zeros(E, F, D))
    ffn = METHODS[method](sparse_layer(experts=zero), 0)
    assert all(weight.isfinite().all() for weight in ffn)


class TestStudent:
    @pytest.fixture
    def batches(self):
        torch.manual_seed(0)
        return [Batch(torch.randint(2, 64, (8, 24)), torch.randint(2, 64, (8, 12))) for _ in range(2)]

    def teacher(self, shape, **changes):
        shape = shape.model_copy(update=changes)
        return build_teacher(shape, TeacherConfig(experts=[3]), 64, 3, pad=0, eos=1, seed=0).eval()

    @pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
    def test_counts_add_up_and_fitted_methods_have_lower_errors(self, shape, feed_forward, batches):
        teacher, errors = self.teacher(shape, feed_forward=feed_forward), {}
        recorded = dict(record(teacher, batches))
        for method in ("random", *METHODS):
            student, counts = init_student_with_counts(teacher, ffn_init=method, seed=1, calibration=batches)
            parameters, tensors = counts["parameters"], counts["tensors"]
            made = sum(parameters.get(outcome, 0) for outcome in ("copied", "renamed", "built", "fresh"))
            assert made == count_parameters(student)
            assert tensors["fresh" if method == "random" else "built"] == 2 * (3 if "gated" in feed_forward else 2)
            assert method == "random" or parameters["fresh"] == tensors["fresh"] == 0
            assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
            errors[method] = sum(ffn_errors(student, recorded.items()).values())
        assert errors["regress"] < errors["fit"] < min(errors["random"], errors["mean"], errors["best"])

    @pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
    def test_the_students_ffn_is_the_built_ffn(self, shape, feed_forward, batches):
        """If all experts are equal and the router is zero, the student of ``best`` equals the teacher."""
        teacher = self.teacher(shape, feed_forward=feed_forward)
        for _, block in switch_layers(teacher):
            block.mlp.capacity_factor_eval = 3.0
            block.mlp.router.weight.data.zero_()
        student = init_student(teacher, ffn_init="best", calibration=batches).eval()
        ids, labels = batches[0]
        expected = teacher(input_ids=ids, labels=labels).logits
        torch.testing.assert_close(student(input_ids=ids, labels=labels).logits, expected, rtol=1e-3, atol=1e-3)

    def test_equal_seeds_and_texts_give_equal_students(self, shape, batches):
        teacher = self.teacher(shape)
        for method in METHODS:
            one, same = (init_student(teacher, ffn_init=method, seed=1, calibration=batches) for _ in range(2))
            for a, b in zip(one.parameters(), same.parameters(), strict=True):
                assert torch.equal(a, b), method

    def test_without_copy_all_weights_are_fresh(self, shape):
        teacher = self.teacher(shape)
        student, counts = init_student_with_counts(teacher, ffn_init="random", seed=1, copy=False)
        assert counts["parameters"] == {"fresh": count_parameters(student)}
        theirs = {tensor.flatten()[0].item() for tensor in teacher.state_dict().values() if tensor.std() > 0}
        assert not any(p.flatten()[0].item() in theirs for p in student.parameters() if p.std() > 0)

    @pytest.mark.parametrize("method", sorted(set(METHODS) - WITHOUT_CALIBRATION))
    def test_methods_that_need_calibration_require_it(self, shape, method):
        with pytest.raises(ValueError, match=f"ffn_init '{method}' needs calibration"):
            init_student(self.teacher(shape), ffn_init=method)

    def test_calibration_needs_text(self, shape):
        with pytest.raises(ValueError, match="at least one batch"):
            init_student(self.teacher(shape), ffn_init="fit", calibration=[])
