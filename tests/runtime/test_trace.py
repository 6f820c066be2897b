"""Traces: every call is counted, whatever becomes of the process, and the file is read strictly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilewright
from tests import bundle_programs as programs
from tests.bundle_programs import numbers
from tilewright.ir.errors import TilewrightError, TraceError
from tilewright.ir.parser import parse
from tilewright.ir.printer import print_module
from tilewright.runtime.program import Program
from tilewright.runtime.settings import settings
from tilewright.runtime.tracing import parts, recorder
from tilewright.runtime.tracing.file import merged, read_trace, write_trace
from tilewright.runtime.tracing.kernels import Trace, TracedInput, TracedKernel
from tilewright.runtime.tracing.parts import Part, read_parts
from tilewright.runtime.tracing.recorder import Recorder, TraceWarning, now, recording

HALF = """
graph half<N, M>(%x: tensor<N x M x f32>) {
  %half = math.const {value = 0.5, type = tensor<f32>}
  %y = math.mul %x, %half
  return %y
}
"""


@pytest.fixture(scope="module")
def half() -> Program:
    return Program(parse(HALF))


def test_rows_say_what_was_called(half: Program) -> None:
    with recording() as rows:
        half(numbers(4, 8))
        half(numbers(4, 8))
        half(numbers(8, 4).mT)
    assert [(r.level, r.count) for r in rows] == [
        ("stream", 2),
        ("graph", 2),
        ("stream", 1),
        ("graph", 1),
    ]
    kernel, program, _, turned = rows
    assert program.program == print_module(half.module) and program.sizes == {"N": 4, "M": 8}
    assert program.inputs == (TracedInput("x", "f32", (4, 8), (8, 1)),)
    assert turned.inputs[0].strides == (1, 4)
    assert program.options["device"] == "cpu" and int(program.options["threads"]) >= 1
    assert program.seconds >= kernel.seconds > 0 and program.first_seconds < program.seconds
    (meta,) = turned.meta_inputs()
    assert meta.stride() == (1, 4) and str(meta.device) == "meta"
    assert print_module(turned.module()) == turned.program
    assert parse(kernel.program).main.level == "stream"


def test_nothing_is_recorded_outside(half: Program) -> None:
    with recording() as rows:
        pass
    half(numbers(4, 8))
    assert rows == [] and now.recorder is None


def test_failed_calls_do_not_count(half: Program) -> None:
    with recording() as rows:
        with pytest.raises(tilewright.BindError):
            half(numbers(4))
        half(numbers(4, 8))
    assert [r.count for r in rows] == [1, 1]


def test_programs_inside_programs_are_parts_of_them(half: Program) -> None:
    twice = Program(parse(programs.TWO_KERNELS))
    with recording() as rows:
        twice(numbers(8, 16), numbers(16, 16))
    assert sorted(r.level for r in rows) == ["graph", "stream", "stream"]


def test_dtypes_of_the_user_go_along() -> None:
    weight = tilewright.QuantizedTensor.from_float(
        numbers(32, 64), tilewright.table_dtype("traced_levels", [-1.0, 0.0, 0.5, 2.0]), group=32
    )
    with recording() as rows:
        tilewright.linear(numbers(3, 64), weight)
    (row,) = (r for r in rows if r.level == "graph")
    assert row.tables == {"traced_levels": (-1.0, 0.0, 0.5, 2.0)}
    assert "traced_levels" in str(row.module())


def test_threads_count_together(half: Program) -> None:
    x = numbers(4, 8)

    def work() -> None:
        for _ in range(50):
            half(x)

    with recording() as rows:
        helpers = [threading.Thread(target=work) for _ in range(4)]
        for helper in helpers:
            helper.start()
        for helper in helpers:
            helper.join()
    assert [r.count for r in rows] == [200, 200]


KILLED = """
import os, signal, sys, torch, tilewright
program = tilewright.Program(tilewright.parse(sys.argv[1]))
x = torch.ones(4, 8)
program(x)
child = os.fork()
for _ in range(3 if child else 5):
    program(x)
if child:
    os.waitpid(child, 0)
    print("called", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_and_a_killed_child_lose_nothing(tmp_path: Path) -> None:
    variables = {**os.environ, "TILEWRIGHT_TRACE": str(tmp_path / "trace")}
    done = subprocess.run([sys.executable, "-c", KILLED, HALF], env=variables, check=False)
    assert done.returncode == -signal.SIGKILL
    found = read_trace(tmp_path / "trace")
    assert found.processes == 2
    by_level = {level: sum(k.count for k in found.at(level)) for level in ("graph", "stream")}
    assert by_level == {"graph": 9, "stream": 9}
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "trace").iterdir()} == {0o600}


ROW = TracedKernel(
    "graph f() {}", "graph", "f", "host", "mlir", (TracedInput("x", "f32", (2, 3), (3, 1)),),
    {"N": 2}, {"threads": 1}, {}, 0, 0.0, 0.0,
)  # fmt: skip


def test_parts_grow_and_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = parts._PER_CHUNK + 3
    first, second = (Part(tmp_path, {"cpu": "x"}) for _ in range(2))
    for at in range(many):
        row = first.row(replace(ROW, sizes={"N": at}))
        first.count(row, 1.0)
    first.count(many - 1, 0.5)
    second.count(second.row(replace(ROW, sizes={"N": many - 1})), 0.25)
    second.row(replace(ROW, name="never called"))
    found = read_parts(tmp_path)
    assert len(found.kernels) == many and found.machine == {"cpu": "x"} and found.processes == 2
    assert found.kernels[0].sizes == {"N": many - 1} and found.kernels[0].count == 3
    assert found.kernels[0].seconds == 1.75 and found.kernels[0].first_seconds == 1.25
    first.close()
    second.close()


