"""Peers of products with quantised weights, with the same codes and scales as ours: sessions of
onnxruntime's MatMulNBits, torch's int4 product for bf16. Found at run time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Product = Callable[[torch.Tensor], Any]


def has_onnxruntime() -> bool:
    """Whether onnxruntime and onnx, which writes its models, are installed."""
    return all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnx"))


def packed_bytes(codes: np.ndarray[Any, Any], bits: int, group: int) -> np.ndarray[Any, Any]:
    """Codes [N, K] as MatMulNBits keeps them: uint8 [N, groups, group * bits / 8], first code in
    the lowest bits of a byte."""
    rows, length = codes.shape
    per_byte = 8 // bits
    parts = codes.reshape(rows, length // per_byte, per_byte)
    out = np.zeros(parts.shape[:2], np.uint8)
    for at in range(per_byte):
        out |= parts[:, :, at] << np.uint8(bits * at)
    return out.reshape(rows, length // group, group * bits // 8)


def matmul_nbits(
    codes: np.ndarray[Any, Any],
    scales: np.ndarray[Any, Any],
    bits: int,
    *,
    accuracy_level: int,
    threads: int,
) -> Product:
    """A session of one MatMulNBits node: codes [N, K], scales [N, groups] f32, zero 2**(bits-1);
    accuracy_level 4 rounds activations to int8, 0 keeps them in f32."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, length = codes.shape
    group = length // scales.shape[1]
    node = helper.make_node(
        "MatMulNBits",
        ["A", "B", "scales"],
        ["Y"],
        domain="com.microsoft",
        K=length,
        N=rows,
        bits=bits,
        block_size=group,
        accuracy_level=accuracy_level,
    )
    stored = numpy_helper.from_array(packed_bytes(codes, bits, group), "B")
    beside = numpy_helper.from_array(scales.reshape(-1).astype(np.float32), "scales")
    given = helper.make_tensor_value_info("A", TensorProto.FLOAT, ["M", length])
    out = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["M", rows])
    graph = helper.make_graph([node], "product", [given], [out], [stored, beside])
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # its threads spin while a product runs, but not into the other side's turn
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(None, {"A": x.numpy()})[0]


def torch_int4(codes: torch.Tensor, scales: torch.Tensor, tiles: int = 8) -> Product:
    """torch's own product of bf16 with 4-bit weights: codes uint8 [N, K], scales [N, groups], zero
    8. On a GPU so many ``tiles`` of k, 2, 4 or 8, lie beside each other (tinygemm)."""
    rows, length = codes.shape
    group = length // scales.shape[1]
    beside = torch.zeros(length // group, rows, 2, dtype=torch.bfloat16, device=codes.device)
    beside[:, :, 0] = scales.T
    if codes.is_cuda:
        packed = torch._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], tiles)
        return lambda x: torch._weight_int4pack_mm(x, packed, group, beside)
    packed = torch._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    return lambda x: torch._weight_int4pack_mm_for_cpu(x, packed, group, beside)
