"""The sparse side: a Switch teacher to build, load, save and train. Imports distill alone.

config        what a run may set about its teachers
check         faults of a teacher's directory, found before it is loaded
switch_layer  the Switch feed-forward layer and its routing statistics
build         a transformers Switch model whose sparse layers are SwitchLayers
load          one from a directory or the hub
save          one to a directory that plain transformers reads
routing       load, dropped tokens and entropy on held-out text
train_module  hard labels plus the load-balancing loss of every Switch layer
"""

import importlib
from typing import Any

_MODULES = {"load_teacher": "teachers.load", "save_teacher": "teachers.save"}
__all__ = ["load_teacher", "save_teacher"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:  # torch is slow to import, and reading a config does not need it
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'teachers' has no attribute {name!r}")
