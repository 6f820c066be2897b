"""Running programs pick up what tuning finds, and only that."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tilewright
from tests.attention_programs import Attention
from tests.runtime.tuning.kernels import attention
from tilewright.runtime import family as family_module
from tilewright.runtime import tuned
from tilewright.runtime.settings import settings
from tilewright.runtime.tuned import BySize, TunedSchedules, TuningWarning, nearest
from tilewright.runtime.tuning.database import Database, Winner
from tilewright.runtime.tuning.device import device_fingerprint

Tensors = tuple[torch.Tensor, ...]
FAST = {"rows": 16, "inner_tile": 8, "inner_block": 64, "unroll": 2}


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """An empty database that this process's programs look into at every call."""
    monkeypatch.setenv("TILEWRIGHT_TUNING", str(tmp_path / "file"))
    settings.cache_clear()
    monkeypatch.setattr(family_module, "TUNED", TunedSchedules())
    monkeypatch.setattr(tuned, "LOOK_SECONDS", 0.0)
    yield Database()
    settings.cache_clear()


def program() -> tilewright.Program:
    return tilewright.Program(tilewright.parse(Attention(16, 16).text()))


def inputs(queries: int = 100, keys: int = 75) -> Tensors:
    return tuple(torch.randn(1, 2, n, 16) for n in (queries, keys, keys))


def schedules(found: tilewright.Program) -> list[dict[str, int]]:
    """The choices that the program's kernel has been compiled with since it last forgot its
    forms."""
    step = found.steps[0].family
    assert step is not None
    return [
        dict(choice)
        for form in step.forms.values()
        for choice in (form._made if isinstance(form, BySize) else [()])
    ]


def winner(choice: dict[str, int], device: str = "", ratio: float = 0.8) -> Winner:
    task = attention(100, 75)
    where = device or device_fingerprint(False)
    return Winner(task.kernel, task.size_class, where, choice, 1.0, ratio)


@pytest.mark.filterwarnings("error::tilewright.runtime.tuned.TuningWarning")
def test_a_running_program_takes_a_better_schedule_at_the_next_call(database: Database) -> None:
    kernel, x = program(), inputs()
    before = kernel(*x)[0]
    assert schedules(kernel) == [{}]
    database.add_all(winners=[winner(FAST)])
    torch.testing.assert_close(kernel(*x)[0], before)
    assert schedules(kernel) == [FAST]
    kernel(*inputs(120, 90))  # of the same powers of two
    assert schedules(kernel) == [FAST]
    kernel(*inputs(3000, 40))  # far away: the default
    assert schedules(kernel) == [FAST, {}]
    database.add_all(winners=[winner({}, ratio=1.0)])
    kernel(*x)
    assert schedules(kernel) == [{}]


def test_what_was_found_on_another_device_is_not_used(database: Database) -> None:
    database.add_all(winners=[winner(FAST, device="another processor")])
    kernel = program()
    kernel(*inputs())
    assert schedules(kernel) == [{}]


@pytest.mark.parametrize(
    "choice", [{"rows": 3}, {**FAST, "rows": 7}, {**FAST, "columns": 1}, {**FAST, "unroll": 10**9}]
)
def test_a_database_cannot_make_a_program_wrong(database: Database, choice: dict[str, int]) -> None:
    database.add_all(winners=[winner(choice)])
    kernel, x = program(), inputs()
    with pytest.warns(TuningWarning, match="its default is used"):
        found = kernel(*x)[0]
    q, k, v = x
    torch.testing.assert_close(found, torch.softmax(q @ k.mT * 0.25, -1) @ v)


def test_a_damaged_database_is_a_warning_and_the_default(database: Database) -> None:
    database.path.write_bytes(b"no database" * 500)
    kernel, x = program(), inputs()
    with pytest.warns(TuningWarning, match="not a database"):
        kernel(*x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel(*x)  # said once
    assert schedules(kernel) == [{}]


def test_nothing_is_looked_up_where_tuning_is_off(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.add_all(winners=[winner(FAST)])
    monkeypatch.setenv("TILEWRIGHT_TUNING", "off")
    settings.cache_clear()
    kernel = program()
    kernel(*inputs())
    assert schedules(kernel) == [{}]


CLASSES = st.tuples(st.integers(0, 14), st.integers(0, 14))


@given(st.dictionaries(CLASSES, st.integers(1, 99), max_size=5), CLASSES)
def test_the_nearest_size_class_within_a_factor_of_four(
    known: dict[tuple[int, int], int], wanted: tuple[int, int]
) -> None:
    choices = {place: {"rows": number} for place, number in known.items()}
    found = nearest(choices, wanted)
    distances = {p: abs(p[0] - wanted[0]) + abs(p[1] - wanted[1]) for p in known}
    if not distances or min(distances.values()) > 2:
        assert found is None
    else:
        least = min(distances.values())
        assert found in [choices[p] for p, d in distances.items() if d == least]
