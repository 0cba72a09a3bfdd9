"""The settings of a run's students."""

from typing import Literal

from pydantic import Field, model_validator

from distill.config import Positive, Section


class StudentConfig(Section):
    """How a student is initialised from its teacher."""

    ffn_init: Literal["random", "mean", "usage", "best", "svd", "aligned", "select", "fit", "regress"] = Field(
        "random", description="initialisation of the FFNs that replace Switch layers; the paper uses random"
    )
    calibration_examples: Positive = Field(256, description="training examples for calibration; random uses none")
    measure_ffn_errors: bool = Field(
        False, description="measure how far the FFNs are from the experts, even if none is built from them"
    )
    non_expert_init: Literal["teacher", "random"] = Field("teacher", description="initialisation of all other weights")

    @model_validator(mode="after")
    def _fits_together(self) -> "StudentConfig":
        if self.non_expert_init == "random" and self.ffn_init != "random":
            raise ValueError(
                "non_expert_init random takes nothing from the teacher, so ffn_init must be random too, "
                f"not {self.ffn_init}"
            )
        return self

    @property
    def is_calibrated(self) -> bool:
        """Whether the student's weights depend on training text."""
        return self.ffn_init != "random"

    @property
    def reads_text(self) -> bool:
        """Whether the initialisation reads training text, to build FFNs or to measure their errors."""
        return self.is_calibrated or self.measure_ffn_errors
