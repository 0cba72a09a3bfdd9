"""Checkpoints in every format in which Switch Transformers are published, compared with plain transformers."""

import json
import os
import re
import warnings

import pytest
import torch
from transformers import SwitchTransformersForConditionalGeneration

from distill.errors import UserError
from students import init_student
from teachers import load_teacher
from teachers.build import switch_layers
from tests.hub import process
from tests.public_checkpoints import (
    EMBEDDINGS,
    EXPERT,
    all_in,
    mixed,
    plain_model,
    plain_state,
    write_checkpoint,
    write_weights,
)
from tests.teachers.plain_teacher import NO_DROPPING

FORMATS = [("safetensors", 1), ("safetensors", 3), ("bin", 1), ("bin", 3)]
DTYPES = {
    "float32": all_in(torch.float32),
    "bfloat16": all_in(torch.bfloat16),
    "float16": all_in(torch.float16),
    "mixed": mixed,
}


def assert_same_outputs(ours, theirs, batch):
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("embeddings", [True, False], ids=["copies", "no copies"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind,shards", FORMATS)
def test_outputs_are_those_of_transformers(tmp_path, batch, kind, shards, dtype, embeddings):
    theirs = plain_model(DTYPES[dtype])
    write_checkpoint(tmp_path, plain_state(theirs, DTYPES[dtype], embeddings=embeddings), kind, shards)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = load_teacher(tmp_path, NO_DROPPING, compute_dtype=torch.float32)
    assert_same_outputs(ours, theirs, batch)
    student, copied = init_student(tmp_path).state_dict(), theirs.state_dict()
    assert all(torch.equal(student[name], value) for name, value in copied.items() if name in student)


@pytest.mark.parametrize("kind,shards", FORMATS)
def test_transformers_reads_the_same_files(tmp_path, batch, kind, shards):
    """The files of these tests are those of public checkpoints."""
    write_checkpoint(tmp_path, plain_state(plain_model(mixed), mixed), kind, shards)
    theirs = SwitchTransformersForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_same_outputs(load_teacher(tmp_path, NO_DROPPING, compute_dtype=torch.float32), theirs, batch)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_keep_their_dtype_except_float16(tmp_path, dtype):
    write_checkpoint(tmp_path, plain_state(plain_model(), DTYPES[dtype]))
    found = {name: parameter.dtype for name, parameter in load_teacher(tmp_path).named_parameters()}
    for name, stored in found.items():
        expected = DTYPES[dtype](name)
        assert stored == (torch.float32 if expected == torch.float16 else expected), name


def test_computing_in_float16_is_refused(tmp_path):
    write_checkpoint(tmp_path, plain_state(plain_model()))
    with pytest.raises(ValueError, match=r"compute_dtype is torch.float16; it must be float32, bfloat16 or None"):
        load_teacher(tmp_path, compute_dtype=torch.float16)
    layer = switch_layers(load_teacher(tmp_path))[0][1].mlp
    with pytest.raises(ValueError, match="cannot be computed in float16, which overflows; use bfloat16 or float32"):
        layer.half()(torch.ones(1, 4, 16, dtype=torch.float16))


@pytest.mark.parametrize(
    "changes",
    [{"decoder_start_token_id": None}, {"expert_capacity": 1}, {"expert_capacity": None}, {"dropout_rate": 0}],
)
def test_entries_of_a_config_that_do_not_describe_tensors_do_not_matter(tmp_path, batch, changes):
    write_checkpoint(tmp_path, plain_state(plain_model()), **changes)
    assert_same_outputs(load_teacher(tmp_path, NO_DROPPING), plain_model(), batch)


@pytest.mark.parametrize("embeddings", [EMBEDDINGS, EMBEDDINGS[2:]], ids=["all", "only the head"])
def test_an_untied_checkpoint_has_a_head_of_its_own(tmp_path, batch, embeddings):
    theirs = plain_model(tie_word_embeddings=False)
    for name in EMBEDDINGS[:2]:
        theirs.get_submodule(name.removesuffix(".weight")).weight = theirs.shared.weight
    state = plain_state(theirs) | {name: theirs.state_dict()[name] for name in embeddings}
    write_checkpoint(tmp_path, state, tie_word_embeddings=False)
    assert_same_outputs(load_teacher(tmp_path, NO_DROPPING), theirs, batch)


def test_a_config_like_that_of_switch_c_2048_is_corrected_by_the_tensors(tmp_path, batch):
    """Its config.json has 12 decoder layers of which 15 are sparse. Its tensors have 15 and 15, all of them sparse."""
    sizes = {"d_model": 10, "d_kv": 4, "d_ff": 12, "num_experts": 3, "num_layers": 15}
    sizes |= {"num_sparse_encoder_layers": 15, "num_sparse_decoder_layers": 15}
    steps = {"encoder_sparse_step": 1, "decoder_sparse_step": 1}
    theirs = plain_model(**sizes, num_decoder_layers=15, **steps)
    state = plain_state(theirs, all_in(torch.bfloat16))
    write_checkpoint(tmp_path, state, "bin", 3, **sizes, num_decoder_layers=12, **dict.fromkeys(steps))
    with pytest.warns(UserWarning) as warned:
        ours = load_teacher(tmp_path, NO_DROPPING, compute_dtype=torch.float32)
    assert [str(one.message) for one in warned] == [
        f"teacher {str(tmp_path)!r}: its config.json has num_decoder_layers 12, but its tensors have 15; "
        "the tensors are used"
    ]
    assert [name for name, _ in switch_layers(ours)] == [
        f"{stack}.block.{block}.layer.{last}" for stack, last in (("encoder", 1), ("decoder", 2)) for block in range(15)
    ]
    for parameter in theirs.parameters():
        parameter.data = parameter.data.bfloat16().float()
    assert_same_outputs(ours, theirs, batch)
    assert init_student(tmp_path).config.num_decoder_layers == 15


@pytest.mark.parametrize(
    "changes,contradictions",
    [
        ({"d_model": 8, "d_ff": 10**18, "d_kv": 1, "num_heads": 0, "vocab_size": 1024}, 5),
        ({"num_layers": 10**9, "num_decoder_layers": 1, "num_experts": -2}, 3),
        ({"num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 0}, 2),
        ({"encoder_sparse_step": 1, "decoder_sparse_step": 0, "is_gated_act": True}, 0),
    ],
)
def test_tensors_correct_any_config(tmp_path, batch, changes, contradictions):
    write_checkpoint(tmp_path, plain_state(plain_model()), **changes)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        ours = load_teacher(tmp_path, NO_DROPPING)
    assert len(warned) == contradictions, [str(one.message) for one in warned]
    assert_same_outputs(ours, plain_model(), batch)


def test_safetensors_are_read_if_there_are_both(tmp_path, batch):
    theirs = plain_model()
    write_checkpoint(tmp_path, plain_state(theirs), shards=2)
    write_weights(tmp_path, {name: value * 2 for name, value in plain_state(theirs).items()}, "bin")
    assert_same_outputs(load_teacher(tmp_path, NO_DROPPING), theirs, batch)


def test_the_cache_of_the_hub_is_a_directory_too(tmp_path, batch):
    """There, files are links to blobs without a file name."""
    theirs = plain_model()
    write_checkpoint(tmp_path / "blobs", plain_state(theirs), "bin", 2)
    snapshot = tmp_path / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "blobs").iterdir())):
        path.rename(path.with_name(f"{number:064}"))
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064}")
    assert_same_outputs(load_teacher(snapshot, NO_DROPPING), theirs, batch)


