"""The dropout of one training, which may differ from that of the model's config."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel


@contextmanager
def dropout_of(model: PreTrainedModel, rate: float | None) -> Iterator[None]:
    """Use ``rate`` in [0, 1) as the dropout of the model outside of experts within the block; None changes nothing.

    Dropout inside experts is a setting of the Switch layers of its own (table 4 of the paper).
    """
    if rate is None:
        yield
        return
    stacks: list[Any] = [model, model.encoder, model.decoder]
    configs = [stack.config for stack in stacks]
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "expert_dropout")]
    before = [(config.dropout_rate, config) for config in configs], [(layer.dropout, layer) for layer in layers]
    try:
        for config in configs:
            config.dropout_rate = rate
        for layer in layers:
            layer.dropout = rate
        yield
    finally:
        for own, config in before[0]:
            config.dropout_rate = own
        for own, layer in before[1]:
            layer.dropout = own
