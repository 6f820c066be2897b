"""Hugging Face models without torch.compile: ``attn_implementation="tilewright"``.

``register_attention()`` adds the name to transformers; each attention then calls a kernel directly.
transformers is imported only there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from tilewright.frontend.op_map.attention import attend
from tilewright.frontend.op_map.emitter import ONE, Emitter
from tilewright.frontend.programs import ProgramLike, shared_program
from tilewright.frontend.region_call import refusal
from tilewright.frontend.torch_dtypes import has_ir_dtype, ir_dtype
from tilewright.ir.core import Graph, Module, Region, Value, size_names
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType

FALLBACKS: Counter[str] = Counter()  # why attention ran in torch instead, and how often
_OTHER_MEANINGS = ("softcap", "position_bias", "s_aux", "cache")  # what our kernel does not do


@dataclass(frozen=True)
class AttentionKind:
    """Everything that one program is compiled for; batch, heads and lengths stay free.

    ``mask_ones`` says which of the mask's four dimensions broadcast; empty: no mask.
    """

    dtype: torch.dtype
    groups: int
    widths: tuple[int, int]
    scale: float | None
    causal: bool
    mask_dtype: torch.dtype | None = None
    mask_ones: tuple[bool, ...] = ()


def attention_module(kind: AttentionKind) -> Module:
    """query [B, G*K, N, D], key [B, K, M, D], value [B, K, M, E], mask -> [B, N, G*K, E]."""
    batch, heads, rows, columns = (Size.of(name) for name in ("B", "K", "N", "M"))
    dtype, (inner, outer) = ir_dtype(kind.dtype), kind.widths
    query = Value(TensorType.of((batch, heads * kind.groups, rows, inner), dtype), "query")
    key = Value(TensorType.of((batch, heads, columns, inner), dtype), "key")
    value = Value(TensorType.of((batch, heads, columns, outer), dtype), "value")
    parameters = [query, key, value]
    if kind.mask_dtype is not None:
        whole = (batch, heads * kind.groups, rows, columns)
        sizes = [ONE if one else s for one, s in zip(kind.mask_ones, whole, strict=True)]
        parameters.append(Value(TensorType.of(sizes, ir_dtype(kind.mask_dtype)), "mask"))
    e = Emitter()
    result = attend(e, *parameters, causal=kind.causal, scale=kind.scale)
    result = e.transpose(result, (0, 2, 1, 3))
    names = size_names((batch, heads, rows, columns))
    body = Region(tuple(parameters), tuple(e.builder.ops), (result,))
    return Module((Graph("graph", "attention", names, body),))


_programs: dict[AttentionKind, ProgramLike | str] = {}


def program_for(kind: AttentionKind) -> ProgramLike | str:
    """The program, or why there is none."""
    if kind not in _programs:
        try:
            _programs[kind] = shared_program(attention_module(kind), None)
        except UnsupportedError as error:
            _programs[kind] = f"no kernel could be made: {error}"
    return _programs[kind]


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: [b, h, n, d] in, [b, n, h, e] out.

    Anything that is not plain attention on CPU tensors without gradients goes to transformers' own
    sdpa function; ``FALLBACKS`` counts the reasons.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    inputs = (query, key, value) if attention_mask is None else (query, key, value, attention_mask)
    reason = "traced by torch.compile" if torch.compiler.is_compiling() else _other(inputs, options)
    if reason is None:
        program = program_for(_kind(module, inputs, options))
        if not isinstance(program, str):
            return program(*inputs)[0], None
        reason = program
    FALLBACKS[reason] += 1
    result: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **options
    )
    return result


def _other(inputs: tuple[torch.Tensor, ...], options: dict[str, Any]) -> str | None:
    """Why our kernel must not be used; None if it may."""
    if options.get("dropout"):
        return "dropout while training stays with torch; call .eval()"
    for name in _OTHER_MEANINGS:
        if options.get(name) is not None:
            return f"{name} is not supported by this attention"
    if not all(has_ir_dtype(x.dtype) and x.dim() == 4 for x in inputs):
        return "inputs must have four dimensions and a dtype that the IR knows"
    if len({x.dtype for x in inputs[:3]}) > 1 or inputs[0].shape[1] % inputs[1].shape[1]:
        return "query, key and value must have one dtype, and query a multiple of key's heads"
    return refusal(inputs)


def _kind(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], options: dict[str, Any]
) -> AttentionKind:
    query, key, value, *masks = inputs
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    return AttentionKind(
        dtype=query.dtype,
        groups=query.shape[1] // key.shape[1],
        widths=(query.shape[3], value.shape[3]),
        scale=options.get("scaling"),
        causal=bool(causal) and query.shape[2] > 1 and not masks,
        mask_dtype=masks[0].dtype if masks else None,
        mask_ones=tuple(size == 1 for size in masks[0].shape) if masks else (),
    )


def register_attention(name: str = "tilewright") -> None:
    """Makes ``attn_implementation=name`` known to transformers, with masks as for "sdpa"."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, sdpa_mask)