_LOAD = """
import sys, torch
from teachers import load_teacher
from tests.teachers.plain_teacher import NO_DROPPING
model = load_teacher(sys.argv[1], NO_DROPPING)
torch.save(model.state_dict(), sys.argv[2])
"""


@pytest.mark.parametrize("kind,shards", FORMATS)
def test_a_checkpoint_is_loaded_from_the_hub_by_its_name(hub, tmp_path, kind, shards):
    write_checkpoint(tmp_path / "model", plain_state(plain_model()), kind, shards)
    files = {path.name for path in (tmp_path / "model").iterdir()}
    for other in ("flax_model.msgpack", "tf_model.h5", "README.md"):
        (tmp_path / "model" / other).write_bytes(b"0" * 1000)
    hub.model("some/switch").commit(tmp_path / "model")
    process(_LOAD, "some/switch", str(tmp_path / "out"), **hub.environment)
    loaded = load_teacher(tmp_path / "model").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in torch.load(tmp_path / "out").items())
    assert set(hub.sent) == files


def _of_another_tensor(index: dict) -> None:
    first, second = sorted(set(index["weight_map"].values()))
    index["weight_map"][EXPERT] = {first: second, second: first}[index["weight_map"][EXPERT]]


def _edit_index(directory, change) -> None:
    [path] = directory.glob("*.index.json")
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


BAD = {
    "truncated": (
        lambda files: os.truncate(files[1], files[1].stat().st_size - 100),
        r"-00002-of-00002.\w+ is damaged",
    ),
    "empty": (lambda files: os.truncate(files[1], 0), r"-00002-of-00002.\w+ is damaged"),
    "missing": (
        lambda files: files[0].unlink(),
        r"index.json names '\w+-00001-of-00002.\w+', which is not a file beside it",
    ),
    "another file": (
        lambda files: _edit_index(files[0].parent, _of_another_tensor),
        rf"names \S+-0000[12]-of-00002.\w+ for {re.escape(EXPERT)}, but \S+-0000[12]-of-00002.\w+ holds it; copy or",
    ),
    "no file": (
        lambda files: _edit_index(files[0].parent, lambda index: index["weight_map"].update(more=files[0].name)),
        r"for more, but no file holds it; copy or save",
    ),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_files_that_do_not_fit_together_are_one_sentence(tmp_path, kind, bad):
    write_checkpoint(tmp_path / "model", plain_state(plain_model()), kind, 2)
    change, message = BAD[bad]
    change(sorted((tmp_path / "model").glob(f"*.{kind}")))
    for load in (load_teacher, init_student):
        with pytest.raises(UserError, match=message) as refused:
            load(tmp_path / "model")
        assert "\n" not in str(refused.value) and str(refused.value).startswith("teacher '")


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "int64", "complex64"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_dtype_that_is_not_a_weights_is_named(tmp_path, kind, dtype):
    state = plain_state(plain_model())
    write_checkpoint(tmp_path, state | {EXPERT: torch.zeros(32, 16).to(getattr(torch, dtype))}, kind)
    with pytest.raises(UserError, match=rf"has {re.escape(EXPERT)} in \w+; save it in float32 or bfloat16"):
        load_teacher(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind,shards", FORMATS)
def test_one_value_of_one_expert_that_is_not_finite_is_found(tmp_path, kind, shards, dtype, value):
    state = plain_state(plain_model(), DTYPES[dtype])
    state[EXPERT][7, 3] = value
    write_checkpoint(tmp_path, state, kind, shards)
    with pytest.raises(UserError, match=rf"weights in {re.escape(EXPERT)} that are NaN or infinite; its training has"):
        load_teacher(tmp_path)
