"""The files and directories that ``wrong_inputs.txt`` names with a ``$``.

``NAMED`` has a function for each name. The function creates the file at a path. Its argument ``files`` is a function
that gives the path of another named file.
"""

import gzip
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    PreTrainedTokenizerFast,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from distill.data.tokenizer import train_tokenizer
from distill.models.build import new_t5
from pipelines.tracking.store import Store

SIZES = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_heads": 2, "num_layers": 2}
NAMED: dict[str, Callable] = {}


def named(make: Callable) -> Callable:
    NAMED[make.__name__] = make
    return make


@named
def texts(files, path):
    path.mkdir()
    words = Path(__file__).parents[2].joinpath("LICENSE").read_text().split()
    for number in range(40):
        (path / f"{number:02d}.txt").write_text(f"document {number}\n" + " ".join(words[number * 20 :][:200]))


@named
def base(files, path):
    """A config that runs in seconds."""
    training = {"steps": 2, "batch_size": 4, "warmup_steps": 1}
    data = {"corpus": f"text:{files('texts')}/*.txt", "vocabulary": 400, "input_length": 32, "test_fraction": 0.2}
    config = {"name": "tiny", "data": {**data, "test_examples": 4}, "model": SIZES, "report": {"resamples": 100}}
    config |= {"teacher": {"experts": [2], "training": training}, "distill": {"training": training}}
    path.write_text(yaml.safe_dump(config))