def test_parts_of_different_machines_are_refused(tmp_path: Path) -> None:
    """Not those of processes that do not know their processor's name."""
    known = {"system": "Linux", "machine": "x86_64", "cpu": "znver4", "features": "+avx2"}
    for cpu in ("znver4", "", "znver4"):
        Part(tmp_path, {**known, "cpu": cpu}).close()
    assert read_parts(tmp_path).machine == known
    Part(tmp_path, {**known, "cpu": "skylake"}).close()
    with pytest.raises(TraceError, match=r"parts of different machines.*cpu '(skylake|znver4)'"):
        read_parts(tmp_path)


def test_a_line_that_was_not_ended_is_left_out(tmp_path: Path) -> None:
    part = Part(tmp_path, {})
    part.count(part.row(ROW), 1.0)
    path = next(tmp_path.glob("*.rows"))
    path.write_bytes(path.read_bytes() + b'{"row": 1, "na')
    assert len(read_parts(tmp_path).kernels) == 1
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(TraceError, match=r"\.rows:4 is damaged: it is not JSON"):
        read_parts(tmp_path)
    part.close()


@pytest.mark.parametrize("what", ["posix_fallocate", "write", "open"])
def test_a_full_disk_ends_the_trace_and_not_the_program(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: Program
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("TILEWRIGHT_TRACE", str(tmp_path / "t"))
    settings.cache_clear()
    monkeypatch.setattr(now, "recorder", Recorder())
    half(numbers(4, 8))
    monkeypatch.setattr(now, "recorder", Recorder())
    monkeypatch.setattr(parts.os, what, full)
    with pytest.warns(TraceWarning, match=r"trace of process \d+ ends here: No space left"):
        found = half(numbers(4, 8))
    assert found[0].shape == (4, 8)
    assert half(numbers(4, 8))[0].shape == (4, 8)  # and says it once


def test_more_sizes_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch, half: Program) -> None:
    monkeypatch.setattr(recorder, "MOST_ROWS", 3)
    with recording() as rows:
        half(numbers(4, 8))
        with pytest.warns(TraceWarning, match="more than 3 kernels and sizes"):
            half(numbers(4, 9))
        half(numbers(4, 8))
    assert [r.count for r in rows] == [2, 2, 1]


names = st.text("abcxyz_", min_size=1, max_size=5)
inputs = st.builds(
    lambda name, dtype, dims: TracedInput(
        name, dtype, tuple(a for a, _ in dims), tuple(b for _, b in dims)
    ),
    names,
    st.sampled_from(["f32", "bf16", "i64"]),
    st.lists(st.tuples(st.integers(0, 1 << 13), st.integers(0, 1 << 40)), max_size=4),
)
rows = st.builds(
    TracedKernel,
    program=st.text(max_size=20),
    level=st.sampled_from(["graph", "stream", "tile"]),
    name=names,
    target=names,
    backend=names,
    inputs=st.lists(inputs, max_size=3).map(tuple),
    sizes=st.dictionaries(names, st.integers(0, 1 << 50), max_size=3),
    options=st.dictionaries(names, st.integers(0, 9) | names, max_size=2),
    tables=st.dictionaries(names, st.lists(st.integers(-9, 9).map(float)).map(tuple), max_size=1),
    count=st.integers(1, 1 << 40),
    seconds=st.floats(0, 1e9),
    first_seconds=st.floats(0, 1e9),
)


@given(st.lists(rows, max_size=5))
def test_files_give_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, kernels: list[TracedKernel]
) -> None:
    trace = merged(kernels, {"cpu": "znver9"}, 3)
    path = tmp_path_factory.mktemp("t") / "trace.json"
    write_trace(trace, path)
    assert read_trace(path) == trace
    with pytest.raises(TraceError, match="exists: name another file, or --force"):
        write_trace(trace, path)
    write_trace(Trace((), {}), path, force=True)
    assert read_trace(path) == Trace((), {}, 1)
    assert [p.name for p in path.parent.iterdir()] == ["trace.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, r"is a trace of version 2; .* up to 1"),
        ({"schema": "x"}, "is not a trace: its schema is 'x'"),
        ({"programs": {"0" * 64: "text"}}, "has another SHA-256"),
        ({"programs": {}}, "of which the file has no text"),
        ({"kernels": [[]]}, r"'kernels'\[0\]: an object is expected, it is a list"),
        ({"level": "forest"}, "'level' is 'forest'; there are graph, stream, tile"),
        ({"seconds": -1}, "'seconds' must be a number of at least 0"),
        ({"count": 1.5}, "'count' must be a number, it is a number|'count'"),
        ({"sizes": {"a b": 1}}, "'sizes' holds 'a b'"),
        ({"options": {"a": [1]}}, "'options' holds 'a'"),
        ({"tables": {"a": ["b"]}}, "'tables' holds 'a'"),
    ],
)
def test_damaged_newer_and_foreign_files(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "trace.json"
    write_trace(merged([replace(ROW, count=2)], {}, 1), path)
    value = json.loads(path.read_text())
    inner = value if set(change) <= set(value) else value["kernels"][0]
    inner.update(change)
    path.write_text(json.dumps(value))
    with pytest.raises(TraceError, match=message):
        read_trace(path)


def test_files_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_trace(merged([replace(ROW, count=2)], {}, 1), path)
    data = path.read_bytes()
    for end in range(0, len(data) - 2, 37):
        path.write_bytes(data[:end])
        with pytest.raises(TraceError, match="damaged: it is not JSON"):
            read_trace(path)
    with pytest.raises(TraceError, match=r"cannot read the trace .*: No such file"):
        read_trace(tmp_path / "none.json")
    assert issubclass(TraceError, TilewrightError)
