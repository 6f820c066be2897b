"""The ledger of known failures: what is wrong and why it stays so for now, each with a program.

``known.json`` lies beside this file: a list of entries. A case that an entry matches counts as
explained. The tests run every entry's own program: one that no longer fails has to leave the list.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.ir.errors import DataError
from tilewright.runtime.verification.case import Case
from tilewright.runtime.verification.check import Outcome

FILE = Path(__file__).with_name("known.json")


@dataclass(frozen=True)
class Entry:
    """One known failure. It matches a case that ends with ``status`` on one of ``backends`` and
    whose text has all of ``words`` (and whose message has ``message``); ``infinite``: only results
    that are not finite and should be, or the other way round. ``case`` shows it."""

    name: str
    reason: str
    backends: tuple[str, ...]
    status: str
    words: tuple[str, ...]
    message: str
    case: Case
    infinite: bool = False

    def matches(self, case: Case, outcome: Outcome) -> bool:
        return (
            case.backend in self.backends
            and outcome.status == self.status
            and all(word in case.text for word in self.words)
            and self.message in outcome.message
            and (not self.infinite or math.isinf(outcome.comparison.error))
        )


def read_ledger(path: Path = FILE) -> tuple[Entry, ...]:
    """The entries. Raises DataError for a file that is none."""
    try:
        return tuple(_entry(data) for data in json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError) as error:
        message = f"{path}: no ledger of known failures: {type(error).__name__}: {error}"
        raise DataError(message) from error


def _entry(data: dict[str, Any]) -> Entry:
    if not data["reason"].strip():
        raise ValueError(f"{data['name']} has no reason")
    return Entry(
        data["name"],
        data["reason"],
        tuple(data["backends"]),
        data["status"],
        tuple(data["words"]),
        data.get("message", ""),
        Case.from_json(data["case"]),
        data.get("infinite", False),
    )


def explanation(known: Sequence[Entry], case: Case, outcome: Outcome) -> Entry | None:
    """The entry that explains a failure, if any."""
    return next((entry for entry in known if entry.matches(case, outcome)), None)
