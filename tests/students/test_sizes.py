"""Students with wider FFNs or fewer decoder layers than their teacher."""

import pytest
import torch
from transformers import T5ForConditionalGeneration

from distill.config import ModelConfig
from distill.data.examples import Batch
from distill.models import t5_forward
from distill.models.build import count_parameters
from distill.models.t5_forward import hidden_states, run_block
from students.calibration import ffn_errors, record
from students.ffn_init import METHODS
from students.initialise import init_student, init_student_with_counts
from students.weight_map import kept_layers, renumbered
from teachers.build import build_teacher, switch_layers
from teachers.config import SwitchConfig
from teachers.load import open_non_experts, open_teacher, read_teacher
from teachers.save import plain_state_dict, save_teacher
from teachers.streaming import StreamedExperts

SHAPE = ModelConfig(d_model=16, d_ff=24, d_kv=8, num_heads=2, num_layers=4)
AVERAGES = ("mean", "usage", "best", "aligned")
CHOOSERS = ("select", "fit", "regress")
NEW = {"widened", "added", "skipped_layer"}  # outcomes that only students of another size have
IDS = torch.randint(2, 64, (2, 12), generator=torch.Generator().manual_seed(0))


def teacher_of(experts: int = 3, **changes):
    shape = SHAPE.model_copy(update=changes)
    return build_teacher(shape, SwitchConfig(), 64, experts, pad=0, eos=1, seed=0)


@pytest.fixture(params=["relu", "gated-gelu"])
def teacher(request):
    return teacher_of(feed_forward=request.param)


@pytest.fixture
def batches():
    torch.manual_seed(0)
    return [Batch(torch.randint(2, 64, (4, 12)), torch.randint(2, 64, (4, 6))) for _ in range(3)]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr("students.ffn_init._STEPS", 20)


def logits(student) -> torch.Tensor:
    """As plain transformers computes them."""
    with torch.no_grad():
        return student.eval()(input_ids=IDS, labels=IDS[:, :5].contiguous()).logits


def check_counts(counts, teacher, student) -> None:
    """The origins add up to all parameters of the student, and those that are not new to the teacher's."""
    parameters = counts["parameters"]
    of_student = ("copied", "renamed", "widened", "added", "built", "fresh")
    assert sum(parameters.get(origin, 0) for origin in of_student) == count_parameters(student)
    of_teacher = [origin for origin in parameters if origin not in ("added", "built", "fresh")]
    assert sum(parameters[origin] for origin in of_teacher) == count_parameters(teacher)
    own = ("copied", "renamed", "widened", "built", "fresh")
    assert sum(counts["tensors"].get(origin, 0) for origin in own) == len(dict(student.named_parameters()))


@pytest.mark.parametrize(
    "of_teacher,of_student,kept",
    [
        (4, 4, [0, 1, 2, 3]),
        (4, 1, [0]),
        (1, 1, [0]),
        (2, 1, [0]),
        (4, 2, [0, 3]),
        (32, 2, [0, 31]),  # distil-large-v2
        (24, 6, [0, 4, 9, 13, 18, 23]),
    ],
)
def test_kept_layers_are_spread_from_the_first_to_the_last(of_teacher, of_student, kept):
    assert kept_layers(of_teacher, of_student) == kept


def test_gaps_between_kept_layers_differ_by_at_most_one():
    for teacher in range(2, 25):
        for student in range(2, teacher + 1):
            kept = kept_layers(teacher, student)
            gaps = {later - earlier for earlier, later in zip(kept, kept[1:], strict=False)}
            assert len(kept) == student and (kept[0], kept[-1]) == (0, teacher - 1)
            assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1


def test_only_layers_of_the_decoder_are_renumbered():
    assert renumbered("decoder.block.3.layer.2", [0, 3]) == "decoder.block.1.layer.2"
    assert renumbered("decoder.block.1.layer.2", [0, 3]) is None
    assert renumbered("decoder.block.13.layer.2.x", [0, 3, 13]) == "decoder.block.2.layer.2.x"
    assert renumbered("encoder.block.3.layer.1", [0]) == "encoder.block.3.layer.1"


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_kept_layers_have_the_teachers_weights(teacher, layers):
    student, counts = init_student_with_counts(teacher, ffn_init="random", seed=1, num_decoder_layers=layers)
    source, target = plain_state_dict(teacher), student.state_dict()
    kept = kept_layers(4, layers)
    assert len(student.decoder.block) == student.config.num_decoder_layers == layers
    assert len(student.encoder.block) == 4
    for own, layer in enumerate(kept):
        for name, tensor in source.items():
            if name.startswith(f"decoder.block.{layer}.") and "router" not in name and "experts" not in name:
                assert torch.equal(
                    target[name.replace(f"block.{layer}.", f"block.{own}.").replace(".mlp.", ".DenseReluDense.")],
                    tensor,
                )
    for name in ("decoder.final_layer_norm.weight", "encoder.block.3.layer.0.SelfAttention.q.weight"):
        assert torch.equal(target[name], source[name])
    check_counts(counts, teacher, student)
    dropped = [name for name in source if name.startswith(tuple(f"decoder.block.{n}." for n in {*range(4)} - {*kept}))]
    plain = [name for name in dropped if "router" not in name and "experts" not in name]
    assert counts["tensors"].get("skipped_layer", 0) == len(plain)
    assert counts["parameters"].get("skipped_layer", 0) == sum(source[name].numel() for name in plain)


