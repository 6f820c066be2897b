"""The gallery of masks and scores: right at every size, one kernel each; the page is current."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import and_masks

from examples.masks import NAMES, definition, page
from examples.masks.definition import Results
from examples.masks.entry import Case, Entry, Sizes, attention
from tests.frontend import attention_oracle as oracle
from tilewright.frontend import programs
from tilewright.frontend.attention import plans

ROOT = Path(__file__).parent.parent
LARGE = (48, 129, 300)  # these share a form; the others may need those for few rows
LENGTHS = (*LARGE, 7, 1)
CASES = [
    pytest.param(make, id=f"{name}-{make.__name__}")
    for name in NAMES
    for make in (page.entry_of(name).make, *page.entry_of(name).also)
]
Make = Callable[[Sizes], Case]


@pytest.fixture(autouse=True, scope="module")
def programs_of_its_own() -> Iterator[None]:
    """Counts begin at none, and nothing ran in the interpreter. The tests share programs."""
    programs.forget_programs()
    plans.forget_plans()
    plans.INTERPRETED.clear()
    yield
    assert not plans.INTERPRETED


def compiled_forms() -> Counter[tuple[Any, ...]]:
    """How often each kernel was compiled for a layout class (and unit strides) so far."""
    made = [p for p in programs._programs.values() if not isinstance(p, Exception)]
    steps = [(at, step) for at, p in enumerate(made) for step in p.steps if step.family]  # type: ignore[attr-defined]
    return Counter((at, v.layout_class, v.units) for at, s in steps for v in s.family.reports)


def made() -> tuple[int, int]:
    """Traces and programs so far."""
    return plans.TRACES.total(), len(programs._programs)


def compare(given: Results, wanted: Results, dtype: torch.dtype) -> None:
    """All results, within the error that the dtype allows."""
    oracle.assert_close(given, oracle.Expected(*wanted), dtype)


@pytest.mark.parametrize("make", CASES)
def test_every_length_by_the_same_program(make: Make) -> None:
    """A second length traces nothing, makes no program, and compiles once per layout class."""
    first, large = None, None
    for length in LENGTHS:
        case = make(Sizes(length))
        compare(case.computed(), case.defined(), torch.float32)
        first = first or made()
        assert made() == first, length
        large = large or compiled_forms()
        assert length not in LARGE or compiled_forms() == large, length
    assert set(compiled_forms().values()) == {1}


@pytest.mark.parametrize("make", CASES)
def test_bf16(make: Make) -> None:
    for length in (48, 129):
        case = make(Sizes(length, torch.bfloat16))
        compare(case.computed(), case.defined(), torch.bfloat16)


def alive(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """Hides all keys from the queries 0, 3, 6, …, from head 1, and from the first of sequence 1."""
    return (q_idx % 3 != 0) & (h != 1) & ((b != 1) | (q_idx > 1))


def assert_zeros(results: Results) -> None:
    """Some rows see nothing, others do; the former are 0, -inf, -inf, and nothing is NaN."""
    output, lse, largest = results
    empty = lse == -math.inf
    rows = output if output.dim() == 4 else output.transpose(0, 1)
    assert empty.any() and not empty.all()
    assert (rows[empty] == 0).all() and (largest[empty] == -math.inf).all()
    assert not any(x.isnan().any() for x in results)


@pytest.mark.parametrize("make", CASES)
def test_rows_that_see_nothing(make: Make) -> None:
    """Zeros, -inf, -inf and no NaN, where the mask says so or another is joined to it."""
    case = make(Sizes(29))
    own = case.options.get("mask_mod")
    changes = {"mask_mod": alive if own is None else and_masks(own, alive)}
    results, wanted = case.computed(**changes), case.defined(**changes)
    compare(results, wanted, torch.float32)
    if "sinks" not in case.names:
        assert_zeros(results)
        return
    output, lse, largest = results  # the sink is always there
    hidden = (output == 0).all(-1)
    sinks = case.names["sinks"][:, None].expand(lse.shape)
    assert hidden.any() and not hidden.all()
    assert torch.equal(lse[hidden], sinks[hidden])
    assert torch.equal(largest[hidden], sinks[hidden])


@pytest.mark.parametrize("name", ["causal_bottom_right", "document", "chunked_prefill", "paged"])
def test_masks_that_hide_all_keys_by_themselves(name: str) -> None:
    entry = page.entry_of(name)
    make = entry.make if name == "document" else entry.also[0]
    assert_zeros(make(Sizes(40)).computed())


def independently(case: Case) -> Results:
    """By the oracle of the frontend's tests, which calls functions position by position."""
    options = dict(case.options)
    if "block_table" in options:
        q, keys, values = case.inputs
        table, used = options.pop("block_table"), options.pop("seqused_k")
        dense = [x[table.long()].flatten(1, 2).transpose(1, 2) for x in (keys, values)]
        result = oracle.attend_used(q, *dense, used, **options)
    elif "cu_seqlens_q" in options:
        offsets = options.pop("cu_seqlens_q"), options.pop("cu_seqlens_k")
        result = oracle.attend_ragged(*case.inputs, *offsets, **options)
    else:
        result = oracle.attend(*case.inputs, **options)
    return result.output, result.lse, result.largest


