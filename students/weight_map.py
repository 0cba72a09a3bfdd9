"""The student's tensor for each teacher tensor, or the reason why it has none (section 4.2 of the paper)."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from distill.errors import UserError


class Skip(NamedTuple):
    """A teacher tensor without a counterpart in the student."""

    reason: str


_SKIPPED = {
    re.compile(r"\.mlp\.router\.classifier\.weight$"): Skip("router"),
    re.compile(r"\.mlp\.experts\.expert_\d+\.(wi|wi_0|wi_1|wo)\.weight$"): Skip("expert"),
}
_DECODER_LAYER = re.compile(r"^decoder\.block\.(\d+)\b")
_RENAMED = re.compile(r"\.mlp\.(wi|wi_0|wi_1|wo)\.weight$")  # the dense FFNs of the teacher
_COPIED = re.compile(
    r"^(shared|lm_head|(encoder|decoder)\.(embed_tokens|final_layer_norm))\.weight$"
    r"|^(encoder|decoder)\.block\.\d+\.layer\.\d+\."
    r"((SelfAttention|EncDecAttention)\.(q|k|v|o|relative_attention_bias)|layer_norm)\.weight$"
)


def kept_layers(teacher: int, student: int) -> list[int]:
    """The decoder layers of the teacher that a student with fewer layers keeps, in their order.

    They are maximally spaced and include the first and the last, as in distil-whisper (arXiv:2311.00430). One layer is
    the first: it has the relative position bias of all layers, and its inputs are the embeddings. Its states are those
    of the teacher, while the last layer would get inputs that it has never seen.

    Args:
        teacher: number of decoder layers of the teacher.
        student: of the student, from 1 to ``teacher``.
    """
    return [layer * (teacher - 1) // max(student - 1, 1) for layer in range(student)]


def renumbered(name: str, kept: Sequence[int]) -> str | None:
    """The name in the student of a module or tensor of the teacher; None if the student has not kept its layer.

    Args:
        name: for example ``decoder.block.3.layer.2``. Names outside the decoder's blocks stay the same.
        kept: the result of ``kept_layers``.
    """
    found = _DECODER_LAYER.match(name)
    if found is None:
        return name
    layer = int(found[1])
    return f"decoder.block.{kept.index(layer)}{name[found.end() :]}" if layer in kept else None


def student_name(teacher_name: str, kept: Sequence[int] | None = None) -> str | Skip:
    """The name in a T5 of a tensor of transformers' Switch model.

    Args:
        teacher_name: a key of the teacher's state dict in the layout of transformers.
        kept: the result of ``kept_layers``; None: the student has all decoder layers.

    Returns:
        The key in the state dict of the T5, or a ``Skip`` for a tensor of a router, an expert, or a layer that the
        student has not kept.

    Raises:
        UserError: no Switch Transformer has a tensor of this name.
    """
    for pattern, skip in _SKIPPED.items():
        if pattern.search(teacher_name):
            return skip
    if _RENAMED.search(teacher_name) or _COPIED.search(teacher_name):
        name = teacher_name.replace(".mlp.", ".DenseReluDense.")
        return (name if kept is None else renumbered(name, kept)) or Skip("layer")
    raise UserError(f"the teacher has a tensor {teacher_name!r} that no Switch Transformer has; nothing was copied")
