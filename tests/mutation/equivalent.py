"""Mutants that change nothing that anyone could see, each read, with the reason."""

from __future__ import annotations

from typing import Protocol


class Named(Protocol):
    """What is looked up."""

    name: str
    before: str
    after: str


# file, the line before and after -> why nothing can tell the two apart
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "passes/to_tile/whole_blocks/routing/values.py",
        "bounds.append((dim, b.index(frame.sizes[names[0]])))",
        "bounds.append((dim, b.index(frame.sizes[names[ -1]])))",
    ): "each dimension of memory is one axis here: its first name is its last",
    (
        "passes/to_tile/made.py",
        "return 8 if schedule.lanes == 16 else 4",
        "return 7 if schedule.lanes == 16 else 4",
    ): "the height of a register tile, chosen by measuring: any gives the same sums",
}


def why_equivalent(mutant: Named) -> str:
    """The reason, "" for a mutant that tests should see."""
    file = mutant.name.split(":", 1)[0]
    return EQUIVALENT.get((file, mutant.before, mutant.after), "")
