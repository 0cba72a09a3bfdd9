"""What a run may set about its students."""

from typing import Literal

from pydantic import Field

from distill.config import Section


class StudentConfig(Section):
    """How a student is made from its teacher."""

    ffn_init: Literal["random"] = Field("random", description="the FFNs that replace Switch layers: the paper's way")
