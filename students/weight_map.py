"""The student's tensor for each teacher tensor, or the reason why it has none (section 4.2 of the paper)."""

import re
from typing import NamedTuple

from distill.errors import UserError


class Skip(NamedTuple):
    """A teacher tensor without a counterpart in the student."""

    reason: str


_SKIPPED = {
    re.compile(r"\.mlp\.router\.classifier\.weight$"): Skip("router"),
    re.compile(r"\.mlp\.experts\.expert_\d+\.(wi|wi_0|wi_1|wo)\.weight$"): Skip("expert"),
}
_RENAMED = re.compile(r"\.mlp\.(wi|wi_0|wi_1|wo)\.weight$")  # the dense FFNs of the teacher
_COPIED = re.compile(
    r"^(shared|lm_head|(encoder|decoder)\.(embed_tokens|final_layer_norm))\.weight$"
    r"|^(encoder|decoder)\.block\.\d+\.layer\.\d+\."
    r"((SelfAttention|EncDecAttention)\.(q|k|v|o|relative_attention_bias)|layer_norm)\.weight$"
)


def student_name(teacher_name: str) -> str | Skip:
    """The name in a T5 of a tensor of transformers' Switch model.

    Args:
        teacher_name: a key of the teacher's state dict in the layout of transformers.

    Returns:
        The key in the state dict of the T5, or a ``Skip`` for a tensor of a router or an expert.

    Raises:
        UserError: no Switch Transformer has a tensor of this name.
    """
    for pattern, skip in _SKIPPED.items():
        if pattern.search(teacher_name):
            return skip
    if _RENAMED.search(teacher_name):
        return teacher_name.replace(".mlp.", ".DenseReluDense.")
    if _COPIED.search(teacher_name):
        return teacher_name
    raise UserError(f"the teacher has a tensor {teacher_name!r} that no Switch Transformer has; nothing was copied")
