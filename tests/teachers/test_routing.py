import pytest
import torch

from distill.training.loop import make_accelerator
from teachers.build import build_teacher, switch_layers
from teachers.routing import RoutingSummary, measure_routing
from tests.teachers.plain_teacher import NO_DROPPING


def test_a_layer_that_sends_all_tokens_to_one_expert_is_named():
    load = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.0, 0.9999, 0.0001, 0.0]])
    nothing = torch.zeros(2)
    routing = RoutingSummary(["encoder.1", "decoder.1"], load, nothing, nothing)
    assert routing.collapse() == "all tokens of decoder.1 go to expert 1"
    assert routing._replace(load=torch.tensor([[0.25] * 4, [0.0, 0.99, 0.01, 0.0]])).collapse() is None
    assert routing._replace(load=torch.ones(2, 1)).collapse() is None


def test_measured_routing_averages_layers_and_batches(shape, batch):
    model = build_teacher(shape, NO_DROPPING, 64, 4, pad=0, eos=1, seed=0).eval()
    with measure_routing(model) as routing:
        model(**batch)
        model(**batch)
    layers = [layer.statistics for _, layer in switch_layers(model)]
    measured = routing(make_accelerator("float32"))
    values, curves = measured.overall_metrics(), measured.layer_metrics()
    assert values["router_entropy"] == pytest.approx(sum(float(s.entropy) for s in layers) / 2, rel=1e-5)
    assert values["load_max"] == pytest.approx(max(float(s.load.max()) for s in layers) * 4, rel=1e-5)
    assert values["dropped_fraction"] == 0
    assert measured.layers == ["encoder.1", "decoder.1"]
    assert curves["routing/decoder.1/router_entropy"] == pytest.approx(float(layers[1].entropy), rel=1e-5)
    loads = [curves[f"routing/encoder.1/load/expert{expert:03d}"] for expert in range(4)]
    assert loads == pytest.approx((layers[0].load * 4).tolist(), rel=1e-5) and sum(loads) == pytest.approx(4)
