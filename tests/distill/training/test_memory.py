"""The estimated memory of a training step, against the tensors that torch saves for the backward pass."""

import pytest
import torch

from distill.config import ModelConfig, TrainingConfig
from distill.models.build import build_dense, count_parameters
from distill.models.header import shape_of
from distill.models.t5_forward import hidden_states
from distill.training.memory import saved_bytes, training_bytes

SHAPE = {"d_model": 64, "d_ff": 160, "d_kv": 16, "num_heads": 4, "num_layers": 3, "sparse_every": 1}
SIZES = {"examples": 3, "inputs": 96, "targets": 40}


def saved_by_torch(t5: torch.nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the storages that a forward pass saves, each counted once, without those of the parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in t5.parameters()}
    kept = {}  # the storages stay alive, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage
        return tensor

    input_ids, labels = (torch.randint(2, 90, (SIZES["examples"], SIZES[name])) for name in ("inputs", "targets"))
    autocast = torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        hidden_states(t5, input_ids, labels)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("feed_forward", ["relu", "gelu", "gated-gelu"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_a_forward_pass_saves_is_what_torch_saves(feed_forward, precision):
    model = ModelConfig(**SHAPE, feed_forward=feed_forward)
    t5 = build_dense(model, 100, pad=0, eos=1, seed=0).train()
    estimate = saved_bytes(shape_of(model, 100), precision, **SIZES)
    assert estimate == pytest.approx(saved_by_torch(t5, getattr(torch, precision)), rel=0.05)


def test_training_needs_the_checkpoint_the_gradients_and_the_activations():
    model = ModelConfig(**SHAPE)
    parameters = count_parameters(build_dense(model, 100, pad=0, eos=1, seed=0))
    shape = shape_of(model, 100)
    saved, logits = saved_bytes(shape, "float32", **SIZES), 3 * 40 * 100 * 16
    for optimizer, copies in (("adamw", 4), ("muon", 3), ("adafactor", 2)):
        training = TrainingConfig(optimizer=optimizer)
        needed = training_bytes(shape, parameters, training, "float32", **SIZES)
        assert needed == 4 * copies * parameters + saved + logits + 2 * saved // 6
