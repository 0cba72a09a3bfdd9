"""The optimizer of a config, and its parameter groups."""

import torch
from torch import nn

from distill.config import TrainingConfig
from distill.optim.adafactor import Adafactor
from distill.optim.muon import Muon


def make_optimizer(objective: nn.Module, config: TrainingConfig, precision: str = "no") -> torch.optim.Optimizer:
    """Make AdamW, Adafactor, or Muon. Muon updates the matrices inside the blocks, and Adafactor all other parameters.

    Norms and position biases have no weight decay.

    Args:
        objective: the module to train.
        config: names the optimizer, the learning rate and the weight decay.
        precision: accelerate's name of the mixed precision; with "bf16", Muon computes its products in bfloat16.
    """
    decayed, plain, in_blocks = [], [], []
    for name, parameter in objective.named_parameters():
        if parameter.ndim < 2 or "relative_attention_bias" in name:
            plain.append(parameter)
        elif config.optimizer == "muon" and ".block." in name and "router" not in name:
            in_blocks.append(parameter)
        else:
            decayed.append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if config.optimizer == "adafactor":
        return Adafactor(groups, lr=config.learning_rate)
    if config.optimizer == "muon":
        matrices = {"params": in_blocks, "weight_decay": config.weight_decay, "orthogonal": True}
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return Muon([*groups, matrices], lr=config.learning_rate, dtype=dtype)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
