"""A region at run time: calls its program, or torch where a kernel must not or cannot be used."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch._C import _functorch

from tilewright.frontend.build import Order
from tilewright.frontend.looked_up import LookUps
from tilewright.frontend.options import Options
from tilewright.frontend.programs import ProgramLike, shared_program
from tilewright.frontend.verify import check_against
from tilewright.ir.core import Module
from tilewright.ir.errors import (
    BackendMissingError,
    FallbackError,
    Location,
    TargetError,
    UnsupportedError,
)
from tilewright.runtime.determinism import in_force, refuse_unordered
from tilewright.runtime.logs import CAPTURE
from tilewright.runtime.verification.first_calls import FirstCalls

GRADIENTS = "inputs require gradients: stays with torch; use torch.no_grad()"


# what a kernel for a GPU may lack: a form that is covered, a GPU new enough, Triton
_NO_KERNEL = (UnsupportedError, TargetError, BackendMissingError)


@dataclass(frozen=True)
class Instead:
    """A region again with less in its kernel: ``module`` has the arguments of the region's call
    and calls ``call``."""

    module: torch.fx.GraphModule
    call: RegionCall


class RegionCall:
    """The callable that stands for a region in the FX graph.

    Takes the tensors of the module's parameters first, then what only the torch fallback needs
    (sizes, model tensors). Returns one tensor, or a tuple if there are several results. Where
    no kernel can be made, ``instead`` is called from then on if there is one, else torch.
    """

    def __init__(
        self,
        name: str,
        module: Module,
        orders: tuple[Order | None, ...],
        fallback: torch.fx.GraphModule,
        locations: tuple[Location, ...],
        options: Options,
        instead: Instead | None = None,
        looked_up: LookUps | None = None,
    ) -> None:
        self.__name__ = name
        self.__module__ = "tilewright_regions"
        self.module = module
        self.orders = orders
        self.fallback = fallback
        self.locations = locations
        self.options = options
        self.instead = instead
        self.looked_up = looked_up
        self.tensors = len(module.main.params)
        self.program: ProgramLike | None = None
        self.failure: str | None = None
        self.calls = 0
        self.fallbacks: Counter[str] = Counter()
        self.first = FirstCalls(options.verify)

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        inputs = args[: self.tensors]
        reason = refusal(inputs) or self._build()
        if reason is not None:
            return self._with_torch(reason, args)
        if self.looked_up is not None and self.looked_up.outside(args):
            return self._unpacked(self.fallback(*args))  # torch raises what it raises
        assert self.program is not None
        try:
            results = self.program(*inputs)
        except _NO_KERNEL as error:  # forms of a kernel are compiled when first needed
            reason = f"no kernel for these inputs: {error}"
            if self.instead is not None:
                self.failure = reason
            return self._with_torch(reason, args)
        if self.options.verify and self.first.wanted(self.program, inputs):
            check_against(self.fallback, args, self._ordered(results), self.locations[-1])
            self.first.passed(self.program, inputs)
        return self._unpacked(self._ordered(results))

    def _build(self) -> str | None:
        """Builds the program on the first call; why not, if there is none."""
        if self.program is None and self.failure is None:
            try:
                self.program = shared_program(self.module, self.options.target)
            except UnsupportedError as error:
                self.failure = f"no kernel could be made: {error}"
        return self.failure

    def _with_torch(self, reason: str, args: tuple[Any, ...]) -> Any:
        if self.instead is None or in_force().promises("batch"):
            refuse_unordered(in_force(), UnsupportedError(reason, self.locations[-1]))
        self.fallbacks[reason] += 1
        if self.fallbacks[reason] == 1:
            CAPTURE.info("%s runs with torch: %s", self.__name__, reason)
        if self.instead is not None:
            return self._unpacked(self.instead.module(*args))
        if self.options.strict:
            message = f"strict=True, but this region would run with torch: {reason}"
            raise FallbackError(message, self.locations[-1])
        return self._unpacked(self.fallback(*args))

    def _ordered(self, results: Any) -> tuple[torch.Tensor, ...]:
        return tuple(
            r if order is None else r.permute(order)
            for r, order in zip(results, self.orders, strict=True)
        )

    def _unpacked(self, results: Any) -> Any:
        return results[0] if len(self.orders) == 1 else results


def refusal(inputs: tuple[torch.Tensor, ...]) -> str | None:
    """Why a kernel must not get these inputs; None if it may."""
    gradients = torch.is_grad_enabled()
    for x in inputs:
        if type(x) is not torch.Tensor and type(x) is not torch.nn.Parameter:
            return f"an input is a {type(x).__name__}: tensor subclasses stay with torch"
        if gradients and x.requires_grad:
            return GRADIENTS
        if not (x.is_cpu or x.is_cuda):
            return f"an input is on {x.device}: stays with torch; kernels are for CPU and CUDA"
        if x.is_cuda != inputs[0].is_cuda:
            return f"inputs are on {inputs[0].device} and {x.device}: stays with torch"
        if x.layout is not torch.strided or x.is_neg():
            return "an input is sparse or lazily negated: stays with torch"
    if _functorch.maybe_current_level() is not None:
        return "called under a torch.func transform (vmap, grad): stays with torch"
    return None
