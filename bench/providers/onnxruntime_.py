"""ONNX Runtime on the CPU: MatMulNBits, and operators of the standard for attention and rows."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from tilewright.bench import machine
from tilewright.bench.lowbit_peers import matmul_nbits
from tilewright.bench.suites.attention import Attention, Inputs
from tilewright.bench.suites.fused import Fused, Tensors
from tilewright.bench.suites.lowbit import LowBit, Weights
from tilewright.bench.suites.problem import Call, Form, NotOffered, Problem

BITS = (2, 4, 8)


def attention(problem: Problem, inputs: Inputs) -> list[Form]:
    """The standard's Attention, and the MultiHeadAttention of its own, which has a fused kernel."""
    case: Attention = problem.case
    if case.score:
        raise NotOffered("takes no function of scores")
    if case.dtype != "f32":
        raise NotOffered(f"has no attention in {case.dtype} on the CPU")
    forms = [Form("Attention", partial(_standard, case, inputs))]
    if case.heads == case.groups and case.function is None and case.queries == case.keys:
        forms.append(Form("MultiHeadAttention", partial(_own, case, inputs), _heads(case)))
    return forms


def _standard(case: Attention, inputs: Inputs) -> Call:
    from onnx import TensorProto, helper

    names = ["q", "k", "v"]
    given = dict(zip(names, (x.numpy() for x in inputs), strict=True))
    if case.function is not None:
        rows, columns = torch.arange(case.queries)[:, None], torch.arange(case.keys)
        given["mask"] = case.function(case.keys)(0, 0, rows, columns).numpy()
    node = helper.make_node("Attention", list(given), ["y"], is_causal=int(case.causal))
    shapes = [
        helper.make_tensor_value_info(
            name, TensorProto.BOOL if name == "mask" else TensorProto.FLOAT, value.shape
        )
        for name, value in given.items()
    ]
    return _call(_model([node], shapes, tuple(inputs[0].shape), {"": 23}), given)


def _own(case: Attention, inputs: Inputs) -> Call:
    from onnx import TensorProto, helper

    def rows(x: torch.Tensor) -> Any:
        return x.transpose(1, 2).reshape(1, x.shape[2], -1).contiguous().numpy()

    given = {name: rows(x) for name, x in zip("qkv", inputs, strict=True)}
    node = helper.make_node(
        "MultiHeadAttention",
        list(given),
        ["y"],
        domain="com.microsoft",
        num_heads=case.heads,
        unidirectional=int(case.causal),
    )
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
        for name, value in given.items()
    ]
    return _call(_model([node], shapes, given["q"].shape, {"": 17, "com.microsoft": 1}), given)


def _heads(case: Attention) -> Callable[[Any], torch.Tensor]:
    """[1, N, H * D] as [1, H, N, D]."""

    def read(result: Any) -> torch.Tensor:
        found = torch.as_tensor(result).view(1, case.queries, case.heads, case.head)
        return found.transpose(1, 2)

    return read


def lowbit(problem: Problem, inputs: Weights) -> list[Form]:
    case: LowBit = problem.case
    if case.bits not in BITS:
        raise NotOffered(f"has no product with {case.bits}-bit weights")
    level = 4 if case.activation == "int8" else 0

    def make() -> Call:
        product = matmul_nbits(
            *inputs.arrays(),
            case.bits,
            accuracy_level=level,
            threads=machine.THREADS,
        )
        return partial(product, inputs.x)

    return [Form(f"MatMulNBits, accuracy level {level}", make)]


def fused(problem: Problem, inputs: Tensors) -> list[Form]:
    """The function as torch exports it, with all of ONNX Runtime's fusions."""
    case: Fused = problem.case
    return [Form("exported", partial(_exported, case, inputs))]


def _exported(case: Fused, inputs: Tensors) -> Call:
    class Module(torch.nn.Module):
        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            return case.function(*given)

    written = io.BytesIO()
    names = [f"x{at}" for at in range(len(inputs))]
    export: Any = torch.onnx.export  # its annotation knows no file in memory
    export(Module(), inputs, written, input_names=names, dynamo=False, opset_version=17)
    given = dict(zip(names, (x.numpy() for x in inputs), strict=True))
    return _call(written.getvalue(), given)


def _model(
    nodes: list[Any], inputs: list[Any], result: tuple[int, ...], sets: dict[str, int]
) -> bytes:
    from onnx import TensorProto, helper

    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, result)
    graph = helper.make_graph(nodes, "problem", inputs, [out])
    opsets = [helper.make_opsetid(domain, number) for domain, number in sets.items()]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return made


def _call(model: bytes, given: dict[str, np.ndarray[Any, Any]]) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = machine.THREADS
    # its threads spin while a call runs, but not into another provider's turn
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, given)[0]


OFFERS = {"onnxruntime": {"attention": attention, "lowbit": lowbit, "fused": fused}}
