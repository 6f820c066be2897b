"""The way of a program, one pass per line, and each pass by name for the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tilewright.ir.core import Module
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.target import Target, named_target
from tilewright.passes.canonicalise import canonicalise
from tilewright.passes.decompose import decompose
from tilewright.passes.expand_math import expand_math
from tilewright.passes.extremes import extremes
from tilewright.passes.halves import join_halves
from tilewright.passes.partition import partition
from tilewright.passes.precision import precision
from tilewright.passes.raise_counts import raise_counts
from tilewright.passes.reorder import reorder
from tilewright.passes.to_stream import to_stream
from tilewright.passes.to_tile import to_tile

Run = Callable[[Module], Module]


@dataclass(frozen=True)
class Pass:
    """A pass with its name; ``run`` gives a new module."""

    name: str
    run: Run


TO_KERNELS: tuple[Pass, ...] = (
    Pass("decompose", decompose),  # first: later passes know only the parts of composite ops
    Pass("extremes", extremes),
    Pass("join_halves", join_halves),
    Pass("raise_counts", raise_counts),
    Pass("precision", precision),
    Pass("canonicalise", canonicalise),
    Pass("to_stream", to_stream),
    Pass("reorder", reorder),  # makes deep channels shallow
    Pass("partition", partition),  # cuts at those that stayed deep
)


def kernel_passes(target: Target) -> tuple[Pass, ...]:
    """The way to kernels for a target: a GPU's programs hold whole rows."""
    if not target.gpu:
        return TO_KERNELS
    held = Pass("to_stream", lambda module: to_stream(module, held=True))
    return tuple(held if p.name == held.name else p for p in TO_KERNELS)


def tile_pass(target: Target) -> Pass:
    """Stream kernels to tile programs for a target."""
    return Pass("to_tile", lambda module: to_tile(module, target))


def named_passes(target: Target | None = None) -> dict[str, Pass]:
    """All passes by name."""
    chosen = target or named_target("x86-64-v3")
    single = (Pass("expand_math", expand_math), tile_pass(chosen))
    return {p.name: p for p in (*kernel_passes(chosen), *single)}


def parse_pipeline(text: str, target: Target | None = None) -> tuple[Pass, ...]:
    """Passes from a comma-separated list of names. Raises UnsupportedError with the known names."""
    known = named_passes(target)
    chosen = []
    for name in (part.strip() for part in text.split(",") if part.strip()):
        if name not in known:
            raise UnsupportedError(f"unknown pass {name!r}; known passes: {', '.join(known)}")
        chosen.append(known[name])
    return tuple(chosen)


def run_passes(
    module: Module, passes: tuple[Pass, ...], after: Callable[[Pass, Module], None] | None = None
) -> Module:
    """Runs passes in order; ``after`` is called with each pass and its result."""
    for step in passes:
        module = step.run(module)
        if after is not None:
            after(step, module)
    return module
