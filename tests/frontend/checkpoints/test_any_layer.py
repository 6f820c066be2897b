"""Tensors of any shape and dtype under the names that formats use: read, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.frontend.checkpoints.test_bitsandbytes import layer as bitsandbytes_layer
from tests.frontend.checkpoints.test_hqq import layer as hqq_layer
from tests.frontend.checkpoints.test_onnx import inputs, model
from tests.frontend.checkpoints.writers import (
    awq_layer,
    folder,
    gptq_layer,
    nibbles,
    packed_rows,
    under,
)
from tilewright.frontend.checkpoints import (
    bitsandbytes,
    compressed_tensors,
    gptq,
    hqq,
    open_checkpoint,
)
from tilewright.ir.errors import TilewrightError
from tilewright.runtime.quantized.tensor import QuantizedTensor

FAMILIES = {
    "gptq, awq": gptq.SUFFIXES,
    "compressed-tensors": (*compressed_tensors.SUFFIXES, ".weight_scale_2"),
    "bitsandbytes": (*bitsandbytes.SUFFIXES, ".SCB"),
    "hqq": hqq.SUFFIXES[:12],
    "mxfp4": ("_blocks", "_scales"),
    "tilewright": (".form", ".words", ".scales", ".zeros", ".order", ".weight._extra_state"),
}
DTYPES = [
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float8_e4m3fn,
    torch.float8_e8m0fnu,
]
SIZES = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 32, 64])


@st.composite
def layers(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Any of a family's tensors, of any bits; half of the dtypes and shapes are likely ones."""
    family = draw(st.sampled_from(list(FAMILIES)))
    made = {}
    for suffix in FAMILIES[family]:
        if draw(st.integers(0, 9)) == 0:
            continue
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(SIZES, max_size=4))
        seed = draw(st.integers(0, 3))
        size = torch.Size(shape).numel() * torch.empty(0, dtype=dtype).element_size()
        generator = torch.Generator().manual_seed(seed)
        bits = torch.randint(256, (size,), generator=generator, dtype=torch.uint8)
        bits = bits if seed else bits * 0
        made[f"l{suffix}"] = (
            bits.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
        )
    return made


@settings(max_examples=200)
@given(tensors=layers(), config=st.sampled_from([None, {"quant_method": "awq"}, {"bits": 4}]))
def test_any_tensors(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, torch.Tensor],
    config: dict[str, object] | None,
) -> None:
    path = folder(tmp_path_factory.mktemp("any") / "m", tensors, config)
    opened = open_checkpoint(path)
    told = {part for weight in opened.weights.values() for part in weight.tensors}
    assert told | set(opened.plain) | set(opened.unknown) == set(tensors)  # none is forgotten
    for name in opened.weights:
        try:
            found = opened.read(name)
        except TilewrightError as error:
            assert name in str(error)
        else:
            assert found.dequantize().shape == opened.weights[name].shape


def good_layers() -> dict[str, torch.Tensor]:
    """One layer of every kind, each as it should be."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (16, 64), generator=generator)
    zeros, scales = torch.full((16, 2), 8), torch.ones(16, 2).half()
    order = torch.randperm(64, generator=generator).to(torch.int32) // 32
    nested = {
        "nested_absmax": torch.ones(1),
        "nested_quant_map": torch.linspace(-1, 1, 256),
        "nested_blocksize": 256,
        "nested_offset": 0.5,
    }
    positions = torch.zeros(16, dtype=torch.uint8)
    ours = QuantizedTensor.from_float(torch.randn(2, 4, 64, generator=generator), "u3", 32)
    return {
        **under("gptq", {**gptq_layer(codes, zeros, scales, 4), "g_idx": order}),
        **under("awq", awq_layer(codes, zeros, scales)),
        "ct.weight_packed": packed_rows(codes, 5),
        "ct.weight_scale": torch.ones(16, 2),
        "ct.weight_zero_point": packed_rows(codes[:, :2].t(), 5).t(),
        "ct.weight_shape": torch.tensor([16, 64]),
        "fp8.weight": torch.ones(16, 64).to(torch.float8_e4m3fn),
        "fp8.weight_scale": torch.ones(16, 1),
        "nv.weight_packed": nibbles(codes),
        "nv.weight_scale": torch.ones(16, 4).to(torch.float8_e4m3fn),
        "nv.weight_global_scale": torch.tensor([3.0]),
        "oss_blocks": nibbles(codes).view(16, 2, 16),
        "oss_scales": torch.full((16, 2), 120, dtype=torch.uint8),
        **bitsandbytes_layer(codes, positions, "nf4", 64, **nested),
        **{k.replace("down_proj", "h0"): v for k, v in hqq_layer(3, 16, 64, 16, 0)[0].items()},
        **{k.replace("down_proj", "h1"): v for k, v in hqq_layer(4, 16, 64, 16, 1)[0].items()},
        **ours.state_dict("ours."),
    }


GOOD = good_layers()


def changed(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor gone, cut, turned, of other bits, of another dtype."""
    how = draw(
        st.sampled_from(["gone", "cut", "grown", "turned", "flat", "bits", "dtype", "empty"])
    )
    if how == "gone":
        return None
    if how == "cut" and tensor.dim() and len(tensor):
        return tensor[:-1]
    if how == "grown" and tensor.dim():
        return torch.cat([tensor, tensor])
    if how == "turned" and tensor.dim() > 1:
        return tensor.transpose(-1, -2)
    if how == "flat":
        return tensor.reshape(-1)
    if how == "dtype":
        return tensor.float().to(draw(st.sampled_from(DTYPES)))
    if how == "empty":
        return tensor.new_empty(0)
    fill = draw(st.sampled_from([0, 1, 127, 128, 254, 255]))
    same = torch.full((tensor.numel() * tensor.element_size(),), fill, dtype=torch.uint8)
    return same.view(tensor.dtype).reshape(tensor.shape)