@pytest.mark.parametrize("make", CASES)
def test_the_definition_against_another(make: Make) -> None:
    case = make(Sizes(19))
    if (
        case.define is definition.dense
        or "cu_seqlens_q" in case.options
        or "block_table" in case.options
    ):
        for x, y in zip(case.defined(), independently(case), strict=True):
            torch.testing.assert_close(x, y)


def test_sinks_and_segments_as_one_softmax() -> None:
    """Their references against a softmax over one row: with a column for the sink, with all
    segments' keys (factors of 1)."""
    segments = page.entry_of("segments").make(Sizes(19))
    options = segments.options | {"factors": torch.ones(3)}
    rows = [
        definition.scaled_scores(q, k, s)
        for (q, k, _), s in zip(options["segments"], options["scales"], strict=True)
    ]
    values = torch.cat([definition.for_all_heads(v, 4) for *_, v in options["segments"]], 2)
    wanted = definition.softmax_sum(torch.cat(rows, -1), values)
    for x, y in zip(segments.define(**options), wanted, strict=True):
        torch.testing.assert_close(x, y)


# What each mask shows, said once more in plain Python for (q, k), with the numbers of its picture.
PARENTS = [-1, -1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
DOCUMENTS = [0] * 4 + [1] * 7 + [2] * 6 + [3] * 3


def is_ancestor(token: int, other: int) -> bool:
    while token not in (other, -1):
        token = PARENTS[token]
    return token == other


def in_square(q: int, k: int) -> bool:
    """Of 3 x 3 pixels in 5 x 5, moved inwards at the edges."""
    for at, other in ((q // 5, k // 5), (q % 5, k % 5)):
        first = min(max(at - 1, 0), 2)
        if other not in range(first, first + 3):
            return False
    return True


PLAIN: dict[str, Callable[[int, int], bool]] = {
    "causal": lambda q, k: k in range(q + 1),
    "causal_bottom_right": lambda q, k: k - 19 <= q - 7,
    "sliding_window": lambda q, k: k in range(q - 4, q + 1),
    "prefix_lm": lambda q, k: k <= max(q, 6),
    "document": lambda q, k: DOCUMENTS[q] == DOCUMENTS[k] and k <= q,
    "dilated_window": lambda q, k: k in (q, q - 3, q - 6, q - 9),
    "global_local": lambda q, k: k in range(q - 3, q + 4) or min(q, k) < 2,
    "neighbourhood": in_square,
    "tree": lambda q, k: k < 5 or is_ancestor(q, k - 5),
    "sinks": lambda q, k: k <= q + 1,
    "chunked_prefill": lambda q, k: (
        k < 9 if q == 0 else k - 9 in range(q + 3) if q < 6 else k - 17 in range(q - 5)
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_pictures_against_plain_rules(name: str) -> None:
    cells = page.entry_of(name).draw().cells
    seen = [[PLAIN[name](q, k) for k in range(cells.shape[1])] for q in range(len(cells))]
    assert torch.equal(~cells.isnan(), torch.tensor(seen))


def bucket_of(distance: int) -> int:
    """T5's bucket (of 32) of a key ``distance`` ahead, by the words of its code."""
    first, far = (16 if distance > 0 else 0), abs(distance)
    if far < 8:
        return first + far
    return first + min(8 + int(math.log(far / 8) / math.log(128 / 8) * 8), 15)


def test_scores_against_plain_rules() -> None:
    table = torch.arange(64.0).reshape(32, 2)
    zero = torch.tensor(0.0)
    q, k = torch.tensor(200), torch.arange(400)
    t5 = importlib.import_module("examples.masks.t5_relative_bias").t5_relative_bias(table)
    got = t5(zero, 0, torch.tensor(1), q, k)
    assert got.tolist() == [float(table[bucket_of(at - 200), 1]) for at in range(400)]
    linear = importlib.import_module("examples.masks.alibi")
    slopes = linear.alibi_slopes(8)
    assert slopes.tolist() == [2.0**-n for n in range(1, 9)]
    assert linear.alibi(slopes)(zero, 0, 1, 9, 5) == -1.0
    cap = importlib.import_module("examples.masks.soft_cap").soft_cap(50.0)
    assert cap(torch.tensor(1e9), 0, 0, 0, 0) == 50.0
    torch.testing.assert_close(cap(torch.tensor(0.1), 0, 0, 0, 0), torch.tensor(0.1))


@pytest.mark.parametrize("name", NAMES)
def test_the_call_on_the_page(name: str) -> None:
    """It runs, with the names of its file, and gives what the example gives."""
    module = importlib.import_module(f"examples.masks.{name}")
    case = module.ENTRY.make(Sizes(48))
    names = dict(zip("qkv", case.inputs, strict=False)) | case.names
    names["tilewright"] = SimpleNamespace(attention=attention)
    results = eval(module.ENTRY.call, {**vars(module), **names})
    for x, y in zip(results, case.computed(), strict=True):
        assert torch.equal(x, y)


def test_the_page_and_its_pictures_are_current(update_golden: bool) -> None:
    files = page.files()
    for name, text in files.items() if update_golden else ():
        (ROOT / name).write_text(text, encoding="utf-8")
    for name, text in files.items():
        current = (ROOT / name).read_text(encoding="utf-8") == text
        assert current, f"{name}: if that is meant: python -m examples.masks"
    drawn = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "masks").iterdir()}
    assert drawn == set(files) - {"docs/masks.md"}


def test_every_file_is_in_the_gallery_and_says_where_it_is_from() -> None:
    folder = ROOT / "examples" / "masks"
    own = {"__init__", "__main__", "definition", "drawing", "entry", "page"}
    assert {path.stem for path in folder.glob("*.py")} - own == set(NAMES)
    for name in NAMES:
        module = importlib.import_module(f"examples.masks.{name}")
        assert isinstance(module.ENTRY, Entry) and "\nSource: " in (module.__doc__ or "")


def test_running_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = page.entry_of("prefix_lm")
    monkeypatch.setattr("sys.argv", ["prefix_lm"])
    entry.run()
    assert "largest error" in (shown := capsys.readouterr().out) and "██" in shown
    monkeypatch.setattr("sys.argv", ["prefix_lm", str(tmp_path / "picture.svg")])
    entry.run()
    drawn = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert drawn == page.files()["docs/masks/prefix_lm.svg"]


def test_a_broken_mask_is_found() -> None:
    """The comparison of this file can fail: one key more per row."""
    case = page.entry_of("sliding_window").make(Sizes(48))
    wider = importlib.import_module("examples.masks.sliding_window").sliding_window(11)
    with pytest.raises(AssertionError):
        compare(case.computed(mask_mod=wider), case.defined(), torch.float32)
