"""A model's directory before it is loaded: its config, and what its safetensors hold. Needs no torch."""

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from distill.errors import UserError
from distill.io.files import read_json
from distill.io.hub_files import CONFIG, PICKLED_WEIGHTS, WEIGHTS, cached_files, local_files

Shapes = dict[str, tuple[int, ...]]

_ALSO_CALLED = {"d_model": "hidden_size", "num_heads": "num_attention_heads", "num_layers": "num_hidden_layers"}
_LARGEST = {"num_layers": 1024, "num_decoder_layers": 1024, "num_experts": 4096}
# Names in safetensors -> types of numpy, which has no bfloat16: its bits are those of the upper half of a float32.
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_BYTES_AT_ONCE = 2**26


class Fetched(NamedTuple):
    """A directory with a model's config and weights."""

    directory: Path
    is_pickled: bool  # as older models of the hub are, and no directory of the user's may be


class Weights(NamedTuple):
    """Tensors of a directory by name: their shapes, and the files that hold them."""

    shapes: Shapes
    files: list[Path]


def read_model_config(source: str, what: str) -> dict[str, Any]:
    """The config.json of a directory, or of a model on the hub.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).
        what: names the model in messages.

    Raises:
        UserError: there is none, or it is not one.
    """
    path = local_files(source, "model", what, CONFIG) / "config.json"
    if not path.is_file():
        raise UserError(f"{what} cannot be loaded: it has no config.json; name a directory of save_pretrained")
    config = read_json(path, "copy or save the model again")
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no keys and values; copy or save the model again")
    return config


def dimension(config: dict[Any, Any], name: str, default: int, what: str) -> int:
    """A size in a model's config, at least 1.

    Raises:
        UserError: it is no such number.
    """
    value, most = config.get(name, config.get(_ALSO_CALLED.get(name))), _LARGEST.get(name, 2**24)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= most:
        raise UserError(f"{what} has {name} {value!r:.40} in its config.json; it must be a number from 1 to {most}")
    return value


def seq2seq_shapes(
    config: dict[str, Any], defaults: dict[str, int], ffn: Callable[[str, int], Shapes], what: str
) -> Shapes:
    """The tensors that T5 and Switch models have, without the embeddings that may be tied to ``shared``.

    Args:
        defaults: of the model's kind, for what its config leaves out.
        ffn: of a stack (``encoder`` or ``decoder``) and a block, the tensors of its FFN.
    """

    def size(name: str) -> int:
        return dimension(config, name, defaults[name], what)

    width, inner = size("d_model"), size("num_heads") * size("d_kv")
    attention = {"q": (inner, width), "k": (inner, width), "v": (inner, width), "o": (width, inner)}
    shapes: Shapes = {"shared.weight": (size("vocab_size"), width)}
    layers = size("num_layers")
    for stack, blocks in {"encoder": layers, "decoder": dimension(config, "num_decoder_layers", layers, what)}.items():
        kinds = ["SelfAttention"] if stack == "encoder" else ["SelfAttention", "EncDecAttention"]
        shapes[f"{stack}.final_layer_norm.weight"] = (width,)
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shapes[bias] = (size("relative_attention_num_buckets"), size("num_heads"))
        for block in range(blocks):
            place = f"{stack}.block.{block}.layer"
            for number, kind in enumerate(kinds):
                shapes |= {f"{place}.{number}.{kind}.{name}.weight": shape for name, shape in attention.items()}
            shapes |= {f"{place}.{number}.layer_norm.weight": (width,) for number in range(len(kinds) + 1)}
            shapes |= {f"{place}.{len(kinds)}.{name}.weight": shape for name, shape in ffn(stack, block).items()}
    return shapes


def ffn_shapes(config: dict[str, Any], defaults: dict[str, int], what: str, *, gated: bool) -> Shapes:
    """The matrices of one FFN, or of one expert."""
    width, inner = (dimension(config, name, defaults[name], what) for name in ("d_model", "d_ff"))
    return {"wo": (width, inner), **dict.fromkeys(("wi_0", "wi_1") if gated else ("wi",), (inner, width))}


def check_weights(
    source: str, expected: Shapes, what: str, *, allowed: tuple[str, ...] | None, finite: bool = True
) -> Shapes | None:
    """Whether the tensors of a model are those of its config, and finite. It is not downloaded for it.

    Args:
        expected: what its config says.
        allowed: tensors besides the expected ones; None for any.
        finite: whether to read the values; else the headers alone are read.

    Returns:
        All tensors; None for a model of the hub whose safetensors are not in the cache, or that has none.

    Raises:
        UserError: a file is missing, damaged or a pickle; a tensor is missing, too many, of another shape, or holds
            what is no finite floating point number.
    """
    directory = cached_files(source, "model", what, WEIGHTS)
    if directory is None or (not Path(source).is_dir() and not _has_safetensors(directory)):
        return None
    weights = _read_weights(directory, what)
    _check_shapes(weights.shapes, expected, what, allowed)
    if finite:
        _check_finite(weights.files, what)
    return weights.shapes


