"""The settings of a run's students."""

from typing import Literal

from pydantic import Field, model_validator

from distill.config import Positive, Section, Size
from distill.errors import UserError


class StudentConfig(Section):
    """How a student is initialised from its teacher."""

    ffn_init: Literal["random", "mean", "usage", "best", "aligned", "select", "fit", "regress"] = Field(
        "random", description="initialisation of the FFNs that replace Switch layers; the paper uses random"
    )
    calibration_examples: Positive = Field(
        256, description="training examples that FFNs are built from; a quarter as many more measure them"
    )
    measure_ffn_errors: bool = Field(
        False, description="measure how far the FFNs are from the experts, even if none is built from them"
    )
    non_expert_init: Literal["teacher", "random"] = Field("teacher", description="initialisation of all other weights")
    d_ff: Size | None = Field(
        None, description="neurons of every FFN of the student, at least the teacher's; null: the teacher's"
    )
    num_decoder_layers: Positive | None = Field(
        None, description="decoder layers of the student, at most the teacher's; null: the teacher's"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "StudentConfig":
        if self.non_expert_init == "random" and self.ffn_init != "random":
            raise ValueError(
                "non_expert_init random takes nothing from the teacher, so ffn_init must be random too, "
                f"not {self.ffn_init}"
            )
        return self

    def check_sizes(self, d_ff: int, num_decoder_layers: int, teacher: str) -> None:
        """Compare the student's sizes with those of a teacher.

        Args:
            d_ff, num_decoder_layers: of the teacher.
            teacher: its name in messages.

        Raises:
            UserError: the student's FFNs are narrower, or it has more decoder layers.
        """
        if self.d_ff is not None and self.d_ff < d_ff:
            raise UserError(
                f"student.d_ff is {self.d_ff}, but {teacher} has d_ff {d_ff}, and a student's FFNs can only be wider; "
                f"set it to at least {d_ff}, or to null"
            )
        if self.num_decoder_layers is not None and self.num_decoder_layers > num_decoder_layers:
            raise UserError(
                f"student.num_decoder_layers is {self.num_decoder_layers}, but {teacher} has {num_decoder_layers} "
                f"decoder layers to keep; set it to at most {num_decoder_layers}, or to null"
            )

    @property
    def is_calibrated(self) -> bool:
        """Whether the student's weights depend on training text."""
        return self.ffn_init != "random"

    @property
    def reads_text(self) -> bool:
        """Whether the initialisation reads training text, to build FFNs or to measure their errors."""
        return self.is_calibrated or self.measure_ffn_errors
