"""The Switch teacher: building, loading, saving, training. Imports only distill.

config        the settings of teachers
check         checks of a teacher's directory before loading
layout        the layout of a Switch model, from the names and shapes of its tensors
switch_layer  the Switch feed-forward layer and its routing statistics
experts       the experts of a Switch layer, on tokens that are sorted by expert
divided       experts of a frozen teacher that several processes hold, one share each
build         a transformers Switch model whose sparse layers are SwitchLayers
load          a teacher from a directory or the hub
needs         the memory that a teacher needs, from the headers of its files
memory        the same for an open teacher, and the limit of the memory
streaming     a teacher that is larger than memory, layer by layer
save          a teacher to a directory that plain transformers loads
routing       expert load, dropped tokens and router entropy on held-out text
train_module  cross-entropy with hard labels plus the load-balancing losses
"""

import importlib
from typing import Any

_MODULES = {"load_teacher": "teachers.load", "save_teacher": "teachers.save"}
__all__ = ["load_teacher", "save_teacher"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:  # torch is slow to import, and configs do not need it
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'teachers' has no attribute {name!r}")
