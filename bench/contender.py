"""A provider on a problem: its forms are tried and checked, the fastest right one goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tilewright import BenchError
from tilewright.bench.devices import Device
from tilewright.bench.method.clock import timed
from tilewright.bench.report.document import Result, Times
from tilewright.bench.suites.problem import Call, Form, NotOffered, Problem, errors_of

Offer = Callable[[Problem, Any], list[Form]]
TRIALS = 5


@dataclass
class Contender:
    """What is known of a provider on a problem; ``call`` only while it is being measured."""

    status: str = "none"
    form: str = ""
    reason: str = ""
    tried: dict[str, float] = field(default_factory=dict)
    errors: tuple[float, float] | None = None
    first_call: float | None = None
    peak: int | None = None
    kept: int | None = None
    call: Call | None = None
    float_weights: bool = False

    def again(self, problem: Problem, inputs: Any, offer: Offer, device: Device) -> Call | None:
        """The chosen form on new inputs, called once; None, and no longer ok, if it fails now."""
        try:
            (form,) = (each for each in offer(problem, inputs) if each.name == self.form)
            call = form.make()
            call()
            device.finish()
        except Exception as problem_:
            self.status, self.reason = "failed", f"in a later sitting: {first_line(problem_)}"
            _still_usable(device, problem_, self.form)
            return None
        return call

    def result(self, provider: str, warm: Times | None, cold: Times | None) -> Result:
        errors = self.errors or (None, None)
        ok = self.status == "ok"
        return Result(
            provider=provider,
            status=self.status,
            form=self.form,
            reason=self.reason,
            tried=self.tried,
            error_max=errors[0],
            error_relative=errors[1],
            first_call=self.first_call,
            peak_bytes=self.peak,
            kept_bytes=self.kept,
            warm=warm if ok else None,
            cold=cold if ok else None,
            float_weights=self.float_weights,
        )


def prepare(
    problem: Problem,
    inputs: Any,
    exact: torch.Tensor,
    provider: str,
    offer: Offer,
    device: Device,
) -> Contender:
    """Tries all forms of a provider. A wrong result is no competitor: its time says nothing."""
    found = Contender()
    try:
        forms = offer(problem, inputs)
    except NotOffered as reason:
        found.reason = str(reason)
        return found
    except Exception as problem_:
        found.status, found.reason = "failed", first_line(problem_)
        return found
    best = math.inf
    for form in forms:
        tried = _try(form, problem, exact, device)
        if tried.status == "ok":
            found.tried[form.name] = seconds = tried.tried[form.name]
        else:
            seconds = math.inf
        if seconds < best or (best == math.inf and found.status != "ok"):
            best, tried.tried = seconds, found.tried
            found = tried
    if found.call is not None:
        grown = device.growth(found.call)
        found.peak = None if grown is None else grown.peak
    return found


def _try(form: Form, problem: Problem, exact: torch.Tensor, device: Device) -> Contender:
    """One form: prepared and called for the first time, checked, then timed a few times."""
    found = Contender("failed", form.name, float_weights=form.float_weights)
    before = device.held()

    def finished(call: Call) -> Any:
        result = call()
        device.finish()
        return result

    try:
        made: list[Call] = []
        results: list[Any] = []
        first = timed(lambda: made.append(form.make()))
        first += timed(lambda: results.append(finished(made[0])))
        found.errors = errors_of(form.read(results.pop()).detach(), exact)
        call = made[0]
        once = min(device.once(call) for _ in range(TRIALS))
    except Exception as problem_:
        found.reason = first_line(problem_)
        _still_usable(device, problem_, form.name)
        return found
    found.kept = None if before is None else max(0, (device.held() or before) - before)
    if found.errors[1] > problem.tolerance:
        found.status = "wrong"
        found.reason = f"relative error {found.errors[1]:.1e}, at most {problem.tolerance:.0e}"
        return found
    found.status, found.call, found.first_call = "ok", call, max(0.0, first - once)
    found.tried[form.name] = once
    return found


def _still_usable(device: Device, problem: Exception, form: str) -> None:
    """Raises BenchError if an error has broken the device for this process: whatever came next
    would fail, too, and be blamed for it."""
    try:
        device.finish()
    except Exception as broken:
        raise BenchError(
            f"{form!r} has broken the device: {first_line(problem)}. Find the provider with --only "
            "and --vs, and leave it out"
        ) from broken


def first_line(problem: BaseException) -> str:
    """Of an error of others, in the space of a table."""
    text = next((line for line in str(problem).splitlines() if line.strip()), "")
    return f"{type(problem).__name__}: {text}"[:300]