def test_a_student_with_one_decoder_layer_has_the_states_of_the_teachers_first(teacher, monkeypatch):
    """The first FFN of the decoder is dense, so nothing in it is fresh. The student's encoder gets the teacher's."""
    student = init_student(teacher, num_decoder_layers=1).eval()
    for own, block in zip(student.encoder.block, teacher.encoder.block, strict=True):
        own.layer[-1] = block.layer[-1]  # Switch layers in place of fresh FFNs
    states = []

    def recorded(*arguments):
        states.append(run_block(*arguments))
        return states[-1]

    monkeypatch.setattr(t5_forward, "run_block", recorded)
    with torch.no_grad():
        hidden_states(teacher.eval(), IDS, IDS[:, :5])
        of_teacher = len(states)
        hidden_states(student, IDS, IDS[:, :5])
    assert of_teacher == 8 and len(states) == 8 + 5
    torch.testing.assert_close(states[8 + 4], states[4])


@pytest.mark.parametrize("ffn_init", AVERAGES)
def test_a_widened_student_computes_what_the_narrow_one_does(teacher, batches, ffn_init):
    options = {"ffn_init": ffn_init, "seed": 1, "calibration": batches}
    narrow = init_student(teacher, **options)
    wide, counts = init_student_with_counts(teacher, d_ff=60, **options)
    assert {block.layer[-1].DenseReluDense.wo.in_features for block in wide.encoder.block} == {60}
    torch.testing.assert_close(logits(wide), logits(narrow), rtol=1e-5, atol=1e-5)
    check_counts(counts, teacher, wide)
    matrices = 3 if teacher.config.is_gated_act else 2
    assert counts["tensors"]["widened"] == counts["tensors"]["built"] == 4 * matrices
    assert counts["parameters"]["added"] == 8 * matrices * 36 * 16 and counts["parameters"]["fresh"] == 0
    wide(input_ids=IDS, labels=IDS).loss.backward()
    for name, weight in wide.named_parameters():  # the added neurons learn
        if name.endswith("DenseReluDense.wo.weight"):
            assert weight[:, 24:].eq(0).all() and weight.grad[:, 24:].ne(0).any()


def test_dense_ffns_are_widened_without_a_change_of_their_function(teacher):
    wide, counts = init_student_with_counts(teacher, ffn_init="random", seed=1, d_ff=60)
    narrow = init_student(teacher, seed=1)
    hidden = torch.randn(5, 16)
    for stack in ("encoder", "decoder"):
        same = []
        for one, other in zip(getattr(wide, stack).block, getattr(narrow, stack).block, strict=True):
            outputs = [block.layer[-1].DenseReluDense.eval()(hidden) for block in (one, other)]
            same.append(torch.allclose(*outputs, atol=1e-5))
        assert same == [True, False, True, False]  # every second block has experts, and its random FFN is a new one
    check_counts(counts, teacher, wide)
    assert counts["tensors"]["widened"] and counts["parameters"]["fresh"]


@pytest.mark.parametrize("ffn_init", CHOOSERS)
def test_ffns_are_built_from_as_many_neurons_as_the_student_has(teacher, batches, ffn_init):
    options = {"ffn_init": ffn_init, "seed": 1, "calibration": batches}
    wide, counts = init_student_with_counts(teacher, d_ff=48, **options)
    check_counts(counts, teacher, wide)
    matrices = 3 if teacher.config.is_gated_act else 2
    assert counts["parameters"]["built"] == 4 * matrices * 48 * 16
    assert counts["parameters"]["added"] == 4 * matrices * 24 * 16  # of the dense FFNs
    if ffn_init != "regress":
        layer = dict(switch_layers(teacher))["encoder.block.1.layer.1"].mlp
        known = {tuple(row) for row in layer.wi.flatten(0, 1).tolist()}
        inner = wide.encoder.block[1].layer[-1].DenseReluDense
        rows = (inner.wi_1 if layer.wi_gate is not None else inner.wi).weight.tolist()
        assert len({*map(tuple, rows)} & known) == 48  # each is another neuron of an expert


@pytest.mark.parametrize("ffn_init", ["fit", "regress"])
def test_wider_ffns_are_nearer_to_the_experts(teacher, batches, ffn_init):
    errors = {}
    for width in (24, 48, 72):
        student = init_student(teacher, ffn_init=ffn_init, seed=1, calibration=batches, d_ff=width)
        errors[width] = ffn_errors(student, record(teacher, batches))
    for layer, error in errors[24].items():
        assert errors[72][layer] <= errors[48][layer] + 1e-6 and errors[48][layer] <= error + 1e-6
        assert errors[48][layer] < error


