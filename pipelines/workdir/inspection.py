"""What the files of a Switch model hold, from their headers alone. Imports torch only for ``.bin`` files."""

from collections import Counter
from collections.abc import Iterable
from math import prod
from typing import Any, NamedTuple

from distill.io.hub import at_revision
from distill.models.directory import cached_weights, read_model_config
from distill.models.header import EMBEDDINGS, Header
from distill.models.remote_weights import RemoteWeights, remote_tensors
from distill.models.stored_tensors import read_headers
from distill.models.weight_files import StoredTensor, StoredTensors, find_weight_files
from teachers.check import check_teacher_config, teacher_header
from teachers.layout import LAYERS, Layout, expected_shapes, is_expert, read_layout

_OUTSIDE = "embeddings and norms"  # all tensors outside the blocks
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Inspected(NamedTuple):
    """The headers of a Switch model."""

    source: str
    commit: str | None  # on the hub; None for a directory
    tensors: StoredTensors
    files: dict[str, int]  # weight file -> its bytes
    layout: Layout
    header: Header  # of the student
    remote: RemoteWeights | None  # None if all weights are on this machine

    @property
    def bytes(self) -> int:
        """Size of all weight files."""
        return sum(self.files.values())

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return bool(self.header.shape["tie_word_embeddings"])

    def parameters(self) -> dict[str, Any]:
        """Numbers of parameters: of the model, of its parts, and of the student. Shared parameters count once."""
        shapes = expected_shapes(self.layout)
        by_block: Counter[str] = Counter()
        for name, shape in shapes.items():
            by_block[name.partition(".layer.")[0] if ".layer." in name else _OUTSIDE] += prod(shape)
        by_block[_OUTSIDE] += len(self._own_embeddings()) * prod(shapes["shared.weight"])
        s, sparse = self.layout.sizes, sum(map(len, self.layout.sparse.values()))
        expert = (3 if self.layout.gated else 2) * s["d_model"] * s["d_ff"]
        experts, routers = sparse * s["num_experts"] * expert, sparse * s["num_experts"] * s["d_model"]
        total = by_block.total()
        student = total - experts - routers + sparse * expert
        return {
            "all": total,
            "non_expert": total - experts,
            "per_expert": expert,
            "per_layer": dict(by_block),
            "student": student,
        }

    def _own_embeddings(self) -> list[str]:
        """The embeddings besides ``shared.weight``. In a tied model, and where the values are the same bytes, none."""
        if self.tied:
            return []
        shared = self.tensors["shared.weight"]
        found = {name: self.tensors[name] for name in EMBEDDINGS if name in self.tensors}
        return [name for name, one in found.items() if (one.file, one.offset) != (shared.file, shared.offset)]

    def non_experts(self) -> list[str]:
        """The tensors that the initialisation of a student reads."""
        return [name for name in self.tensors if not is_expert(name)]


def inspect_model(source: str) -> Inspected:
    """Read the config and the headers of a Switch model. Of a model on the hub that is not cached, only these.

    Args:
        source: a directory, or a name on the hub that may be pinned (``NAME@REVISION``).

    Raises:
        UserError: the source does not exist, is no Switch model, is damaged, or cannot be fetched.
    """
    description = f"teacher {source!r}"
    config = read_model_config(source, description)
    check_teacher_config(config, description)
    remote, directory = None, cached_weights(source, description)
    if directory is None:
        remote = remote_tensors(source, description)
        assert remote is not None  # cached_weights returns local directories
        tensors, files = remote.tensors, remote.sizes
    else:
        tensors = read_headers(directory, description)
        names = find_weight_files(directory, description).names
        files = {name: (directory / name).stat().st_size for name in names}
    return Inspected(
        source,
        at_revision(source, "model", description).revision,
        tensors,
        files,
        read_layout({name: tensor.shape for name, tensor in tensors.items()}, description),
        teacher_header(config, tensors, description),
        remote,
    )


def describe(model: Inspected) -> dict[str, Any]:
    """The facts of a model, for JSON. Sizes are in bytes."""
    parameters, sizes = model.parameters(), model.layout.sizes
    student = parameters.pop("student")
    per_file = Counter(tensor.file for tensor in model.tensors.values())
    shared = ("d_model", "d_ff", "d_kv", "num_heads", "vocab_size", "num_experts")
    non_experts = model.non_experts()
    return {
        "model": model.source,
        "commit": model.commit,
        "layout": {
            **{stack: {"blocks": sizes[LAYERS[stack]], "sparse": list(model.layout.sparse[stack])} for stack in LAYERS},
            **{name: sizes[name] for name in shared},
            "activation": str(model.header.shape["feed_forward_proj"]),
            "gated": model.layout.gated,
            "tied": model.tied,
        },
        "dtypes": _dtypes(model.tensors),
        "parameters": parameters,
        "bytes": model.bytes,
        "files": [{"name": name, "bytes": size, "tensors": per_file[name]} for name, size in model.files.items()],
        "init": {
            "reads": _bytes(model.tensors[name] for name in non_experts),
            "fetches": model.remote.missing_bytes(non_experts) if model.remote else 0,
        },
        "differences": list(model.header.differences),
        "student": {
            "shape": dict(model.header.shape),
            "parameters": student,
            "compression": 1 - student / parameters["all"],
        },
    }


def _dtypes(tensors: StoredTensors) -> dict[str, dict[str, int]]:
    """Numbers of tensors and values, and bytes, of each dtype."""
    found: dict[str, list[StoredTensor]] = {}
    for tensor in tensors.values():
        found.setdefault(_DTYPES[tensor.dtype], []).append(tensor)
    return {
        dtype: {"tensors": len(ones), "values": sum(one.numel for one in ones), "bytes": _bytes(ones)}
        for dtype, ones in sorted(found.items())
    }


def _bytes(tensors: Iterable[StoredTensor]) -> int:
    """Bytes of the tensors. Tensors with the same values in a ``.bin`` file count once."""
    return sum({(one.file, one.offset): one.extent for one in tensors}.values())
