"""``quantize``: what is replaced, what is left alone and why, ties, the report, and failures."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.frontend.quantize.models import Network, indices
from tilewright import quantize
from tilewright.frontend.quantize.layers import QuantizedEmbedding, QuantizedLinear
from tilewright.frontend.quantize.report import QuantizeReport
from tilewright.ir.errors import SettingError
from tilewright.runtime.quantized.tensor import QuantizedTensor


def reasons(report: QuantizeReport) -> dict[str, str]:
    return {row.name: row.reason for row in report.left_alone}


@pytest.mark.parametrize(("dtype", "error"), [("u8", 0.02), ("i6", 0.1), ("u4", 0.5)])
@pytest.mark.parametrize("activation", ["float", "int8"])
def test_results_stay_near(dtype: str, error: float, activation: str) -> None:
    model = Network().eval()
    wanted = model(indices())
    quantize(model, dtype, group=16, activation=activation)
    off = (model(indices()) - wanted).norm() / wanted.norm()
    assert off < error + 0.02


def test_layers_hold_what_from_float_gives() -> None:
    model = Network()
    up, embed = model.up.weight.detach().clone(), model.embed.weight.detach().clone()
    bias = model.up.bias
    quantize(model, "u4", group=16, plan={"up": {"dtype": "i5", "method": "mse"}})
    assert isinstance(model.up, QuantizedLinear) and model.up.bias is bias
    wanted = QuantizedTensor.from_float(up, "i5", 16, method="mse")
    assert torch.equal(model.up.qweight.codes(), wanted.codes())
    assert isinstance(model.embed, QuantizedEmbedding)
    assert torch.equal(
        model.embed.qweight.dequantize(), QuantizedTensor.from_float(embed, "u4", 16).dequantize()
    )


def test_the_report_counts_every_byte() -> None:
    model = Network()
    before = sum(p.nbytes for n, p in model.named_parameters() if p.dim() == 2)
    report = quantize(model, "u4", group=16, plan={"*.down_proj": "u6", "nothing.*": "u2"})
    kept = {id(b): b for b in model.buffers() if b.numel()}.values()
    assert report.bytes_before == before
    assert report.bytes_after == sum(b.nbytes for b in kept)
    assert report.bytes_saved == before - report.bytes_after
    assert report.unused_patterns == ["nothing.*"]
    assert [row.name for row in report.quantized] == ["embed", "up", "down_proj", "head"]
    assert report.to_dict()["bits_per_weight"] == pytest.approx(
        8 * report.bytes_after / (before / 4)
    )
    text = str(report)
    assert "u6 group 16" in text and "tied to embed" in text
    assert "the plan's 'nothing.*' matches no layer" in text
    assert "norm" in text and "neither nn.Linear nor nn.Embedding" in text


def test_layers_of_one_kind_are_one_row() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8)) for _ in range(12)))
    text = str(quantize(model, "u4", group=8))
    assert "*.*" in text and " 12 " in text


class Odd(nn.Module):
    """A layer for every reason to be left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(2, 2, 1)
        self.subclass = type("MyLinear", (nn.Linear,), {})(4, 4)
        self.parametrised = nn.Linear(4, 4)
        nn.utils.parametrizations.orthogonal(self.parametrised)
        self.hooked = nn.Linear(4, 4)
        self.hooked.register_forward_hook(lambda *_: None)
        self.replaced = nn.Linear(4, 4)
        self.replaced.forward = lambda x: x  # type: ignore[method-assign]
        self.meta = nn.Linear(4, 4, device="meta")
        self.complex = nn.Linear(4, 4, dtype=torch.complex64)
        self.empty = nn.Linear(0, 4)
        self.renormed = nn.Embedding(4, 4, max_norm=1.0)
        self.broken = nn.Linear(4, 4)
        with torch.no_grad():
            self.broken.weight[1, 2] = float("nan")
        self.attention = nn.MultiheadAttention(4, 1)
        self.encoder = nn.TransformerEncoderLayer(4, 1, 8)
        self.filtered = nn.Linear(4, 4)
        self.planned = nn.Linear(4, 4)
        self.raw = nn.Parameter(torch.zeros(4, 4))
        self.good = nn.Linear(4, 4)


