"""MatMulNBits: equal to what onnxruntime computes with the node and an identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tilewright.frontend.checkpoints import open_checkpoint
from tilewright.ir.errors import DataError

Array = npt.NDArray[Any]
NAME = "model.layers.0.attn.q_proj.MatMul.weight_Q4"


def inputs(
    bits: int, rows: int, length: int, block: int, zeros: str, seed: int = 0
) -> dict[str, Array]:
    """Random B, scales and zero points.

    With float zeros onnxruntime computes code * scale - zero * scale; scales are f16 numbers then,
    with which f32 products are exact.
    """
    generator = np.random.default_rng(seed)
    blocks = -(-length // block)
    made: dict[str, Array] = {
        NAME: generator.integers(0, 256, (rows, blocks, block * bits // 8), dtype=np.uint8),
        "scales": generator.uniform(0.1, 1, (rows, blocks)).astype(np.float32),
    }
    if zeros == "packed":
        shape = (rows, -(-blocks * bits // 8))
        made["zero_points"] = generator.integers(0, 256, shape, dtype=np.uint8)
    elif zeros == "float":
        numbers = generator.integers(0, 1 << bits, (rows, blocks)) + 0.25
        made["zero_points"] = numbers.astype(np.float32)
        made["scales"] = made["scales"].astype(np.float16).astype(np.float32)
    return made


def model(
    given: dict[str, Array], bits: int, rows: int, length: int, block: int
) -> onnx.ModelProto:
    names = ["A", *given]
    node = helper.make_node(
        "MatMulNBits",
        names,
        ["Y"],
        name="/q_proj",
        domain="com.microsoft",
        **{"K": length, "N": rows, "bits": bits, "block_size": block},
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, ["M", length])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["M", rows])],
        [numpy_helper.from_array(array, name) for name, array in given.items()],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def computed(made: onnx.ModelProto, length: int) -> Array:
    """The node's weight [N, K]: its result for the rows of an identity."""
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    result: Array = session.run(None, {"A": np.eye(length, dtype=np.float32)})[0]
    return result.T


KINDS = [(bits, zeros) for bits in (2, 4, 8) for zeros in ("default", "packed", "float")]
KINDS.remove((8, "float"))  # onnxruntime does not run it


@pytest.mark.parametrize(("bits", "zeros"), KINDS)
@pytest.mark.parametrize(("rows", "length", "block"), [(16, 128, 32), (5, 96, 64), (8, 64, 16)])
def test_equal_to_onnxruntime(
    tmp_path: Path, bits: int, zeros: str, rows: int, length: int, block: int
) -> None:
    given = inputs(bits, rows, length, block, zeros)
    made = model(given, bits, rows, length, block)
    onnx.save(made, str(tmp_path / "m.onnx"))
    opened = open_checkpoint(tmp_path / "m.onnx")
    weight = opened.weights[NAME]
    assert (weight.dtype, weight.shape, weight.group) == (f"u{bits}", (rows, length), block)
    assert not opened.plain and not opened.problems
    expected = computed(made, length)
    np.testing.assert_array_equal(opened.read(NAME).dequantize().numpy(), expected)


def test_f16_scales_one_axis_and_columns_by_their_blocks(tmp_path: Path) -> None:
    given = inputs(4, 8, 64, 32, "default")
    index = np.random.default_rng(1).permutation(64).astype(np.int32) // 32
    codes = np.stack([given[NAME] & 15, given[NAME] >> 4], -1).reshape(8, 64)
    scales = given["scales"].astype(np.float16)
    expected = (codes - 8.0) * scales[:, index].astype(np.float32)
    given["scales"] = scales.reshape(-1)
    given = {**given, "": np.zeros(0, np.float32), "g_idx": index}
    made = model(given, 4, 8, 64, 32)
    onnx.save(made, str(tmp_path / "m.onnx"))
    found = open_checkpoint(tmp_path / "m.onnx").read(NAME)
    np.testing.assert_array_equal(found.dequantize().numpy(), expected)


def test_data_beside_the_file(tmp_path: Path) -> None:
    given = inputs(4, 16, 128, 32, "packed")
    made = model(given, 4, 16, 128, 32)
    expected = computed(made, 128)
    options = {"save_as_external_data": True, "location": "m.data", "size_threshold": 0}
    onnx.save(made, str(tmp_path / "m.onnx"), **options)
    assert (tmp_path / "m.data").stat().st_size
    found = open_checkpoint(tmp_path).read(NAME)
    np.testing.assert_array_equal(found.dequantize().numpy(), expected)
    with (tmp_path / "m.data").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DataError, match=f"{NAME} as U8 .* must take 1024 bytes of its 100"):
        open_checkpoint(tmp_path).read(NAME)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "", "..\\x"])
def test_data_outside_the_folder_are_not_read(tmp_path: Path, location: str) -> None:
    made = model(inputs(4, 16, 128, 32, "default"), 4, 16, 128, 32)
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (tmp_path / "m").mkdir()
    (tmp_path / "secret").write_bytes(bytes(1024))
    (tmp_path / "m" / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(DataError, match="must lie in a file within"):
        open_checkpoint(tmp_path / "m").read(NAME)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 24}, "a block_size of 16, 32, 64"),
        ({"N": 17}, rf"{NAME} must be U8 \[17, 4, 16\]"),
        ({"K": 10**15}, rf"{NAME} must be U8 \[16, "),
        ({"bits": 3}, "codes of 3 bits; 2, 4 and 8 are read"),
    ],
)
def test_what_does_not_fit_is_reported(
    tmp_path: Path, change: dict[str, int], message: str
) -> None:
    made = model(inputs(4, 16, 128, 32, "default"), 4, 16, 128, 32)
    for attribute in made.graph.node[0].attribute:
        attribute.i = change.get(attribute.name, attribute.i)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    opened = open_checkpoint(tmp_path / "m.onnx")
    with pytest.raises(DataError, match=message):
        opened.read(NAME)


def test_scales_that_are_short_or_not_finite(tmp_path: Path) -> None:
    given = inputs(4, 16, 128, 32, "default")
    for scales, message in (
        (np.ones((16, 3), np.float32), "scales must have 64 elements"),
        (np.full((16, 4), np.nan, np.float32), "scales must hold finite scales; 64 of 64"),
    ):
        made = model({**given, "scales": scales}, 4, 16, 128, 32)
        (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
        with pytest.raises(DataError, match=message):
            open_checkpoint(tmp_path / "m.onnx").read(NAME)


def test_what_is_no_onnx(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(DataError, match="must be an ONNX model"):
        open_checkpoint(path)
