"""Calls like one before: same dtypes, shapes, strides and device. Only addresses are new then, so
that nothing else is looked at: that is most of what a call's Python costs.

A kind of call is bound when it comes for the second time, since lengths that grow never do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from tilewright.runtime.cuda.gpus import gpus
from tilewright.runtime.cuda.start import Start

Call = Callable[..., tuple[torch.Tensor, ...]]
# what starts a kernel, and a function for each tensor copied in bulk that describes it by address
Bound = tuple[Start, tuple[Callable[[int], bytes], ...]]
_MOST = 1024  # kinds of calls that are remembered


class Repeat:
    """Binds a kernel's calls. ``compiled`` makes its function with other names in it, ``plain`` and
    ``bulk`` are ``again_source``'s for forms without and with bulk copies, ``started`` says what
    starts such a call (None: nothing that may be kept)."""

    def __init__(
        self,
        compiled: Callable[..., Call],
        plain: Callable[..., Call],
        bulk: Callable[..., Call],
        started: Callable[..., Bound | None],
    ) -> None:
        self.compiled, self.plain, self.bulk, self.started = compiled, plain, bulk, started

    def __call__(self, *tensors: torch.Tensor) -> Call | None:
        """What repeats a call with these tensors that was made before; None where it cannot."""
        seen: list[Any] = []
        look = self.compiled(
            start=lambda *facts: seen.append(facts),
            empty=lambda shape, strides, dtype: torch.empty_strided(
                shape, strides, dtype=dtype, device="meta"
            ),
            elsewhere=lambda *facts: (),
        )
        outputs = look(*tensors)
        if not seen:
            return None
        device, items, values, low, keys = seen[0]
        found = self.started(device, values, low, keys)
        if found is None:
            return None
        start, describers = found
        shapes = [(tuple(x.shape), tuple(x.stride())) for x in outputs]
        rest = values[len(tensors) + len(outputs) :]
        factory = self.bulk if describers else self.plain
        return factory(device, start, gpus.stream, items, rest, *shapes, *describers)


def bound(call: object, tensors: tuple[torch.Tensor, ...]) -> Call | None:
    """What repeats a call if something can: the call itself has ``bind``, or what it is a method
    of."""
    bind = getattr(call, "bind", None) or getattr(getattr(call, "__self__", None), "bind", None)
    found: Call | None = None if bind is None else bind(*tensors)
    return found


class Kinds:
    """Calls by their kind: bound when one comes for the second time."""

    def __init__(self) -> None:
        self.known: dict[object, Call] = {}
        self.seen: dict[object, None] = {}

    def first(
        self, kind: object, call: Call, tensors: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        """The results of a call whose kind is not known yet; the second such is kept."""
        results = call(*tensors)
        if kind in self.seen:
            del self.seen[kind]
            if len(self.known) >= _MOST:
                self.known.clear()
            self.known[kind] = bound(call, tensors) or call
        else:
            if len(self.seen) >= _MOST:
                self.seen.clear()
            self.seen[kind] = None
        return results


class Repeated:
    """``call`` of tensors on a device, bound by dtypes, shapes and strides when these come again.

    ``choose`` gives the call for the first tensor's device; ``also`` something that it depends on
    besides.
    """

    def __init__(self, choose: Callable[[torch.Tensor], Call], also: Callable[[], object]) -> None:
        self.choose, self.also = choose, also
        self.kinds = Kinds()

    def bound(self, kind: object) -> Call | None:
        """What repeats calls of a kind, with ``also`` (``kinds``), if any came twice."""
        return self.kinds.known.get(kind)

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        try:
            kind = kinds(len(tensors))(*tensors), self.also()
            again = self.kinds.known.get(kind)
        except (AttributeError, RuntimeError):  # no tensors, or such without strides
            return self.choose(tensors[0])(*tensors)
        if again is not None:
            return again(*tensors)
        return self.kinds.first(kind, self.choose(tensors[0]), tensors)


@cache
def kinds(count: int) -> Callable[..., tuple[object, ...]]:
    """A function of so many tensors that gives all that decides a launch but addresses."""
    names = [f"t{i}" for i in range(count)]
    facts = [f"{t}.dtype, {t}.shape, {t}.stride(), {t}.get_device()" for t in names]
    function: Callable[..., tuple[object, ...]] = eval(
        f"lambda {', '.join(names)}: ({', '.join(facts)},)"
    )
    return function
