"""OpenVINO on the CPU: attention, compressed weights, exported functions and models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from tilewright.bench import machine
from tilewright.bench.suites.attention import Attention, Inputs
from tilewright.bench.suites.fused import Fused, Tensors
from tilewright.bench.suites.lowbit import GROUP, LowBit, Weights
from tilewright.bench.suites.models import Given as GivenModel
from tilewright.bench.suites.problem import Call, Form, NotOffered, Problem

BITS = (2, 4, 8)
Array = np.ndarray[Any, Any]


def attention(problem: Problem, inputs: Inputs) -> list[Form]:
    """Its operation takes as many heads of keys as of queries; bf16 is a hint, the tensors are
    f32."""
    case: Attention = problem.case
    if case.score:
        raise NotOffered("takes no function of scores")
    forms = [Form("scaled_dot_product_attention", partial(_attention, case, inputs))]
    share = case.heads // case.groups
    if case.queries == 1 and share > 1:  # the heads of a group as queries of one head
        q, k, v = inputs
        packed = replace(case, queries=share, heads=case.groups)
        given = q.reshape(1, case.groups, share, case.head), k, v
        shape = q.shape
        forms.append(
            Form(
                "packed heads",
                partial(_attention, packed, given),
                lambda result: torch.as_tensor(result).reshape(shape),
            )
        )
    return forms


def _attention(case: Attention, inputs: Inputs) -> Call:
    import openvino as ov
    from openvino import opset13 as op

    given = [x.float().numpy() for x in inputs]
    parameters = [op.parameter(x.shape, ov.Type.f32) for x in given]
    q, k, v = parameters
    share = case.heads // case.groups
    if share > 1:  # each head of keys beside itself: what its own models do
        k, v = (_repeated(x, case, share) for x in (k, v))
    options: dict[str, Any] = {"causal": case.causal}
    if case.function is not None:
        rows, columns = torch.arange(case.queries)[:, None], torch.arange(case.keys)
        mask = case.function(case.keys)(0, 0, rows, columns).numpy()
        options["attention_mask"] = op.constant(mask)
    result = op.scaled_dot_product_attention(q, k, v, **options)
    return _call(ov.Model([result], parameters), given, bf16=case.dtype == "bf16")


def _repeated(x: Any, case: Attention, share: int) -> Any:
    from openvino import opset13 as op

    wide = op.broadcast(
        op.unsqueeze(x, op.constant(np.array(2))),
        op.constant(np.array([1, case.groups, share, case.keys, case.head])),
    )
    shape = op.constant(np.array([1, case.heads, case.keys, case.head]))
    return op.reshape(wide, shape, False)


def lowbit(problem: Problem, inputs: Weights) -> list[Form]:
    """Weights decompressed inside the product: codes, less the zero, times the scale."""
    case: LowBit = problem.case
    if case.bits not in BITS:
        raise NotOffered(f"has no product with {case.bits}-bit weights")
    return [Form(f"u{case.bits} weights, {case.activation}", partial(_product, case, inputs))]


def _product(case: LowBit, inputs: Weights) -> Call:
    import openvino as ov
    from openvino import opset13 as op

    groups = case.inner // GROUP
    shape = [case.outputs, groups, GROUP]
    kind = {2: ov.Type.u2, 4: ov.Type.u4, 8: ov.Type.u8}[case.bits]
    drawn, given = inputs.arrays()
    stored = _packed(drawn, case.bits)
    middle = _packed(np.full((1, 1), inputs.zero, np.uint8), case.bits)
    scales = given.reshape(case.outputs, groups, 1).astype(np.float16)
    codes = op.constant(ov.Tensor(stored, ov.Shape(shape), kind))
    zero = op.constant(ov.Tensor(middle, ov.Shape([1, 1, 1]), kind))
    scale = op.constant(scales)
    centred = op.subtract(op.convert(codes, "f16"), op.convert(zero, "f16"))
    flat = op.constant(np.array([case.outputs, case.inner]))
    weight = op.convert(op.reshape(op.multiply(centred, scale), flat, False), "f32")
    x = op.parameter([case.rows, case.inner], ov.Type.f32)
    result = op.matmul(x, weight, False, True)
    more = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP if case.activation == "int8" else 0)}
    return _call(ov.Model([result], [x]), [inputs.x.numpy(), stored, middle, scales], more=more)


def _packed(codes: Array, bits: int) -> Array:
    """Bytes of codes, the first in the lowest bits."""
    flat, per_byte = codes.reshape(-1), 8 // bits
    parts = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    stored = np.zeros(len(parts), np.uint8)
    for at in range(per_byte):
        stored |= parts[:, at] << np.uint8(bits * at)
    return stored


def fused(problem: Problem, inputs: Tensors) -> list[Form]:
    case: Fused = problem.case

    class Module(torch.nn.Module):
        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            return case.function(*given)

    return [Form("converted", partial(_converted, Module(), inputs))]


def models(problem: Problem, inputs: GivenModel) -> list[Form]:
    """A prompt without a cache. With one, its models keep a state of their own, which others do not
    have to carry: no fair comparison, so none is made."""
    if inputs.past:
        raise NotOffered("keeps keys and values in a state of its own")

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = inputs.model

        def forward(self, ids: torch.Tensor) -> Any:
            return self.model(ids, use_cache=False).logits

    return [Form("converted", partial(_converted, Module(), (inputs.ids,)))]


def _converted(module: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> Call:
    """Converted by way of torch.export or a trace, with the shapes of the inputs."""
    import openvino as ov

    shapes = [ov.PartialShape(list(x.shape)) for x in inputs]
    model = ov.convert_model(module.eval(), example_input=tuple(inputs), input=shapes)
    return _call(model, [x.numpy() for x in inputs])


def _call(
    model: Any,
    given: Sequence[np.ndarray[Any, Any]],
    bf16: bool = False,
    more: dict[str, str] | None = None,
) -> Callable[[], Any]:
    """Results in the request's own memory: shared, not copied, as its fastest loops do. ``given``
    are the inputs and whatever constants are made of, since OpenVINO keeps no reference to an
    array."""
    import openvino as ov

    options = {
        "INFERENCE_NUM_THREADS": str(machine.THREADS),
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        **(more or {}),
    }
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
    arrays = [np.ascontiguousarray(value) for value in given]
    for at in range(len(request.model_inputs)):
        request.set_input_tensor(at, ov.Tensor(arrays[at], shared_memory=True))

    def call() -> Any:
        assert arrays
        request.infer()
        return request.get_output_tensor(0).data

    return call


OFFERS = {"openvino": {"attention": attention, "lowbit": lowbit, "fused": fused, "models": models}}