@settings(max_examples=300)
@given(st.data())
def test_layers_that_were_right_but_for_something(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    layer = data.draw(st.sampled_from(sorted({layer_of(name) for name in GOOD})))
    tensors: dict[str, torch.Tensor] = {k: v for k, v in GOOD.items() if layer_of(k) == layer}
    name = data.draw(st.sampled_from(sorted(tensors)))
    value = data.draw(st.composite(lambda draw: changed(draw, tensors[name]))())
    kept = {k: v for k, v in {**tensors, name: value}.items() if v is not None}
    path = folder(tmp_path_factory.mktemp("good") / "m", kept, {"bits": 4, "num_bits": 5})
    opened = open_checkpoint(path)
    told = {part for weight in opened.weights.values() for part in weight.tensors}
    assert told | set(opened.plain) | set(opened.unknown) == set(kept)
    for found in opened.weights:
        try:
            read = opened.read(found)
        except TilewrightError as error:
            assert found in str(error) or name in str(error)
        else:
            assert not bool(read.dequantize().isnan().any())
            assert read.shape == opened.weights[found].shape


def layer_of(name: str) -> str:
    if name.startswith("model."):
        return name.split(".", 5)[4]
    return name.split(".", 1)[0].split("_", 1)[0]


def test_they_are_right_as_they_are(tmp_path: Path) -> None:
    opened = open_checkpoint(folder(tmp_path / "m", GOOD))
    assert len(opened.weights) == len({layer_of(name) for name in GOOD}) == 10
    assert not opened.problems and not opened.plain
    for name in opened.weights:
        assert bool(torch.isfinite(opened.read(name).dequantize()).all())


@given(st.data())
def test_any_onnx_bytes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    made = model(inputs(4, 4, 32, 16, "packed"), 4, 4, 32, 16)
    whole = bytearray(made.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path: Path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        opened = open_checkpoint(path)
        for name in (*opened.weights, *opened.plain):
            opened.read(name) if name in opened.weights else opened.tensor(name)
    except TilewrightError as error:
        assert str(error)


def test_weights_inside_branches(tmp_path: Path) -> None:
    """Nodes of the graphs inside nodes are found, too."""
    inner = model(inputs(4, 4, 32, 16, "default"), 4, 4, 32, 16).graph
    inner.ClearField("input")
    branch = helper.make_node("If", ["c"], ["Y"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [branch],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["M", 4])],
        [numpy_helper.from_array(np.ones(3, np.float32), "other")],
    )
    onnx.save(helper.make_model(graph), str(tmp_path / "m.onnx"))
    opened = open_checkpoint(tmp_path / "m.onnx")
    assert len(opened.weights) == 1 and opened.plain == ("other",)


FIELDS = ("dtype", "shape", "group", "axis", "layout", "zero_point", "tensor_scale", "scale_dtype")
NUMBERS = (None, 0, 1, -1, 3, 2**60, float("inf"), -0.5)
WORDS = (
    "",
    "u4",
    "nf4",
    "e8m0",
    "f8e4m3",
    "fields(4) lanes 16 group 32",
    "quads(2) lanes 0 group 2",
)
LISTS = ([], [4, 64], [-4, 64], [0, 0], [[4], 64], {"a": 1})
VALUES = st.sampled_from((*NUMBERS, *WORDS, *LISTS))


@pytest.mark.parametrize("form", ["form", "weight._extra_state"])
@given(changes=st.dictionaries(st.sampled_from((*FIELDS, "table")), VALUES, min_size=1, max_size=2))
def test_any_form_of_our_own(
    tmp_path_factory: pytest.TempPathFactory, form: str, changes: dict[str, object]
) -> None:
    ours = QuantizedTensor.from_float(torch.ones(4, 64), "u3", 32)
    prefix = f"l.{form.rpartition('.')[0]}.".replace("..", ".")
    state = ours.state_dict(prefix)
    text = json.dumps({**json.loads(bytes(state.pop(f"{prefix}form").tolist())), **changes})
    state[f"l.{form}"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    path = folder(tmp_path_factory.mktemp("form") / "m", state)
    opened = open_checkpoint(path)
    assert set(opened.weights) == {"l"}
    try:
        found = opened.read("l")
    except TilewrightError as error:
        assert "l" in str(error)
    else:
        assert found.dequantize().shape == opened.weights["l"].shape