def test_no_layer_is_left_in_silence() -> None:
    model = Odd()
    report = quantize(
        model, "u4", plan={"planned": None}, filter=lambda module, name: name != "filtered"
    )
    assert [row.name for row in report.quantized] == ["good"]
    found = reasons(report)
    for name, says in {
        "": "neither nn.Linear nor nn.Embedding",
        "convolution": "neither nn.Linear nor nn.Embedding",
        "subclass": "a subclass",
        "parametrised": "remove_parametrizations",
        "hooked": "hooks",
        "replaced": "forward was replaced",
        "meta": "meta device",
        "complex": "complex64",
        "empty": "empty",
        "renormed": "max_norm",
        "broken": "must be finite",
        "attention.out_proj": "a subclass",
        "encoder.linear1": "TransformerEncoderLayer reads its weight",
        "filtered": "the filter leaves it",
        "planned": "the plan's 'planned' leaves it",
    }.items():
        assert says in found[name], name
    own = {n for n, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}
    parametrisations = {name for name in own if ".parametrizations." in name}
    assert own - parametrisations - {"good"} <= set(found)
    model.encoder(torch.randn(3, 2, 4))


def test_what_is_quantised_already_stays() -> None:
    model = Network()
    quantize(model, None, plan={"up": "u6"})
    up = model.up
    report = quantize(model, "u4")
    assert reasons(report)["up"] == "already quantised"
    assert model.up is up


def test_a_model_that_is_a_layer_cannot_be_replaced() -> None:
    report = quantize(nn.Linear(4, 4), "u4")
    assert "wrap it in a module" in reasons(report)[""]


def test_one_module_in_two_places_stays_one() -> None:
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    quantize(model, "u4", group=8)
    assert isinstance(model["a"], QuantizedLinear)
    assert model["b"][0] is model["a"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("plan", "dtype"),
    [({}, "u4"), ({"head": "u8"}, "u8"), ({"embed": "i6"}, "i6"), ({"*e*": "u5"}, "u5")],
)
def test_tied_weights_stay_tied_under_one_setting(plan: dict[str, str], dtype: str) -> None:
    model = Network()
    report = quantize(model, "u4", group=16, plan=plan)
    assert model.head.weight is model.embed.weight
    assert model.head.qweight.dtype.name == dtype
    assert [row.tied_to for row in report.quantized][-1] == "embed"
    assert report.quantized[-1].bytes_after == 0


def test_a_row_for_one_of_two_tied_layers_counts_for_both() -> None:
    model = Network()
    quantize(model, None, plan={"head": "u8"}, group=16)
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("left", ["head", "embed"])
def test_tied_layers_are_left_together(left: str) -> None:
    model = Network()
    report = quantize(model, "u4", group=16, plan={left: None})
    assert model.head.weight is model.embed.weight
    assert type(model.head) is nn.Linear and type(model.embed) is nn.Embedding
    other = "embed" if left == "head" else "head"
    assert f"shares its weight with {left}" in reasons(report)[other]


def test_tied_layers_cannot_have_two_settings() -> None:
    with pytest.raises(SettingError, match="embed and head share one weight"):
        quantize(Network(), "u4", plan={"head": "u8", "embed": "u6"})


@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": "u9"},
        {"dtype": "f32"},
        {"scale_dtype": "f64"},
        {"plan": {"up": "q4"}},
        {"plan": {"up": {"dtype": "u4", "activation": "int4"}}},
        {"method": "gptq"},  # without calibration
    ],
)
def test_a_refused_call_changes_nothing(arguments: dict[str, Any]) -> None:
    model = Network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SettingError):
        quantize(model, **arguments)
    assert type(model.up) is nn.Linear
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], part) for name, part in before.items())


def test_settings_are_looked_at_where_no_layer_would_have_them() -> None:
    with pytest.raises(SettingError, match="dtype='zz' is no element type"):
        quantize(nn.Sequential(nn.ReLU()), "zz")


def test_gptq_with_calibration_is_nearer_on_such_inputs() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(32, 24, bias=False)).eval()
    x = torch.randn(256, 32) @ torch.randn(32, 32)  # correlated inputs
    wanted = model(x)
    plain, tuned = copy.deepcopy(model), copy.deepcopy(model)
    quantize(plain, "u3", group=16)
    report = quantize(tuned, "u3", group=16, method="gptq", calibration=[x[:128], (x[128:],)])
    assert "method gptq" in report.quantized[0].settings
    assert (tuned(x) - wanted).norm() < (plain(x) - wanted).norm()


def test_calibration_that_reaches_no_layer_is_refused() -> None:
    with pytest.raises(SettingError, match="never reach"):
        quantize(Network(), "u4", method="gptq", calibration=[])


def test_quantising_in_inference_mode_makes_ordinary_tensors() -> None:
    model = Network()
    with torch.inference_mode():
        quantize(model, "u4", group=16)
    assert not any(part.is_inference() for part in model.up.weight.buffers())
    model.load_state_dict(model.state_dict())


def test_training_mode_and_gradients_pass_through() -> None:
    model = Network().train()
    quantize(model, "u8", group=16)
    assert model.up.training
    model(indices()).sum().backward()
    assert model.norm.weight.grad is not None
    assert model.up.bias.grad is not None
