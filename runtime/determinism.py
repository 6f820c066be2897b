"""What the bits of results may depend on: levels, each of which promises the ones before.

    run            the same call on the same machine: nothing else decides (no tuning on the way)
    threads        not on how many threads work
    batch          a row's bits not on the rows beside it, nor on its place among them
    reproducible   not on the machine or back end: interpreter, MLIR, Numba, emulated CUDA agree

docs/determinism.md says what each covers and costs. What a level cannot give is refused
(DeterminismError), never given quietly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from tilewright.ir.errors import DeterminismError, SettingError, UnsupportedError
from tilewright.passes.to_tile.orders import ANY, BATCH, FIXED
from tilewright.runtime.gpu_targets import BY_TRITON, GPU_BACKENDS
from tilewright.runtime.settings import DETERMINISTIC_LEVELS, settings

NAMES = ("", *DETERMINISTIC_LEVELS)
_WORDS = {
    "": "as tuned: bits depend on shapes, strides, threads and the tuning database",
    "run": "run: the same bits in every run with as many threads",
    "threads": "threads: the same bits for any number of threads",
    "batch": "batch: a row has the same bits beside any other rows",
    "reproducible": "reproducible: the same bits on every back end and target",
}


@dataclass(frozen=True, order=True)
class Level:
    """One level by its place among them."""

    rank: int = 0

    @property
    def name(self) -> str:
        return NAMES[self.rank]

    def promises(self, name: str) -> bool:
        """Whether this level gives what another one does."""
        return self.rank >= NAMES.index(name)

    @property
    def order(self) -> str:
        """In which order kernels form sums (passes/to_tile/orders.py)."""
        if self.promises("reproducible"):
            return FIXED
        return BATCH if self.promises("batch") else ANY

    @property
    def words(self) -> str:
        return _WORDS[self.name]

    def __str__(self) -> str:
        return self.name or "none"


NONE = Level()


class _InForce(threading.local):
    """What this thread was told by ``using``."""

    level: Level | None = None


_in_force = _InForce()


def in_force() -> Level:
    """What calls keep that do not say otherwise: of the innermost ``using``, else of
    TILEWRIGHT_DETERMINISTIC."""
    told = _in_force.level
    return told if told is not None else _of_settings()


@cache
def _of_settings() -> Level:
    return Level(NAMES.index(settings().deterministic))


@contextmanager
def using(chosen: Level) -> Iterator[None]:
    """Calls of this thread keep a level meanwhile."""
    before, _in_force.level = _in_force.level, chosen
    try:
        yield
    finally:
        _in_force.level = before


def deterministic(
    name: str | None = None, *, reproducible: bool = False
) -> AbstractContextManager[None]:
    """``with tilewright.deterministic("batch"): …``: every attention, product and program made in
    this thread keeps a level meanwhile ("run", "threads", "batch", or ``reproducible=True``; "" for
    none). Programs that exist keep theirs. Raises SettingError for an unknown one."""
    return using(level(name, reproducible))


def level(deterministic: str | None = None, reproducible: bool | None = None) -> Level:
    """The level that a caller asks for: ``deterministic`` is "run", "threads", "batch", "" for
    none, or None for what is in force; ``reproducible`` is the highest. Raises SettingError."""
    if deterministic not in (None, *NAMES[:-1]):
        raise _unknown(deterministic)
    if reproducible not in (None, True, False):
        raise SettingError(f"reproducible is True or False, not {reproducible!r}")
    if reproducible:
        return Level(NAMES.index("reproducible"))
    return in_force() if deterministic is None else Level(NAMES.index(deterministic))


def _unknown(asked: object) -> SettingError:
    return SettingError(
        f"deterministic={asked!r}: known are 'run', 'threads' and 'batch' (each promises the ones "
        "before); the same bits on all back ends are reproducible=True"
    )


def check_backend(level: Level, backend: str) -> None:
    """DeterminismError for a back end that has no programs in the order that a level asks for."""
    wanted = level.order
    if not wanted or backend not in GPU_BACKENDS:
        return
    if wanted == FIXED and backend in ("cuda", "cuda-host"):
        return
    raise DeterminismError(
        f"backend={backend!r} has no kernels at the level {level.name!r}: on GPUs backend='cuda' "
        "makes those of reproducible=True, and all back ends keep 'run' and 'threads'"
    )


def device_backend(level: Level, chosen: str) -> str:
    """The back end for tensors on a device: what has programs in a fixed order, if one is asked
    for."""
    return "cuda" if level.order == FIXED and chosen in BY_TRITON else chosen


def refuse_unordered(level: Level, error: UnsupportedError) -> None:
    """DeterminismError for a kernel that would run as the interpreter likes, from ``threads`` on:
    NumPy shares its products out among threads."""
    if level.promises("threads"):
        raise DeterminismError(
            f"{error.message}: this kernel cannot keep the level {level.name!r}", error.location
        ) from error


def refuse_level(kept: Level, name: str, what: str) -> None:
    """DeterminismError if a level is asked for that promises ``name``, which a part cannot keep."""
    if kept.promises(name):
        below = NAMES[NAMES.index(name) - 1]
        raise DeterminismError(f"{what} cannot keep the level {kept.name!r}; it keeps {below!r}")


_SUBNORMAL = 2.0**-1070


def refuse_flushing(call: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """``call`` of a back end that computes in this thread's mode: DeterminismError while that takes
    subnormal numbers for 0. MLIR's and Numba's kernels set the mode themselves."""

    def checked(*tensors: Any) -> Any:
        if _SUBNORMAL * 1.0 == 0.0:
            raise DeterminismError(
                f"backend={backend!r} computes as this thread does, which takes subnormal numbers "
                "for 0: call torch.set_flush_denormal(False)"
            )
        return call(*tensors)

    return checked