@pytest.mark.parametrize("ffn_init", CHOOSERS)
def test_neurons_that_the_experts_do_not_have_change_nothing(teacher, batches, ffn_init):
    """Three experts have 72 neurons. The 28 others have a wo of zero."""
    options = {"ffn_init": ffn_init, "seed": 1, "calibration": batches}
    whole = init_student(teacher, d_ff=72, **options)
    wide, counts = init_student_with_counts(teacher, d_ff=100, **options)
    check_counts(counts, teacher, wide)
    torch.testing.assert_close(logits(wide), logits(whole), rtol=1e-4, atol=1e-4)
    assert wide.encoder.block[1].layer[-1].DenseReluDense.wo.weight[:, 72:].eq(0).all()
    assert counts["parameters"]["built"] == 4 * (3 if teacher.config.is_gated_act else 2) * 72 * 16


@pytest.mark.parametrize("ffn_init", METHODS)
def test_ffns_of_kept_layers_are_those_of_a_student_with_all_layers(teacher, batches, ffn_init):
    options = {"ffn_init": ffn_init, "seed": 1, "calibration": batches}
    whole = init_student(teacher, **options).state_dict()
    student, counts = init_student_with_counts(teacher, num_decoder_layers=2, **options)
    check_counts(counts, teacher, student)
    found = student.state_dict()
    for name in found:
        other = name.replace("decoder.block.1.", "decoder.block.3.")
        assert torch.equal(found[name], whole[other]), name
    kept = kept_layers(4, 2)
    errors = ffn_errors(student, record(teacher, batches), kept)
    assert list(errors) == ["encoder.1", "encoder.3", "decoder.3"]  # layers of the teacher; its layer 0 is dense


def test_sizes_that_are_the_teachers_change_nothing(teacher, batches):
    options = {"ffn_init": "fit", "seed": 1, "calibration": batches}
    (one, counts), (same, same_counts) = (
        init_student_with_counts(teacher, **options, **sizes) for sizes in ({}, {"d_ff": 24, "num_decoder_layers": 4})
    )
    assert counts == same_counts and not NEW & counts["parameters"].keys()
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_student_of_another_size_of_a_stored_teacher(teacher, tmp_path, batches):
    save_teacher(teacher, tmp_path / "teacher")
    sizes = {"d_ff": 60, "num_decoder_layers": 2}
    stored = open_teacher(str(tmp_path / "teacher"))
    (one, counts), (other, other_counts) = (
        init_student_with_counts(of, ffn_init="random", seed=1, **sizes) for of in (stored, teacher)
    )
    assert counts == other_counts
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    read = {name for name, tensor in stored.reader.tensors.items() if ".experts." not in name and "router" not in name}
    assert stored.reader.bytes_read < sum(4 * stored.reader.tensors[name].numel for name in read)  # not dropped ones
    one.save_pretrained(tmp_path / "student")
    plain = T5ForConditionalGeneration.from_pretrained(tmp_path / "student")
    assert torch.equal(logits(plain), logits(one))
    model = read_teacher(stored, SwitchConfig(), experts=False)
    experts = StreamedExperts(stored, model, compute_dtype=None)
    options = {"ffn_init": "fit", "seed": 1, "calibration": batches, **sizes}
    streamed = init_student_with_counts(model, in_place=experts.in_place, **options)[0]
    whole = init_student_with_counts(read_teacher(stored, SwitchConfig()), **options)[0]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in streamed.state_dict().items())


def test_a_student_that_takes_nothing_from_its_teacher_has_the_wanted_size():
    student, counts = init_student_with_counts(
        teacher_of(), ffn_init="random", seed=1, copy=False, d_ff=60, num_decoder_layers=1
    )
    assert counts["parameters"] == {"fresh": count_parameters(student)}
    assert (student.config.d_ff, len(student.decoder.block)) == (60, 1)


@pytest.mark.parametrize(
    "sizes,message",
    [
        ({"d_ff": 23}, "d_ff is 23; it must be None, or a whole number from 24 to 1048576"),
        ({"d_ff": 48.0}, "d_ff is 48.0; it must be"),
        ({"num_decoder_layers": 0}, "num_decoder_layers is 0; it must be None, or a whole number from 1 to 4"),
        ({"num_decoder_layers": 5}, "num_decoder_layers is 5; it must be"),
        ({"num_decoder_layers": "2"}, "num_decoder_layers is '2'; it must be"),
    ],
)
def test_wrong_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        init_student(teacher_of(), **sizes)


def test_ffns_of_a_teacher_that_was_only_opened_are_not_built(teacher, tmp_path, batches):
    save_teacher(teacher, tmp_path)
    with pytest.raises(ValueError, match="ffn_init 'fit' builds FFNs from experts; load the teacher with load_teacher"):
        init_student_with_counts(open_non_experts(str(tmp_path)), ffn_init="fit", seed=0, calibration=batches)