def fetch_weights(source: str, what: str) -> Fetched:
    """Config and weights of a model: of one on the hub, in the cache, downloaded where they have to be.

    Raises:
        UserError: the hub does not give its weights, or it has none.
    """
    directory = local_files(source, "model", what, (*WEIGHTS, *CONFIG))
    if Path(source).is_dir() or _has_safetensors(directory):
        return Fetched(directory, is_pickled=False)
    directory = local_files(source, "model", what, (*PICKLED_WEIGHTS, *WEIGHTS, *CONFIG))
    if not any(directory.glob("pytorch_model*.bin")):
        raise UserError(f"{what} has neither model.safetensors nor pytorch_model.bin on the hub; name another model")
    return Fetched(directory, is_pickled=True)


def _read_weights(directory: Path, what: str) -> Weights:
    """What the headers of the directory's safetensors say."""
    shapes: Shapes = {}
    files = _weight_files(directory, what)
    for path in files:
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118  it is no dict
                    tensor = file.get_slice(name)
                    shapes[name] = tuple(tensor.get_shape())
                    if (kind := tensor.get_dtype()) not in _FLOATS:
                        raise UserError(f"{what} has {name} in {kind}; save it in float32 or bfloat16")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{what} cannot be loaded: {path.name} is damaged ({error}); copy it again") from error
    return Weights(shapes, files)


def _check_shapes(found: Shapes, expected: Shapes, what: str, allowed: tuple[str, ...] | None) -> None:
    cure = "check that config.json belongs to these weights"
    if missing := sorted(expected.keys() - found.keys()):
        raise UserError(f"{what} has {len(missing)} missing tensors for its config, such as {missing[0]}; {cure}")
    if allowed is not None and (more := sorted(found.keys() - expected.keys() - set(allowed))):
        raise UserError(f"{what} has {len(more)} unexpected tensors for its config, such as {more[0]:.100}; {cure}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise UserError(f"{what} has {name} of shape {found[name]}, its config says {shape}; {cure}")


def _check_finite(files: list[Path], what: str) -> None:
    for path in files:
        stat = path.stat()
        if (name := _not_finite(path.absolute(), stat.st_size, stat.st_mtime_ns, stat.st_ino)) is not None:
            raise UserError(
                f"{what} has weights in {name} that are NaN or infinite; its training has diverged, "
                "so take an earlier checkpoint"
            )


@lru_cache(maxsize=10_000)
def _not_finite(path: Path, *_: int) -> str | None:
    """The first tensor of a file that holds what is no number."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, "r")[8 + length :]
    tensors = ((name, tensor) for name, tensor in header.items() if name != "__metadata__")
    return next((name for name, tensor in tensors if not all(_finite(data, tensor))), None)


def _finite(data: np.ndarray, tensor: dict[str, Any]) -> Iterator[bool]:
    first, last = tensor["data_offsets"]
    for start in range(first, last, _BYTES_AT_ONCE):
        values = data[start : min(start + _BYTES_AT_ONCE, last)].view(_FLOATS[tensor["dtype"]])
        yield bool((values & 0x7F80 != 0x7F80).all() if tensor["dtype"] == "BF16" else np.isfinite(values).all())


def _weight_files(directory: Path, what: str) -> list[Path]:
    if (path := directory / "model.safetensors").is_file():
        return [path]
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        known = read_json(index, "copy or save the model again")
        parts = known.get("weight_map") if isinstance(known, dict) else None
        names = set(parts.values()) if isinstance(parts, dict) and all(map(_is_text, parts.values())) else set()
        for name in sorted(names):
            if Path(name).name != name or not (directory / name).is_file():
                raise UserError(f"{what} cannot be loaded: {index.name} names {name!r:.80}, no file beside it")
        if names:
            return [directory / name for name in sorted(names)]
        raise UserError(f"{what} cannot be loaded: {index.name} names no files; copy or save the model again")
    if pickles := sorted(directory.glob("*.bin")) + sorted(directory.glob("*.pt")) + sorted(directory.glob("*.pkl")):
        raise UserError(
            f"{what} cannot be loaded: its weights are a pickle ({pickles[0].name}), which could hold a program; "
            "save it as safetensors, with save_pretrained"
        )
    raise UserError(f"{what} cannot be loaded: it has no model.safetensors; save it there with save_pretrained")


def _has_safetensors(directory: Path) -> bool:
    return any((directory / name).is_file() for name in WEIGHTS[:2])


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
