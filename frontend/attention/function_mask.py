"""A mask as a function that goes through a model as a tensor, and becomes one where it is read.

Models hand masks on unread, most of them; some take rows of theirs, fold what they chose into
them, or add them to scores. Those get the values, whatever way they read them: all that a wrapper
does is to wait. The values are eager attention's, numbers to be added to scores: what adds a mask
is written for those, and what can be given bools asks for the dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from tilewright.frontend.attention.closure import Closure
from tilewright.frontend.attention.plans import closure_of

MaskFunction = Callable[..., Any]
NO_FUNCTIONS = closure_of(None, None)


class FunctionMask(torch.Tensor):
    """A mask [B, 1, N, M] as a function, computed when an operation first reads it.

    ``causal``: it is the plain causal mask, which kernels have built in; nothing is traced then.
    """

    function: MaskFunction
    closure: Closure
    lengths: tuple[int, int]
    causal: bool
    allowed: Callable[[], torch.Tensor]
    _made: torch.Tensor | None

    def __new__(
        cls,
        function: MaskFunction,
        sizes: tuple[int, int, int],
        allowed: Callable[[], torch.Tensor],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        causal: bool = False,
    ) -> FunctionMask:
        """``sizes`` are B, N and M; ``allowed`` makes the bool tensor of what may be seen."""
        batch, queries, keys = sizes
        made: FunctionMask = torch.Tensor._make_wrapper_subclass(
            cls, (batch, 1, queries, keys), dtype=dtype, device=device
        )
        made.function = function
        made.closure = NO_FUNCTIONS if causal else closure_of(None, function)
        made.lengths = (queries, keys)
        made.causal = causal
        made.allowed = allowed
        made._made = None
        return made

    def to_dense(self, *_: Any, **__: Any) -> torch.Tensor:
        """The plain tensor, made when first asked for: 0 where a key may be seen, else the lowest
        number."""
        if self._made is None:
            zero = torch.zeros((), dtype=self.dtype, device=self.device)
            self._made = torch.where(self.allowed(), zero, torch.finfo(self.dtype).min)
        return self._made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"FunctionMask({getattr(self.function, '__qualname__', self.function)})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Whatever reads it reads the plain tensor."""
        plain = tree_map_only(
            FunctionMask, FunctionMask.to_dense, (tuple(args), dict(kwargs or {}))
        )
        return func(*plain[0], **plain[1])
