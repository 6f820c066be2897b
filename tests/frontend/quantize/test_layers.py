"""Quantised layers as modules: state, copies, dtypes, and what they print."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from tests.frontend.quantize.models import Network, indices, weight
from tilewright import quantize
from tilewright.frontend.quantize.form import PARTS, Form
from tilewright.frontend.quantize.layers import QuantizedEmbedding, QuantizedLinear, QuantizedWeight
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.packing import Packing


def quantized(dtype: str = "u4", **settings: object) -> Network:
    torch.manual_seed(7)
    model = Network()
    quantize(model, dtype, group=16, **settings)  # type: ignore[arg-type]
    return model.eval()


@pytest.mark.parametrize("dtype", ["u4", "i5", "nf4", "f4e2m1"])
def test_state_dicts_load_strictly_and_exactly(dtype: str) -> None:
    ours = quantized(dtype)
    torch.manual_seed(8)
    other = Network()
    quantize(other, dtype, group=16)
    assert not torch.equal(other(indices()), ours(indices()))
    other.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(other(indices()), ours(indices()))
    assert other.head.weight is other.embed.weight


def test_states_hold_tensors_only_and_weights_only_loading_reads_them() -> None:
    model, file = quantized(), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = quantized("u4")
    other.load_state_dict(state, assign=True)
    assert torch.equal(other(indices()), model(indices()))


def test_the_scale_of_the_tensor_comes_with_the_state() -> None:
    torch.manual_seed(1)
    settings = {"group": 16, "scale_dtype": "f8e4m3"}
    ours, other = Network(), Network()
    for model in (ours, other):
        quantize(model, "f4e2m1", **settings)  # type: ignore[arg-type]
    assert ours.up.weight.form.tensor_scale != other.up.weight.form.tensor_scale
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other(indices()), ours(indices()))


@pytest.mark.parametrize(
    ("dtype", "settings", "says"),
    [
        ("nf4", {}, "up.weight: the state holds a weight of dtype u4, not nf4"),
        ("u4", {"plan": {"up": {"group": 8}}}, "group 16, not 8"),
        ("u4", {"symmetric": True}, "zeros"),
    ],
)
def test_a_state_of_other_settings_is_refused(
    dtype: str, settings: dict[str, object], says: str
) -> None:
    with pytest.raises(RuntimeError, match=says):
        quantized(dtype, **settings).load_state_dict(quantized().state_dict())


def test_a_missing_tensor_is_named() -> None:
    state = quantized().state_dict()
    del state["up.weight.scales"]
    with pytest.raises(RuntimeError, match=r"Missing key.*up\.weight\.scales"):
        quantized().load_state_dict(state)


@pytest.mark.parametrize("lanes", [1, 8, 32])
def test_another_layout_is_repacked_when_loaded(lanes: int) -> None:
    q = weight(37, 50, "u3")
    theirs = QuantizedLinear(q.with_layout(Packing.fields(3, lanes, q.layout.group)))
    ours = QuantizedLinear(weight(37, 50, "u3"))
    ours.weight.words.zero_()
    ours.load_state_dict(theirs.state_dict())
    assert ours.weight.form.layout == str(q.layout)
    assert torch.equal(ours.qweight.codes(), q.codes())
    assert torch.equal(ours.qweight.dequantize(), q.dequantize())


def test_copies_are_copies_and_stay_tied() -> None:
    model = quantized()
    model(indices())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.head.weight is other.embed.weight
        assert other.head.weight.words is not model.head.weight.words
        assert torch.equal(other(indices()), model(indices()))
        other.embed.weight.words.zero_()
        assert not torch.equal(other(indices()), model(indices()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_converting_a_model_keeps_codes_and_scales(dtype: torch.dtype) -> None:
    model = quantized()
    before = {name: part.clone() for name, part in model.up.weight.named_buffers()}
    wanted = model(indices())
    model.to(dtype)
    assert model.head.weight is model.embed.weight
    assert set(before) <= set(PARTS)
    for name, part in model.up.weight.named_buffers():
        assert part.dtype == before[name].dtype and torch.equal(part, before[name])
    assert model.embed(indices()).dtype == model(indices()).dtype == dtype
    assert model.up.bias is not None and model.up.bias.dtype == dtype
    torch.testing.assert_close(model(indices()).float(), wanted, rtol=0.1, atol=0.1)


def test_emptied_layers_can_be_filled() -> None:
    model, other = quantized(), quantized().to("meta").to_empty(device="cpu")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(indices()), model(indices()))


def test_what_layers_print() -> None:
    text = str(quantized(activation="int8"))
    assert "in_features=48, out_features=40, bias=True, activation='int8'" in text
    assert "u4 [40, 48] group 16, quads(4) lanes" in text
    assert "50, 48, dtype=torch.float32" in text


def test_layers_can_be_made_of_tensors() -> None:
    q = weight(5, 32)
    layer, embedding = QuantizedLinear(q, torch.ones(5)), QuantizedEmbedding(q, dtype=torch.half)
    assert layer.qweight.words is q.words
    assert torch.equal(layer(torch.zeros(2, 32)), torch.ones(2, 5))
    assert embedding(torch.tensor(3)).shape == (32,)
    assert not list(p for p in layer.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", ["u1", "i4", "nf4", "f6e2m3"])
def test_forms_print_and_parse(dtype: str) -> None:
    form = Form.of(weight(3, 40, dtype))
    assert Form.parse(str(form)) == form


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"dtype": "u4"}', "null"])
def test_what_is_no_form_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedError, match="not the form"):
        Form.parse(text)


def test_a_weight_of_more_axes_is_no_layer() -> None:
    from tilewright.runtime.quantized.tensor import QuantizedTensor

    experts = QuantizedTensor.from_float(torch.randn(2, 4, 32), "u4", 32)
    with pytest.raises(UnsupportedError, match=r"this one is \[2, 4, 32\]"):
        QuantizedWeight.of(experts)


def test_a_weight_that_is_read_is_its_floats() -> None:
    """As Mamba does: ``self.dt_proj.weight @ steps``."""
    layer = torch.nn.Sequential(torch.nn.Linear(64, 32))
    quantize(layer, "u4", group=32)
    held = layer[0].weight
    assert isinstance(held, QuantizedWeight)
    floats, x = held.tensor.dequantize(), torch.randn(5, 64)
    torch.testing.assert_close(held @ x.T, floats @ x.T)  # type: ignore[operator]
    torch.testing.assert_close(x @ floats.T, torch.nn.functional.linear(x, held))  # type: ignore[arg-type]
    torch.testing.assert_close(torch.cat([held, floats]), torch.cat([floats, floats]))  # type: ignore[list-item]
    assert (held.half() @ x.T.half()).dtype == torch.float16
    with pytest.raises(UnsupportedError, match="plan that leaves the layer"):
        torch.relu_(held)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="plan that leaves the layer"):
        torch.mul(floats, 2.0, out=held)  # type: ignore[call-overload]
    with pytest.raises(UnsupportedError, match="torch's div_ writes to the weight"):
        held.div_(2.0)  # as RWKV's layers do before they run
