import pytest
import torch
from transformers import SwitchTransformersConfig, T5ForConditionalGeneration

from distill.config import ModelConfig
from distill.errors import UserError
from distill.models.build import count_parameters, new_t5
from students import init_student
from students.initialise import init_student_with_counts, student_config
from students.weight_map import Skip, student_name
from teachers.build import build_teacher
from teachers.config import TeacherConfig
from teachers.save import plain_state_dict, save_teacher

SWITCH_BASE = {"d_model": 768, "d_ff": 3072, "d_kv": 64, "num_heads": 12, "num_layers": 12}
T5_BASE_PARAMETERS = 222_903_552


def teacher_of(shape: ModelConfig, experts: int = 3, **changes):
    shape = shape.model_copy(update=changes)
    return build_teacher(shape, TeacherConfig(experts=[experts]), 64, experts, pad=0, eos=1, seed=0)


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_is_copied_renamed_or_skipped(shape, feed_forward, tied):
    teacher = teacher_of(shape, feed_forward=feed_forward, tie_word_embeddings=tied)
    student, counts = init_student_with_counts(teacher, ffn_init="random", seed=1)
    source, target = plain_state_dict(teacher), student.state_dict()
    filled = set()
    for name, tensor in source.items():
        where = student_name(name)
        if isinstance(where, Skip):
            assert ("router" in name) == (where.reason == "router")
            continue
        assert torch.equal(target[where], tensor), name
        filled.add(where)
    fresh = set(target) - filled
    assert fresh and all(".block.1." in name and "DenseReluDense" in name for name in fresh)
    parameters = counts["parameters"]
    assert parameters["copied"] + parameters["renamed"] + parameters["fresh"] == count_parameters(student)
    everything = sum(value for outcome, value in parameters.items() if outcome != "fresh")
    assert everything == count_parameters(teacher)
    assert counts["tensors"]["skipped_router"] == 2
    assert counts["tensors"]["skipped_expert"] == 2 * 3 * (3 if feed_forward == "gated-gelu" else 2)


def test_only_fresh_weights_depend_on_the_seed(shape):
    teacher = teacher_of(shape)
    one, same, other = (init_student(teacher, seed=seed).state_dict() for seed in (1, 1, 2))
    different = {name for name in one if not torch.equal(one[name], other[name])}
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert different and all("DenseReluDense" in name for name in different)


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_saved_student_with_the_same_output(tmp_path, shape, feed_forward, tied):
    teacher = teacher_of(shape, feed_forward=feed_forward, tie_word_embeddings=tied)
    save_teacher(teacher, tmp_path / "teacher")
    student = init_student(tmp_path / "teacher").eval()
    student.save_pretrained(tmp_path / "student")
    read = T5ForConditionalGeneration.from_pretrained(tmp_path / "student").eval()
    ids = torch.randint(2, 64, (2, 12))
    torch.testing.assert_close(
        read(input_ids=ids, labels=ids).logits, student(input_ids=ids, labels=ids).logits, rtol=0, atol=0
    )
    assert (read.lm_head.weight is read.shared.weight) == tied


def test_a_student_of_equal_experts_with_gate_1_equals_its_teacher(shape):
    """Each expert is twice the student's FFN, and the gate is 1/2."""
    teacher = teacher_of(shape, experts=2).eval()
    student = init_student(teacher).eval()
    for stack, dense in ((teacher.encoder, student.encoder), (teacher.decoder, student.decoder)):
        layer, plain = stack.block[1].layer[-1].mlp, dense.block[1].layer[-1].DenseReluDense
        layer.capacity_factor_eval = 2.0
        layer.wi.data[:] = plain.wi.weight
        layer.wo.data[:] = plain.wo.weight * 2  # the gate of a zero router is 1/2
        layer.router.weight.data.zero_()
    ids = torch.randint(2, 64, (2, 12))
    torch.testing.assert_close(
        student(input_ids=ids, labels=ids).logits, teacher(input_ids=ids, labels=ids).logits, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "name", ["encoder.block.0.layer.0.SelfAttention.z.weight", "decoder.block.1.layer.2.mlp.experts.expert_0.w9.weight"]
)
def test_an_unknown_tensor_is_an_error(name):
    with pytest.raises(UserError, match="no Switch Transformer has"):
        student_name(name)


def test_an_unknown_ffn_init_is_an_error(shape):
    with pytest.raises(ValueError, match="ffn_init is 'worst'; use one of 'random', 'mean'"):
        init_student(teacher_of(shape), ffn_init="worst")


@pytest.mark.parametrize("tied", [True, False])
def test_the_student_of_a_public_switch_base_is_t5_base(tied):
    config = SwitchTransformersConfig(
        **SWITCH_BASE, num_sparse_encoder_layers=6, num_sparse_decoder_layers=6, tie_word_embeddings=tied
    )
    config.decoder_start_token_id = 0
    with torch.device("meta"):
        student = new_t5(student_config(config), seed=0)
    assert count_parameters(student) == T5_BASE_PARAMETERS + (0 if tied else 32128 * 768)
    assert (student.config.num_layers, student.config.num_decoder_layers) == (12, 12)


@pytest.mark.slow
def test_full_size_switch_base_8(tmp_path):
    teacher = build_teacher(ModelConfig(**SWITCH_BASE), TeacherConfig(experts=[8]), 32128, 8, pad=0, eos=1, seed=0)
    assert count_parameters(teacher) == pytest.approx(619.6e6, rel=1e-3)
    save_teacher(teacher, tmp_path / "teacher")
    del teacher
    student, counts = init_student_with_counts(tmp_path / "teacher", ffn_init="random", seed=0)
    assert count_parameters(student) == T5_BASE_PARAMETERS
    assert counts["parameters"]["fresh"] == 12 * 2 * 768 * 3072
    assert counts["tensors"]["skipped_expert"] == 12 * 8 * 2
    student.save_pretrained(tmp_path / "student")
    read = T5ForConditionalGeneration.from_pretrained(tmp_path / "student").eval()
    ids = torch.randint(2, 32000, (1, 32))
    with torch.no_grad():
        assert torch.equal(
            read(input_ids=ids, labels=ids[:, :8]).logits, student.eval()(input_ids=ids, labels=ids[:, :8]).logits
        )
