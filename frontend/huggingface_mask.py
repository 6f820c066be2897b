"""What transformers gets as a mask: its own mask function, to be traced, instead of a tensor.

It goes through a model unread, and the attention function gets it back. Offsets of the cache are
tensors in it, so that no decode step needs a new trace. Code that reads it gets the tensor that
"eager" would have got.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.masking_utils import (
    causal_mask_function,
    eager_mask,
    prepare_padding_mask,
    sdpa_mask,
)

from tilewright.frontend.attention.function_mask import FunctionMask, MaskFunction
from tilewright.frontend.attention.symbols import known_nonnegative


def function_mask(  # noqa: PLR0913, PLR0917  (transformers' signature)
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int | torch.Tensor = 0,
    mask_function: MaskFunction = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **options: Any,
) -> FunctionMask | torch.Tensor | None:
    """transformers' mask function for our attention: None where every key is seen, else a
    FunctionMask; under torch.compile the tensor of "eager", which our backend knows. Causality is
    said by the mask, never left to a flag of the module: not all models keep theirs right."""
    sizes = {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length}
    given: dict[str, Any] = {**sizes, **options}
    given |= {"mask_function": mask_function, "attention_mask": attention_mask}
    if torch.compiler.is_compiling():
        given |= {"q_offset": q_offset, "kv_offset": kv_offset, "local_size": local_size}
        tensor: torch.Tensor | None = _eager_mask(
            **given, allow_is_bidirectional_skip=allow_is_bidirectional_skip
        )
        return tensor
    first_query, first_key = int(q_offset), int(kv_offset)
    padding = prepare_padding_mask(attention_mask, kv_length, first_key)
    if padding is not None and bool(padding.all()):
        padding = None
    # one query after all keys sees them all; queries of all keys are causal by their places
    ends_together = first_query + q_length == first_key + kv_length
    by_place = ends_together and q_length in (1, kv_length) and local_size is None
    causal = padding is None and allow_is_causal_skip and by_place
    if causal and q_length == 1:
        return None
    short = local_size is None or kv_length < local_size
    if padding is None and allow_is_bidirectional_skip and short:
        return None
    cut = None if padding is None else padding[:, first_key : first_key + kv_length]
    # numbers in tensors, so that a decode step is the same function with other tensors; copies,
    # because static caches change their own offset while the model runs
    function = shifted(mask_function, torch.tensor(first_query), torch.tensor(first_key), cut)
    given |= {"q_offset": first_query, "kv_offset": first_key, "allow_is_causal_skip": False}
    sizes_of_mask = batch_size, q_length, kv_length
    dtype, device = options.get("dtype", torch.float32), torch.device(options.get("device", "cpu"))
    return FunctionMask(function, sizes_of_mask, lambda: _sdpa_mask(**given), dtype, device, causal)


_sdpa_mask: Callable[..., Any] = sdpa_mask
_eager_mask: Callable[..., Any] = eager_mask


def shifted(
    mask_function: MaskFunction,
    q_offset: torch.Tensor,
    kv_offset: torch.Tensor,
    padding: torch.Tensor | None,
) -> MaskFunction:
    """The mask at positions of the cache; ``padding`` [B, M] is cut to the keys that are there."""

    def inner(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        row, column = known_nonnegative(q_idx + q_offset), known_nonnegative(kv_idx + kv_offset)
        return mask_function(b, h, row, column)

    def padded(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return inner(b, h, q_idx, kv_idx) & padding[b, kv_idx]  # type: ignore[index]

    return inner if padding is None else padded
