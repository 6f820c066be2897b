"""Products with quantised weights on a CUDA device beside torch's: ``python -m
tilewright.bench.gpu_lowbit OUT``.

First correctness (small problems against float64), then times of random codes in groups of 128 with
bf16 activations, beside torch's bf16 product and its 4-bit one, in interleaved rounds, the caches
flushed before each call. Writes OUT as JSON after every step; exits with 1 if a result is wrong.
``--dry`` runs tiny problems under Triton's interpreter (set TRITON_INTERPRET=1 before).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import torch

import tilewright
from tilewright.bench.gpu_timing import Call, Suite, run_suite
from tilewright.bench.roofline import Ceilings, low_bit, measure
from tilewright.gpu import using_schedule

GROUP = 128
DTYPES = ("u4", "u8", "u3", "u5", "u6", "u7", "u2", "u1")
FLOATS = ("f8e4m3", "f6e3m2", "f4e2m1", "f5e2m2", "f7e3m3", "f3e1m1")
MANY = ("u4", "u8", "u3", "f6e3m2")  # that are timed with many rows, too
SHAPES = ((8192, 8192), (8192, 57344))  # K, N
ROWS = (1, 16)
# rows, codes of a turn, warps, stages: tried beside the default ones
SCHEDULES: dict[str, tuple[int, int, int, int]] = {
    "8 x 128 2w 3s": (8, 128, 2, 3),
    "8 x 128 2w 6s": (8, 128, 2, 6),
    "8 x 128 4w 4s": (8, 128, 4, 4),
    "16 x 128 4w 4s": (16, 128, 4, 4),
}
DRY_SCHEDULE = (8, 64, 2, 2)  # 64 codes a turn: whole words of every number of bits


def main() -> int:
    """1 if a result is wrong."""
    tune = {"tune": "other schedules, too"}
    return run_suite(__doc__, 100.0, work, jobs=jobs, switches=tune, dry_schedule=DRY_SCHEDULE)


def work(suite: Suite) -> None:
    """Everything in order of importance; small problems with what time is left."""
    ceilings = measure(suite.device, suite.dry)
    dtypes = (*DTYPES, *FLOATS)[:: 4 if suite.dry else 1]  # in the interpreter all were checked
    for shape in SHAPES[: 1 if suite.dry else None]:
        for rows in ROWS:
            beside_torch(suite, rows, shape, dtypes, ceilings)
    beside_torch(suite, 4096, SHAPES[0], MANY, ceilings)
    small(suite)
    if "tune" in suite.switches or suite.dry:
        for rows in ROWS:
            tune(suite, rows, SHAPES[0], ceilings)


def jobs(suite: Suite) -> list[Call]:
    """What the measurements will call, its weights made only then."""
    facts = [(rows, shape, d) for shape in SHAPES for rows in ROWS for d in (*DTYPES, *FLOATS)]
    facts += [(4096, SHAPES[0], dtype) for dtype in MANY]

    def job(rows: int, shape: tuple[int, int], dtype: str) -> object:
        weight = random_weight(dtype, shape[::-1], suite.device)
        return tilewright.linear(_input(suite, rows, shape[0]), weight)

    return [partial(job, *fact) for fact in facts]


# ---- problems


def random_weight(
    dtype: str,
    shape: Sequence[int],
    device: torch.device,
    group: int = GROUP,
    zero_point: int | None = None,
) -> tilewright.QuantizedTensor:
    """Random codes and scales: as fast to make as memory lets."""
    bits = int(dtype[1])
    top = (1 << bits) - 2 if dtype == "f8e4m3" else (1 << bits) - 1  # without NaN's code
    codes = torch.randint(0, top + 1, tuple(shape), dtype=torch.uint8, device=device)
    if dtype == "f8e4m3":
        codes &= 0x7E  # neither of NaN's
    groups = *shape[:-1], -(-shape[-1] // group)
    scales = torch.rand(groups, device=device).half() / 64 + 0.001
    return tilewright.QuantizedTensor.from_codes(
        codes, scales, dtype=dtype, group=group, zero_point=zero_point
    )


def _sizes(suite: Suite, rows: int, shape: tuple[int, int]) -> tuple[int, int, int]:
    """Rows, K and N as they are suite."""
    return (min(rows, 3), 300, 70) if suite.dry else (rows, *shape)


def _input(suite: Suite, rows: int, inner: int) -> torch.Tensor:
    return torch.randn(rows, inner, device=suite.device).bfloat16()


# ---- correctness


def small(suite: Suite) -> None:
    """Against float64, for every dtype, in every class of rows."""
    for dtype in (*DTYPES, *FLOATS, "nf4"):
        for rows in (1, 5, 16, 40, 200)[: 2 if suite.dry else None]:
            if suite.left() < 2 and not suite.dry:
                suite.note(f"{dtype}, {rows} rows: no time left")
                return
            suite.check(f"{dtype}, {rows} rows", partial(_error, suite, dtype, rows), 6e-3)


def _error(suite: Suite, dtype: str, rows: int) -> float:
    outputs, inner = (70, 300) if suite.dry else (200, 1000)
    w = torch.randn(outputs, inner, device=suite.device)
    weight = tilewright.QuantizedTensor.from_float(w, dtype, 64)
    x = _input(suite, rows, inner)
    want = x.double() @ weight.dequantize().double().T
    return float((tilewright.linear(x, weight).double() - want).norm() / want.norm())


def _first_rows(
    call: Call, x: torch.Tensor, weight: tilewright.QuantizedTensor, rows: int = 256
) -> float:
    """Against f64 products with some rows of the weight."""
    got = call()
    assert isinstance(got, torch.Tensor)
    want = x.double() @ weight.dequantize()[:rows].double().T
    return float((got[:, :rows].double() - want).norm() / want.norm())


# ---- times


def _torch_int4(suite: Suite, x: torch.Tensor, outputs: int) -> Call | None:
    """torch's own product with 4 bits, where it has one."""
    try:
        inner = x.shape[1]
        codes = torch.randint(0, 256, (outputs, inner // 2), dtype=torch.uint8, device=suite.device)
        packed = torch._convert_weight_to_int4pack(codes, 8)
        beside = torch.rand(inner // GROUP, outputs, 2, device=suite.device).bfloat16()
        call = partial(torch._weight_int4pack_mm, x, packed, GROUP, beside)
        call()
    except Exception as problem:
        suite.note(f"torch's 4 bits: {type(problem).__name__}: {problem}"[:300])
        return None
    return call


def beside_torch(
    suite: Suite, rows: int, shape: tuple[int, int], dtypes: tuple[str, ...], ceilings: Ceilings
) -> None:
    """Times of all dtypes beside torch's bf16 product (and its 4-bit one)."""
    rows, inner, outputs = _sizes(suite, rows, shape)
    x = _input(suite, rows, inner)
    for first in range(0, len(dtypes), 4):  # a few at a time: memory
        if suite.left() < 8:
            suite.note(f"M{rows} K{inner} N{outputs}: no time left")
            return
        w = torch.randn(outputs, inner, device=suite.device).bfloat16()
        calls: dict[str, Call] = {"torch bf16": partial(torch.nn.functional.linear, x, w)}
        int4 = _torch_int4(suite, x, outputs) if first == 0 and not suite.dry else None
        if int4 is not None:
            calls["torch int4"] = int4
        for dtype in dtypes[first : first + 4]:
            weight = random_weight(dtype, (outputs, inner), suite.device)
            call = partial(tilewright.linear, x, weight)
            key = f"{dtype} M{rows} K{inner} N{outputs}, its first rows"
            known = shape != SHAPES[0]  # the same kernels; a larger weight takes long to write out
            if known or suite.check(key, partial(_first_rows, call, x, weight), 6e-3):
                calls[dtype] = call
        times = suite.times(calls, 15 if rows < 100 else 5)  # small ones vary more
        _record(suite, (rows, inner, outputs), times, ceilings)


def tune(suite: Suite, rows: int, shape: tuple[int, int], ceilings: Ceilings) -> None:
    """u4 with other schedules."""
    rows, inner, outputs = _sizes(suite, rows, shape)
    x = _input(suite, rows, inner)
    weight = random_weight("u4", (outputs, inner), suite.device)
    calls: dict[str, Call] = {"u4": partial(tilewright.linear, x, weight)}
    for name, schedule in SCHEDULES.items():
        if schedule[0] >= rows:

            def call(schedule: tuple[int, int, int, int] = schedule) -> object:
                with using_schedule(*schedule):
                    return tilewright.linear(x, weight)

            calls[f"u4 {name}"] = call
    _record(suite, (rows, inner, outputs), suite.times(calls, 15), ceilings, "tuned ")


def _record(
    suite: Suite,
    sizes: tuple[int, int, int],
    times: dict[str, float],
    ceilings: Ceilings,
    more: str = "",
) -> None:
    """A row for every dtype, with torch's times beside: as roofline.py names them."""
    rows, inner, outputs = sizes
    peers = {name: ms for name, ms in times.items() if name.startswith("torch")}
    for name in (name for name in times if name not in peers):
        floor = low_bit(rows, inner, outputs, float(name[1]), GROUP).seconds(ceilings) * 1e3

        def facts(way: str, ms: float, floor: float = floor) -> dict[str, float]:
            if way != "ours":
                return {}
            plain = peers.get("torch bf16")
            beside = {} if plain is None else {"times_torch_bf16": round(plain / ms, 2)}
            return {"share_of_floor": round(floor / ms, 3), **beside}

        key = f"{more}{name} M{rows} K{inner} N{outputs}"
        suite.record(key, {"ours": times[name], **peers}, facts)


if __name__ == "__main__":
    sys.exit(main())
