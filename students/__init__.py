"""The dense student: a T5 that is initialised from a teacher, exported and served.

Imports distill, and from teachers the code that reads a teacher.

config       the settings of a run's students
check        checks of a dense T5's directory before it is loaded
load         load a dense T5
weight_map   the student's tensor for each teacher tensor, or the reason why it has none
calibration  the activations of the Switch layers on calibration text
ffn_init     one dense FFN from the experts of a Switch layer
build_ffns   the FFNs of a student from the experts, one layer at a time
initialise   build the student, copy the non-expert weights, initialise the FFNs that replace Switch layers
export       write the student in the format of a runtime, and verify the export
runtime      run an export, without torch if the format does not need it
serving      serve an export over HTTP
"""

from typing import Any

__all__ = ["init_student"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # torch is slow to import, and the config does not need it
        from students import initialise

        return getattr(initialise, name)
    raise AttributeError(f"module 'students' has no attribute {name!r}")
