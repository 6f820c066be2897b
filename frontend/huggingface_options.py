"""What attention calls of transformers bring along that its "sdpa" ignores, too.

Sparse models fold the keys that they chose into the mask for "eager" and "sdpa" only, and hand the
choice to any other implementation. And a model's own eager attention may take what no
implementation knows. Ignoring either would be another model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tilewright.frontend.attention.function_mask import FunctionMask
from tilewright.ir.errors import UnsupportedError

Attention = Callable[..., tuple[torch.Tensor, Any]]
# ours by name, or in the mask that we get
_KNOWN = {"module", "query", "key", "value", "attention_mask", "scaling", "dropout", "is_causal"}
_KNOWN |= {"sliding_window", "softcap", "s_aux", "position_bias"}


def with_chosen_keys(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    options: Mapping[str, Any],
) -> torch.Tensor | None:
    """``mask``, without the keys that a query did not choose; ``causal`` says what None means.

    ``indices`` [b, n, k] are keys; ``block_indices`` [b, heads of the indexer, n, k] blocks of
    them, -1 for none.
    """
    chosen = _chosen(module, query, key, options)
    if chosen is None:
        return mask
    if mask is None:
        return chosen & causal_mask(query, key) if causal else chosen
    if isinstance(mask, FunctionMask):
        return mask.allowed() & chosen
    if mask.dtype == torch.bool:
        return mask & chosen
    return mask.masked_fill(~chosen, torch.finfo(mask.dtype).min)


def _chosen(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, options: Mapping[str, Any]
) -> torch.Tensor | None:
    """bool [b, 1 or h, n, m]; None if all keys may be seen."""
    keys = key.shape[2]
    if options.get("indices") is not None:
        return _marked(options["indices"], keys).unsqueeze(1)
    blocks = options.get("block_indices")
    if blocks is None:
        return None
    size = getattr(getattr(module, "indexer", None), "block_size", None)
    if size is None:
        raise UnsupportedError(
            f"{type(module).__name__} chose blocks of keys and does not say how large they are; "
            'use model.set_attn_implementation("eager")'
        )
    marked = _marked(blocks, -(-keys // size)).repeat_interleave(size, dim=-1)[..., :keys]
    return marked.repeat_interleave(query.shape[1] // blocks.shape[1], dim=1)


def _marked(places: torch.Tensor, size: int) -> torch.Tensor:
    """bool [..., size]: True at the places [..., k]. Negative ones go to a column that is cut."""
    places = places.long().masked_fill(places < 0, size)
    marked = places.new_zeros((*places.shape[:-1], size + 1), dtype=torch.bool)
    return marked.scatter(-1, places, True)[..., :size]


def causal_mask(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """bool [n, m]: True where a query sees a key by their places."""
    size = query.shape[2], key.shape[2]
    return torch.ones(size, dtype=torch.bool, device=query.device).tril()


def own_attention(
    module: torch.nn.Module, options: Mapping[str, Any]
) -> tuple[str, Attention] | None:
    """What the model's own eager attention is given that we do not know, and that function."""
    function = getattr(sys.modules.get(type(module).__module__), "eager_attention_forward", None)
    if function is None:
        return None
    code = function.__code__  # no cache of it: Dynamo goes through here, too, and warns of those
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    given = [name for name in names if name not in _KNOWN and options.get(name) is not None]
    if not given:
        return None
    what = f"{', '.join(given)} of {type(module).__name__}"
    return f"only the model's own attention knows {what}", function


def added(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, causal: bool
) -> torch.Tensor | None:
    """The mask as eager attention wants it: numbers that are added to scores."""
    if mask is None and causal:
        mask = causal_mask(query, key)
    if mask is None or mask.dtype != torch.bool:
        return mask
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    return torch.where(mask, zero, torch.finfo(query.dtype).min)


def of_dtype(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """The mask as sdpa wants it, which under autocast is not what the model made: bools, or numbers
    of the query's dtype. The lowest number stays finite, lest rows without any key become NaN."""
    if mask is None or mask.dtype in (torch.bool, dtype):
        return mask
    return mask.clamp(min=torch.finfo(dtype).min).to(dtype)
