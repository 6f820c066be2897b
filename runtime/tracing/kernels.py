"""One row of a trace: a program or kernel with the inputs it was called with, how often, how long.

Plain data, without torch and without the parser, so that any process can read it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tilewright.ir.core import Module

LEVELS = ("graph", "stream", "tile")  # a program, one of its kernels, a kernel written as such


@dataclass(frozen=True)
class TracedInput:
    """An input: its dtype's name, sizes, and strides in elements."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class TracedKernel:
    """Calls with one set of inputs. ``program``: the text of the IR, at the ``level`` it is at:

    - ``graph``: a whole program, as its user calls it;
    - ``stream``: one kernel of such a program, which ran as a part of it;
    - ``tile``: a kernel that the runtime wrote itself (grouped experts, rounded activations).

    ``sizes``: values of its size names. ``options``: ``threads`` of a kernel, ``device``.
    ``tables``: the user's own dtypes in it. ``seconds`` of all ``count`` calls on the host's clock
    (on a GPU: until the launch returned); ``first_seconds``: what of that the first call of each
    process took, which makes the kernel.
    """

    program: str
    level: str
    name: str
    target: str
    backend: str
    inputs: tuple[TracedInput, ...]
    sizes: dict[str, int]
    options: dict[str, int | str] = field(default_factory=dict)
    tables: dict[str, tuple[float, ...]] = field(default_factory=dict)
    count: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0

    def module(self) -> Module:
        """The program, parsed; its own dtypes are made known first. Raises ParseError."""
        from tilewright.ir.dtypes import table_dtype
        from tilewright.ir.parser import parse

        for name, values in self.tables.items():
            table_dtype(name, values)
        return parse(self.program, f"<trace: {self.name}>")

    def meta_inputs(self) -> list[torch.Tensor]:
        """Tensors of these dtypes, shapes and strides without memory (torch's ``meta`` device)."""
        import torch

        from tilewright.runtime.kernel import TORCH_DTYPES

        return [
            torch.empty_strided(x.shape, x.strides, dtype=TORCH_DTYPES[x.dtype], device="meta")
            for x in self.inputs
        ]

    def identity(self) -> tuple[object, ...]:
        """What is the same for rows that are one."""
        options, sizes = tuple(sorted(self.options.items())), tuple(sorted(self.sizes.items()))
        facts = self.program, self.level, self.name, self.target, self.backend, self.inputs
        return (*facts, sizes, options, tuple(sorted(self.tables.items())))

    def plus(self, other: TracedKernel) -> TracedKernel:
        """This row with the calls of another one of its identity."""
        return replace(
            self,
            count=self.count + other.count,
            seconds=self.seconds + other.seconds,
            first_seconds=self.first_seconds + other.first_seconds,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Trace:
    """All rows of a run, those that took longest first; ``machine`` says where it ran."""

    kernels: tuple[TracedKernel, ...]
    machine: dict[str, str]
    processes: int = 1

    def at(self, level: str) -> tuple[TracedKernel, ...]:
        """The rows of one level."""
        return tuple(k for k in self.kernels if k.level == level)
