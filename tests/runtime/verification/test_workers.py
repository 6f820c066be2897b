"""A worker outlives what it runs: crashes and endless loops become failures with their program."""

from __future__ import annotations

from tilewright.runtime.verification.case import Call, Case
from tilewright.runtime.verification.workers import Worker

PLANTED = ["tests.runtime.verification.planted_deaths"]


def of(operation: str) -> Case:
    text = f"graph f<N>(%x: tensor<N x f32>) {{ %y = math.{operation} %x return %y }}"
    return Case("graphs", text, "interpreter", None, (Call({"N": 2}),))


def test_crash_hang_and_what_comes_after() -> None:
    """Two processes: the first is killed by a case, the second has no end of one."""
    with Worker(seconds=0.5, preload=PLANTED) as worker:
        assert worker.check(of("exp")).status == "ok"
        crash = worker.check(of("tanh"))
        assert crash.status == "crash" and "SIGSEGV" in crash.message
        assert "planted" in crash.message  # where it died
        assert worker.check(of("exp")).status == "ok"
        hang = worker.check(of("sigmoid"))
        assert hang.status == "hang" and "0 s of processor time" in hang.message
        assert worker.started == 2
