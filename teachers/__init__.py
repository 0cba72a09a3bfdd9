"""The sparse side: a Switch teacher to build, load, save and train. Imports distill alone.

config        what a run may set about its teachers
check         faults of a teacher's directory, found before it is loaded
switch_layer  the Switch feed-forward layer and its routing statistics
model         build, load and save a transformers Switch model whose sparse layers are SwitchLayers
routing       load, dropped tokens and entropy on held-out text
train_module  hard labels plus the load-balancing loss of every Switch layer
"""

__all__ = ["load_teacher", "save_teacher"]


def __getattr__(name: str):
    if name in __all__:  # torch is slow to import, and reading a config does not need it
        from teachers import model

        return getattr(model, name)
    raise AttributeError(f"module 'teachers' has no attribute {name!r}")
