"""A plain teacher of transformers, as a reference for ours."""

from pathlib import Path

import torch
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from teachers.config import TeacherConfig

NO_DROPPING = TeacherConfig(experts=[4], capacity_factor_eval=4.0)


def save_plain_teacher(directory: Path, **changes) -> SwitchTransformersForConditionalGeneration:
    """A Switch model that only transformers makes and saves, with random weights such that every part has an effect."""
    config = SwitchTransformersConfig(
        vocab_size=64,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=4,
        num_decoder_layers=4,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
        num_heads=2,
        num_experts=4,
        expert_capacity=10_000,
        decoder_start_token_id=0,
        **changes,
    )
    torch.manual_seed(0)
    model = SwitchTransformersForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    return model
