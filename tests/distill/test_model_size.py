import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5ForConditionalGeneration

from distill.model_size import forward_flops
from distill.models.build import build_dense
from teachers.build import build_teacher
from teachers.config import SwitchConfig


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_it_is_what_torch_counts_in_plain_transformers(shape, feed_forward):
    shape = shape.model_copy(update={"feed_forward": feed_forward, "dropout": 0.0})
    model = build_dense(shape, 512, pad=0, eos=1, seed=0)
    plain = T5ForConditionalGeneration(model.config)
    plain.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        plain(input_ids=torch.ones(1, 12, dtype=torch.int64), labels=torch.ones(1, 5, dtype=torch.int64))
    assert forward_flops(model.config.to_dict(), 12, 5) == counter.get_total_flops()


def test_a_switch_layer_costs_one_expert_and_its_router(shape):
    dense = build_dense(shape, 512, pad=0, eos=1, seed=0)
    teacher = build_teacher(shape, SwitchConfig(), 512, 8, pad=0, eos=1, seed=0)
    routers = 2 * 8 * shape.d_model * (12 + 5)
    assert forward_flops(teacher.config.to_dict(), 12, 5) == forward_flops(dense.config.to_dict(), 12, 5) + routers
