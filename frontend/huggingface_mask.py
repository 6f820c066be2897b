"""What transformers gets as a mask: its own mask function, to be traced, instead of a tensor.

As flex attention's BlockMask does, the object goes through a model unread; the attention function
gets it back. Offsets of the cache are tensors in it, so that no decode step needs a new trace. Code
that reads it like a tensor gets the tensor that "sdpa" would have got.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers.masking_utils import causal_mask_function, prepare_padding_mask, sdpa_mask

from tilewright.frontend.attention.closure import Closure
from tilewright.frontend.attention.plans import closure_of
from tilewright.frontend.attention.symbols import known_nonnegative

MaskFunction = Callable[..., Any]


class FunctionMask(BlockMask):
    """A mask [B, 1, N, M] as a function; a BlockMask to those who ask, without any blocks."""

    def __init__(
        self, function: MaskFunction, shape: tuple[int, int], dense: Callable[[], torch.Tensor]
    ) -> None:
        self.function = function
        self.closure: Closure = closure_of(None, function)
        self.lengths = shape
        self._dense = dense
        self._tensor: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.to_dense().shape) if self._tensor is not None else (1, 1, *self.lengths)

    @property
    def ndim(self) -> int:
        return 4

    def to_dense(self) -> torch.Tensor:
        """The bool tensor [B, 1, N, M], made when first asked for."""
        if self._tensor is None:
            self._tensor = self._dense()
        return self._tensor

    def to(self, *_target: Any, **_options: Any) -> FunctionMask:
        return self

    def __getitem__(self, index: Any) -> Any:
        return self.to_dense()[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.to_dense(), name)

    def __repr__(self) -> str:
        return f"FunctionMask({getattr(self.function, '__qualname__', self.function)})"

    __str__ = __repr__

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """torch.cat and the like get the tensor."""
        plain = _dense_in(kwargs or {})
        return func(*_dense_in(tuple(args)), **plain)


def _dense_in(x: Any) -> Any:
    if isinstance(x, FunctionMask):
        return x.to_dense()
    if isinstance(x, tuple | list):
        return type(x)(_dense_in(y) for y in x)
    if isinstance(x, dict):
        return {key: _dense_in(y) for key, y in x.items()}
    return x


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
    """transformers' mask function for our attention: None where nothing needs a mask, else a
    FunctionMask; under torch.compile the tensor of "sdpa", which our backend knows."""
    sizes = {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length}
    given: dict[str, Any] = {**sizes, **options}
    given |= {"mask_function": mask_function, "attention_mask": attention_mask}
    if torch.compiler.is_compiling():
        given |= {"q_offset": q_offset, "kv_offset": kv_offset, "local_size": local_size}
        given["allow_is_causal_skip"] = allow_is_causal_skip
        tensor: torch.Tensor | None = _sdpa_mask(
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
    if padding is None and allow_is_causal_skip and by_place:
        return None
    short = local_size is None or kv_length < local_size
    if padding is None and allow_is_bidirectional_skip and short:
        return None
    cut = None if padding is None else padding[:, first_key : first_key + kv_length]
    # numbers in tensors, so that a decode step is the same function with other tensors; copies,
    # because static caches change their own offset while the model runs
    function = shifted(mask_function, torch.tensor(first_query), torch.tensor(first_key), cut)
    given |= {"q_offset": first_query, "kv_offset": first_key, "allow_is_causal_skip": False}
    return FunctionMask(function, (q_length, kv_length), lambda: _sdpa_mask(**given))


_sdpa_mask: Callable[..., Any] = sdpa_mask


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
