"""tilewright.attention in real kernels: one for every form, right, and compiled once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import tilewright
from tests.frontend import test_attention_functions as functions
from tests.frontend import test_rotations as rotations
from tests.frontend.attention_oracle import assert_close, attend, attend_ragged, attend_used
from tests.frontend.test_attention_layouts import mask_mod, offsets, pages, random, score_mod
from tilewright.frontend import programs
from tilewright.frontend.attention import plans

Function = Callable[..., Any]
REAL = programs.make_program  # before conftest.py puts the stand-in there
ALL: dict[str, Any] = {"enable_gqa": True, "return_lse": True, "return_max": True}


@pytest.fixture(autouse=True)
def kernels(stand_in: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(programs, "make_program", REAL)
    yield
    for same in plans._plans.values():
        for plan in same:
            assert not isinstance(plan.program, plans.Interpreted), plan.program.reason
            assert len(plan.program.steps) == 1


@pytest.mark.parametrize("function", functions.SCORES, ids=functions.name_of)
def test_score_functions(function: Function) -> None:
    options = {"score_mod": function, "scale": 0.4}
    q, k, v = functions.inputs(heads=2)
    assert_close(
        tilewright.attention(q, k, v, **options, **ALL), attend(q, k, v, **options), q.dtype
    )


@pytest.mark.parametrize("function", functions.MASKS, ids=functions.name_of)
def test_mask_functions(function: Function) -> None:
    options = {"mask_mod": function, "is_causal": True}
    q, k, v = functions.inputs(heads=2)
    assert_close(
        tilewright.attention(q, k, v, **options, **ALL), attend(q, k, v, **options), q.dtype
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("statistics", [False, True])
def test_ragged(dtype: torch.dtype, statistics: bool) -> None:
    options: dict[str, Any] = {"score_mod": score_mod, "mask_mod": mask_mod, "is_causal": True}
    for rows, keys in (([1, 3, 4, 0], [7, 5, 4, 2]), ([60, 9], [70, 80])):
        q = random(sum(rows), 4, 16, dtype=dtype)
        k, v = (random(sum(keys), 2, 16, dtype=dtype) for _ in range(2))
        cu = {"cu_seqlens_q": offsets(rows), "cu_seqlens_k": offsets(keys)}
        flags = ALL if statistics else {"enable_gqa": True}
        got = tilewright.attention(q, k, v, **cu, **options, **flags)
        expected = attend_ragged(q, k, v, *cu.values(), **options)
        assert_close(got if statistics else (got,), expected, dtype)


OFFSETS = torch.tensor([0, 7, 20, 33, 40])
DOCUMENT = torch.repeat_interleave(torch.arange(4), OFFSETS.diff())
TABLE = torch.sin(torch.arange(28.0)).reshape(4, 7)
TREE = TABLE.flatten()[torch.arange(1600) % 27].reshape(40, 40) > 0


def causal_in_documents(b: Any, h: Any, q: Any, k: Any) -> Any:
    inside = q - OFFSETS[DOCUMENT[q]] >= k - OFFSETS[DOCUMENT[k]]
    return (DOCUMENT[q] == DOCUMENT[k]) & inside


def neighbourhood(b: Any, h: Any, q: Any, k: Any) -> Any:
    row, column = (q // 8).clamp(1, 3), (q % 8).clamp(2, 5)
    return ((row - k // 8).abs() <= 1) & ((column - k % 8).abs() <= 2)


def buckets(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    distance = (q - k).clamp(min=0)
    far = 3 + (torch.log(distance.float().clamp(min=1) / 3) * 2).long()
    return score + TABLE[h, torch.where(distance < 3, distance, far.clamp(0, 6))]


GALLERY: list[dict[str, Function]] = [
    {"mask_mod": causal_in_documents},
    {"mask_mod": neighbourhood},
    {"score_mod": buckets},
    {"score_mod": lambda s, b, h, q, k: s - (q - k).abs() * torch.exp2(-2.0 * (h + 1))},
    {"score_mod": lambda s, b, h, q, k: s + TABLE[h, (q - k).clamp(-7, 6)]},
    {"mask_mod": lambda b, h, q, k: TREE[q, k] | (k < 3)},
    {"mask_mod": lambda b, h, q, k: (q >= k) & ((q - k < 4) | (k % 4 == 3))},
    {"mask_mod": lambda b, h, q, k: torch.where(h < 2, q - k < 5, k - q < 9)},
    {"mask_mod": lambda b, h, q, k: (q - k) % 3 == 1},
    {"mask_mod": lambda b, h, q, k: ((q - k) & 3) != ((k - q) // 4 & 1)},
    {"mask_mod": lambda b, h, q, k: TABLE[h, (q - k) % 7] > 0},
    {"mask_mod": lambda b, h, q, k: torch.floor((q - k) / 4) % 3.0 == -(b - 1)},
]


@pytest.mark.parametrize("options", GALLERY, ids=lambda o: functions.name_of(*o.values()))
def test_patterns_of_real_models(options: dict[str, Function]) -> None:
    q, k = random(2, 4, 40, 16), random(2, 4, 40, 16) * 3
    got = tilewright.attention(q, k, q, **options, **ALL)
    assert_close(got, attend(q, k, q, **options), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_pages(dtype: torch.dtype) -> None:
    for used, rows in (([3, 0, 9], 2), ([40, 33], 1), ([70], 20)):
        keys, values, table, dense, dense_values = pages(used, 16, 16, dtype)
        q, lengths = random(len(used), 4, rows, 16, dtype=dtype), torch.tensor(used)
        for options in ({"is_causal": True}, {"mask_mod": mask_mod}):
            expected = attend_used(q, dense, dense_values, lengths, **options)
            paged = {"block_table": table, "seqused_k": lengths}
            assert_close(
                tilewright.attention(q, keys, values, **paged, **options, **ALL), expected, dtype
            )
            got = tilewright.attention(q, dense, dense_values, seqused_k=lengths, **options, **ALL)
            assert_close(got, expected, dtype)


def test_used_pages_are_read_by_the_kernel() -> None:
    plans.GATHERED.clear()
    keys, values, table, _, _ = pages([40, 33], 16, 16, torch.float32)
    paged = {"block_table": table, "seqused_k": torch.tensor([40, 33])}
    tilewright.attention(random(2, 4, 1, 16), keys, values, **paged, **ALL)
    assert not plans.GATHERED


def test_one_kernel_for_all_lengths() -> None:
    def slopes(table: torch.Tensor, numbers: torch.Tensor) -> dict[str, Function]:
        return {
            "score_mod": lambda s, b, h, q, k: s - table[h] * (q - k),
            "mask_mod": lambda b, h, q, k: (q >= k) & (numbers[b, q] == numbers[b, k]),
        }

    for batch, length in ((1, 5), (2, 130), (1, 1), (3, 64)):
        q = random(batch, 4, length, 32)
        numbers = torch.arange(length).expand(batch, -1) // 7
        options = slopes(torch.linspace(0, 1, 4), numbers)
        assert_close(
            (tilewright.attention(q, q, q, **options),), attend(q, q, q, **options), q.dtype
        )
    assert len(programs._programs) == 1


def test_merging() -> None:
    q, k = random(2, 4, 5, 32), random(2, 4, 77, 32)
    ends = [0, 1, 30, 30, 77]
    parts = [
        tilewright.attention(q, k[:, :, a:b], k[:, :, a:b], return_lse=True)
        for a, b in itertools.pairwise(ends)
    ]
    expected = attend(q, k, k)
    assert_close(tilewright.merge_attention(*parts), expected, torch.float32)


@pytest.mark.parametrize("name", ["slices", "chunk", "three parts"])
def test_rotary_embeddings(name: str) -> None:
    """One kernel from unrotated queries and keys (torch rotates none of them)."""
    function = rotations.rotary(rotations.HALVES[name])
    torch._dynamo.reset()
    compiled = tilewright.compile(function)
    for rows in (7, 1):
        given = rotations.inputs(rows=rows)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*given), function(*given), rtol=1e-5, atol=1e-5)
    for region in compiled.explain().regions:
        assert region.status == "kernel" and not region.fallbacks