def _pairs(change: Callable[[list[dict]], object] = lambda rows: None) -> Callable:
    def make(files, path):
        rows = [{"of": "ab"[n % 2], "source": f"text {n // 2}", "target": f"answer {n}"} for n in range(80)]
        change(rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return make


NAMED |= {
    "pairs": _pairs(),
    "pairs_without_a_target": _pairs(lambda rows: rows[2].pop("target")),
    "pairs_with_null": _pairs(lambda rows: rows[4].update(source=None)),
    "pairs_with_a_list": _pairs(lambda rows: rows[5].update(of=["a"])),
    "pairs_with_an_empty_target": _pairs(lambda rows: rows[6].update(target=" ")),
    "pairs_of_one_group": _pairs(lambda rows: [row.update(of="a") for row in rows]),
    "pairs_without_sources": _pairs(lambda rows: [row.pop("source") for row in rows]),
    "one_pair": _pairs(lambda rows: rows.__delitem__(slice(1, None))),
    "held_out_inputs": _pairs(lambda rows: rows.__delitem__(slice(None))),
}


def _task(**changes: object) -> Callable:
    def make(files, path):
        config = yaml.safe_load(files("base").read_text())
        data = {"vocabulary": 400, "test_fraction": 0.2, "test_examples": 4}
        task = {
            "examples": f"jsonl:{files('pairs')}",
            "input": "to {of}: {source}",
            "group": "of",
            "split_by": "source",
        }
        config |= {"data": data, "task": task, **changes}
        path.write_text(yaml.safe_dump(config))

    return make


NAMED |= {
    "task": _task(),
    "task_of_itself": lambda files, path: _task(pretrained=str(path))(files, path),
    "task_of_task": lambda files, path: _task(pretrained=str(files("task_of_itself")))(files, path),
}


@named
def loaded(files, path):
    """The config ``base`` with a loaded teacher."""
    config = yaml.safe_load(files("base").read_text())
    config["data"]["tokenizer"] = str(files("tokenizer"))
    config["teacher"] = {"checkpoints": {"e2": str(files("teacher"))}}
    path.write_text(yaml.safe_dump(config))


@named
def store(files, path):
    """A work directory with an MLflow store that knows no model."""
    Store(path, "tiny").client.create_registered_model("known")


@named
def tokenizer(files, path):
    train_tokenizer([text.read_text() for text in files("texts").iterdir()], 400).save_pretrained(path)


@named
def teacher(files, path, **changes):
    sizes = {**SIZES, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    values = {"vocab_size": 512, "num_experts": 2, "decoder_start_token_id": 0, **sizes, **changes}
    config = SwitchTransformersConfig(**values)
    torch.manual_seed(0)
    SwitchTransformersForConditionalGeneration(config).save_pretrained(path)


@named
def dense(files, path):
    T5ForConditionalGeneration(T5Config(vocab_size=512, decoder_start_token_id=0, **SIZES)).save_pretrained(path)


def edited(of: str, *, config: dict | None = None, tensors: Callable | None = None, files_too: Callable | None = None):
    """A copy of a named directory with changed values in config.json, changed tensors, or changed files."""

    def make(files, path):
        shutil.copytree(files(of), path)
        if config:
            values = json.loads((path / "config.json").read_text())
            (path / "config.json").write_text(json.dumps({**values, **config}))
        if tensors:
            state = load_file(path / "model.safetensors")
            tensors(state)
            save_file(state, path / "model.safetensors", metadata={"format": "pt"})
        if files_too:
            files_too(path)

    return make


def _set(name: str, value: float, kind: torch.dtype = torch.float32) -> Callable:
    def change(state: dict) -> None:
        state[name] = state[name].to(kind)
        state[name].view(-1)[0] = value

    return change


def _replace_experts(state: dict) -> None:
    """Put a dense FFN in the place of every Switch layer."""
    places = {name.partition(".router.")[0] for name in state if ".router." in name}
    for name in [name for name in state if name.startswith(tuple(places))]:
        state.pop(name)
    state.update({f"{place}.{name}.weight": torch.zeros(8, 8) for place in places for name in ("wi", "wo")})


class _Code:
    """A pickle of it calls a function when it is loaded."""

    def __reduce__(self):
        return os.system, ("false",)


def _as_pickle(path: Path) -> None:
    """Put the tensors, and code, into a .bin file in place of the safetensors."""
    torch.save({**load_file(path / "model.safetensors"), "code": _Code()}, path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def _repack(path: Path) -> None:
    """Put the tensors into a .bin file whose records another program has compressed."""
    torch.save(load_file(path / "model.safetensors"), path / "plain.bin")
    with zipfile.ZipFile(path / "plain.bin") as old, zipfile.ZipFile(path / "pytorch_model.bin", "w", 8) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    for name in ("plain.bin", "model.safetensors"):
        (path / name).unlink()


def _in_old_format(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    torch.save(tensors, path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (path / "model.safetensors").unlink()


def _write(name: str, content: str | bytes) -> Callable:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: (path / name).write_bytes(data)


def _sharded(*parts: object) -> Callable:
    def change(path: Path) -> None:
        (path / "model.safetensors").unlink()
        index = {"weight_map": {f"tensor{number}": part for number, part in enumerate(parts)}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


EXPERT = "encoder.block.1.layer.1.mlp.experts.expert_1.wi.weight"
NAMED |= {
    f"teacher_{name}": edited("teacher", **changes)
    for name, changes in {
        "without_expert": {"tensors": lambda state: state.pop(EXPERT)},
        "without_router": {"tensors": lambda s: s.pop("decoder.block.1.layer.2.mlp.router.classifier.weight")},
        "without_shared": {"tensors": lambda state: state.pop("shared.weight")},
        "with_more": {"tensors": lambda state: state.update(surprise=torch.zeros(1))},
        "with_third_expert": {"tensors": lambda s: s.update({EXPERT.replace("t_1", "t_2"): torch.zeros(8, 8)})},
        "other_shape": {"tensors": lambda state: state.update({EXPERT: torch.zeros(8, 9)})},
        "flat": {"tensors": lambda state: state.update({EXPERT: torch.zeros(64)})},
        "integers": {"tensors": lambda s: s.update({EXPERT: torch.zeros(8, 8, dtype=torch.int64)})},
        "nan": {"tensors": _set(EXPERT, float("nan"))},
        "inf": {"tensors": _set("shared.weight", float("inf"))},
        "minus_inf": {"tensors": _set("encoder.final_layer_norm.weight", -float("inf"))},
        "nan_half": {"tensors": _set(EXPERT, float("nan"), torch.float16)},
        "nan_bfloat16": {"tensors": _set(EXPERT, float("nan"), torch.bfloat16)},
        "pickle": {"files_too": _as_pickle},
        "repacked": {"files_too": _repack},
        "in_old_format": {"files_too": _in_old_format},
        "float8": {"tensors": lambda s: s.update({EXPERT: torch.zeros(8, 8).to(torch.float8_e4m3fn)})},
        "head_of_its_own": {"tensors": lambda state: state.update({"lm_head.weight": torch.ones(512, 8)})},
        "text_capacity": {"config": {"expert_capacity": "64"}},
        "nothing": {"files_too": lambda path: (path / "model.safetensors").unlink()},
        "without_config": {"files_too": lambda path: (path / "config.json").unlink()},
        "cut": {"files_too": lambda p: os.truncate(p / "model.safetensors", 3000)},
        "empty": {"files_too": lambda path: os.truncate(path / "model.safetensors", 0)},
        "noise": {"files_too": _write("model.safetensors", bytes(range(256)) * 40)},
        "huge_header": {"files_too": _write("model.safetensors", b"\xff" * 64)},
        "bad_json": {"files_too": _write("config.json", "{")},
        "deep_json": {"files_too": _write("config.json", "[" * 100_000)},
        "list_json": {"files_too": _write("config.json", "[]")},
        "latin_json": {"files_too": _write("config.json", b'{"a": "\xe9"}')},
        "shard_outside": {"files_too": _sharded("../teacher/model.safetensors")},
        "shard_missing": {"files_too": _sharded("model-00001-of-00002.safetensors")},
        "shard_number": {"files_too": _sharded(3)},
        "no_shards": {"files_too": _sharded()},
        "bad_index": {"files_too": lambda p: (_sharded()(p), _write("model.safetensors.index.json", "[")(p))},
        "gpt2": {"config": {"model_type": "gpt2"}},
        "llama": {"config": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}},
        "no_type": {"config": {"model_type": None}},
        "odd_type": {"config": {"model_type": ["switch_transformers"]}},
        "decoder_only": {"config": {"is_encoder_decoder": False}},
        "router_bias": {"config": {"router_bias": True}},
        "activation": {"config": {"dense_act_fn": "softmax"}},
        "odd_activation": {"config": {"dense_act_fn": ["relu"]}},
        "more_experts": {"config": {"num_experts": 4}},
        "fewer_experts": {"config": {"num_experts": 1}},
        "untied": {"config": {"tie_word_embeddings": False}},
        "text_size": {"config": {"d_model": "8"}},
        "true_size": {"config": {"d_kv": True}},
        "no_switch_layer": {
            "config": {"encoder_sparse_step": 0, "decoder_sparse_step": 0},
            "tensors": _replace_experts,
        },
        "text_rate": {"config": {"dropout_rate": "0.1"}},
        "without_eos": {"config": {"eos_token_id": None}},
        "odd_start": {"config": {"decoder_start_token_id": 512}},
        "other_pad": {"config": {"pad_token_id": 2}},
    }.items()
}
NAMED |= {
    f"dense_{name}": edited("dense", **changes)
    for name, changes in {
        "nan": {"tensors": _set("shared.weight", float("nan"))},
        "pickle": {"files_too": _as_pickle},
        "missing": {"tensors": lambda state: state.pop("decoder.final_layer_norm.weight")},
        "wider": {"config": {"d_ff": 16}},
        "gated": {"config": {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True}},
        "cut": {"files_too": lambda path: os.truncate(path / "model.safetensors", 2000)},
        "zero": {"config": {"d_model": 0}},
        "without_start": {"config": {"decoder_start_token_id": None}},
        "other_eos": {"config": {"eos_token_id": 2}},
        "of_two_activations": {"config": {"dense_act_fn": "silu"}},
        "unscaled": {"config": {"scale_decoder_outputs": False}},
    }.items()
}


def _t5(**changes: object) -> Callable:
    def make(files, path):
        config = T5Config(**{"vocab_size": 512, "decoder_start_token_id": 0, **SIZES, **changes})
        new_t5(config, seed=0).save_pretrained(path)

    return make


NAMED |= {
    "t5_wider": _t5(d_ff=16),
    "t5_deeper": _t5(num_decoder_layers=3),
    "t5_gated": _t5(feed_forward_proj="gated-gelu"),
    "t5_of_silu": _t5(feed_forward_proj="silu"),
    "t5_untied": _t5(tie_word_embeddings=False),
    "t5_larger_vocabulary": _t5(vocab_size=640),
    "t5_other_positions": _t5(relative_attention_max_distance=64),
    "teacher_of_four": lambda files, path: teacher(files, path, num_experts=4),
    "wider_teacher_of_four": lambda files, path: teacher(files, path, num_experts=4, d_ff=16),
}


@named
def swapped_tokenizer(files, path):
    """A tokenizer with the same tokens, two of which are swapped."""
    shutil.copytree(files("tokenizer"), path)
    values = json.loads((path / "tokenizer.json").read_text())
    ids = values["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (path / "tokenizer.json").write_text(json.dumps(values))


def _with(model: str, tokenizer_of: str, **more: str) -> Callable:
    """A model with a tokenizer, and with additional files of the given content."""

    def make(files, path):
        shutil.copytree(files(model), path)
        shutil.copytree(files(tokenizer_of), path, dirs_exist_ok=True)
        for name, content in more.items():
            (path / f"{name}.json").write_text(content)

    return make


NAMED |= {
    "teacher_with_tokenizer": _with("teacher", "tokenizer"),
    "teacher_with_swapped_tokenizer": _with("teacher", "swapped_tokenizer"),
    "teacher_with_broken_tokenizer": _with("teacher", "tokenizer", tokenizer="{"),
    "teacher_of_four_with_swapped_tokenizer": _with("teacher_of_four", "swapped_tokenizer"),
    "dense_with_swapped_tokenizer": _with("dense", "swapped_tokenizer"),
    "dense_with_tokenizer": _with("dense", "tokenizer"),
    "export_with_tokenizer": _with("dense", "tokenizer", manifest='{"format": "hf"}'),
    "stage_with_tokenizer": lambda files, path: shutil.copytree(files("dense_with_tokenizer"), path / "model"),
}


@named
def student(files, path):
    """A dense model with its tokenizer."""
    shutil.copytree(files("dense"), path)
    for file in files("tokenizer").iterdir():
        shutil.copy(file, path)


NAMED |= {
    "student_nan": edited("student", tensors=_set("shared.weight", float("nan"))),
    "student_wider": edited("student", config={"d_ff": 16}),
    "student_cut": edited("student", files_too=lambda path: os.truncate(path / "model.safetensors", 2000)),
    "student_pickle": edited("student", files_too=_as_pickle),
    "student_bad_json": edited("student", files_too=_write("config.json", "{")),
    "student_bad_tokenizer": edited("student", files_too=_write("tokenizer.json", "{")),
    "student_bad_tokenizer_config": edited("student", files_too=_write("tokenizer_config.json", "{")),
    "student_list_tokenizer_config": edited("student", files_too=_write("tokenizer_config.json", "[]")),
}

NAMED |= {
    f"export_{name}": edited(f"student_{name}", files_too=_write("manifest.json", '{"format": "hf"}'))
    for name in ("nan", "wider", "cut", "pickle", "bad_json", "bad_tokenizer")
}


@named
def small_teacher(files, path):
    """A teacher with a smaller vocabulary than the tokenizer."""
    edited("teacher", config={"vocab_size": 128}, tensors=lambda s: s.update({"shared.weight": torch.zeros(128, 8)}))(
        files, path
    )


@named
def small_dense(files, path):
    edited("dense", config={"vocab_size": 128}, tensors=lambda s: s.update({"shared.weight": torch.zeros(128, 8)}))(
        files, path
    )


def _word_level(vocabulary: list[str], **special: str) -> Callable:
    def make(files, path):
        backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="x"))
        PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(path)

    return make


SPECIAL = {"pad_token": "p", "eos_token": "e"}
NAMED |= {
    "tokenizer_without_pad": _word_level(["x", "e"], eos_token="e"),
    "tokenizer_without_eos": _word_level(["x", "p"], pad_token="p"),
    "tokenizer_without_sentinels": _word_level(["x", "p", "e"], **SPECIAL),
    "tokenizer_ascending": _word_level(["x", "p", "e", "<extra_id_0>", "<extra_id_1>"], **SPECIAL),
    "tokenizer_one_sentinel": _word_level(["x", "p", "e", "<extra_id_0>"], **SPECIAL),
    "tokenizer_second_alone": _word_level(["x", "p", "e", "<extra_id_1>"], **SPECIAL),
    "tokenizer_broken": edited("tokenizer", files_too=_write("tokenizer.json", "{")),
    "tokenizer_list": edited("tokenizer", files_too=_write("tokenizer.json", "[]")),
    "tokenizer_empty": edited("tokenizer", files_too=_write("tokenizer.json", "")),
    "tokenizer_noise": edited("tokenizer", files_too=_write("tokenizer.json", bytes(range(256)))),
    "tokenizer_gone": edited("tokenizer", files_too=lambda path: (path / "tokenizer.json").unlink()),
    "tokenizer_bad_config": edited("tokenizer", files_too=_write("tokenizer_config.json", "[")),
    "nothing": lambda files, path: None,
    "empty": lambda files, path: path.mkdir(),
    "pickled": lambda files, path: path.write_bytes(pickle.dumps({"teacher": 1})),
    "utf16": lambda files, path: path.write_bytes("teacher: {experts: [2]}".encode("utf-16")),
    "gzipped": lambda files, path: path.write_bytes(gzip.compress(b"teacher: {experts: [2]}")),
    "giant_line": lambda files, path: path.write_text("word " * 200_000),
    "zip_as_parquet": lambda files, path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "array": lambda files, path: np.save(path.open("wb"), np.zeros(3)),
    "loop": lambda files, path: path.symlink_to(path),
    "link_to_latin_1": lambda files, path: path.symlink_to(os.fsdecode(b"caf\xe9")),
}


def _workdir(name: str, content: str) -> Callable:
    def make(files, path):
        (path / name).parent.mkdir(parents=True)
        (path / name).write_text(content)

    return make


NAMED |= {
    "work_of_another_store": _workdir("tracking.json", '{"store": "https://elsewhere"}'),
    "work_with_bad_record": _workdir("tracking.json", "{"),
    "work_with_list": _workdir("tracking.json", "[]"),
    "no_export": _workdir("manifest.json", '{"format": "gguf"}'),
    "export_of_code": _workdir("manifest.json", '{"format": "mlflow"}'),
    "export_of_path": _workdir("manifest.json", '{"format": "../../os"}'),
    "export_broken": _workdir("manifest.json", "{"),
    "export_list": _workdir("manifest.json", "[]"),
    "lineage_alone": _workdir("lineage.json", "{}"),
    "stage_broken": _workdir("stage.json", "{"),
    "stage_list": _workdir("stage.json", "[]"),
}
