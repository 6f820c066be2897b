"""What a benchmark writes: figures with what they are held to, the machine, the versions, the date.

One file is one run of one command: ``bench/results/<machine class>/<command>-<date>.json``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tilewright.bench.machine import Machine
from tilewright.bench.timing import Timing

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Goal:
    """What a figure has to reach, and what it should: None where nothing is asked."""

    must: float | None = None
    aim: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One workload on both sides. ``ratio`` > 1: ours is faster. Work is in 10⁹ ``unit`` a second.

    Errors are the largest absolute ones against float64 on the same input. ``bound`` is the ratio
    if ours did nothing but read its bytes, at the speed of reading measured in the same rounds.
    """

    name: str
    peer: str
    ours: Timing
    theirs: Timing
    goal: Goal
    work: float | None = None
    unit: str = ""
    our_error: float | None = None
    their_error: float | None = None
    bound: float | None = None

    @property
    def ratio(self) -> float:
        return self.theirs.median / self.ours.median

    @property
    def best_ratio(self) -> float:
        """Of the fastest calls of both: what a busy machine disturbs least."""
        return self.theirs.least / self.ours.least

    @property
    def met(self) -> bool | None:
        return None if self.goal.must is None else self.ratio >= self.goal.must


@dataclass(frozen=True)
class Quantity:
    """One number of which less is better, in ``unit``; ``details`` are the numbers behind it."""

    name: str
    value: float
    unit: str
    goal: Goal
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        return None if self.goal.must is None else self.value <= self.goal.must


@dataclass(frozen=True)
class Record:
    """One run of one benchmark."""

    command: str
    date: str
    machine: Machine
    comparisons: tuple[Comparison, ...]
    quantities: tuple[Quantity, ...]
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the ratios and verdicts, which follow from the rest."""
        data = asdict(self)
        for row, item in zip(data["comparisons"], self.comparisons, strict=True):
            row.update(ratio=item.ratio, best_ratio=item.best_ratio, met=item.met)
        for row, quantity in zip(data["quantities"], self.quantities, strict=True):
            row.update(met=quantity.met)
        return data

    def without_goals(self) -> Record:
        """The same figures, held to nothing: those of a quick run mean nothing."""
        return replace(
            self,
            comparisons=tuple(replace(row, goal=Goal()) for row in self.comparisons),
            quantities=tuple(replace(row, goal=Goal()) for row in self.quantities),
        )

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save(self, root: Path = RESULTS) -> Path:
        """Writes the file of this run, in the place of an earlier one of the same day."""
        path = root / self.machine.kind / f"{self.command}-{self.date[:10]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")
        return path


def load_record(path: Path) -> Record:
    """What ``Record.save`` wrote. Raises ValueError for a file that is none of ours."""
    data = json.loads(path.read_text(encoding="utf-8"))
    try:
        return Record(
            data["command"],
            data["date"],
            Machine(**data["machine"]),
            tuple(_comparison(row) for row in data["comparisons"]),
            tuple(_quantity(row) for row in data["quantities"]),
            data["details"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a record of this benchmark: {error!r}") from error


def newest_records(command: str, root: Path = RESULTS) -> list[Record]:
    """The newest record of a command for each machine class, by the name of the class."""
    folders = sorted(folder for folder in root.glob("*") if folder.is_dir())
    newest = [max(folder.glob(f"{command}-*.json"), default=None) for folder in folders]
    return [load_record(path) for path in newest if path is not None]


def _comparison(row: dict[str, Any]) -> Comparison:
    parts = {"ours": Timing(**row["ours"]), "theirs": Timing(**row["theirs"])}
    kept = {k: v for k, v in row.items() if k not in ("ratio", "best_ratio", "met")}
    return Comparison(**{**kept, **parts, "goal": Goal(**row["goal"])})


def _quantity(row: dict[str, Any]) -> Quantity:
    kept = {k: v for k, v in row.items() if k != "met"}
    return Quantity(**{**kept, "goal": Goal(**row["goal"])})
