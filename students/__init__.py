"""The dense side: a T5 student from a teacher's weights. Imports distill, and teachers to read a teacher.

config      what a run may set about its students
check       faults of a dense T5's directory, found before it is loaded
weight_map  the name of every teacher tensor in the student, or the reason why it has none
calibration what passes through the Switch layers on some text
ffn_init    one dense FFN from the experts of a Switch layer
initialise  build the student, copy what has a counterpart, build or leave fresh the rest
export      write it in the format of a runtime, and verify it there
runtime     run what was exported, without torch where the format needs none
"""

__all__ = ["init_student"]


def __getattr__(name: str):
    if name in __all__:  # torch is slow to import, and reading a config does not need it
        from students import initialise

        return getattr(initialise, name)
    raise AttributeError(f"module 'students' has no attribute {name!r}")
