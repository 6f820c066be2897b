"""The lock around code generators, and the guards of all else (``backends/locks.py``).

LLVM, MLIR and Numba have locks of their own, which nothing can give back, and Python has one for
each module that is being imported: a fork waits until none of them is at work.
"""

from __future__ import annotations

from tilewright.backends.locks import Guard

__all__ = ["GENERATORS", "Guard"]

# Held while LLVM, MLIR or Numba work and while modules are imported at a first call. Whoever holds
# it waits for no other guard, and no module asks for it while it is imported.
GENERATORS = Guard(fork_waits=60.0)
