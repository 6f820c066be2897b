"""Schedules of GPU kernels in the order of what they compile to, without a GPU."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from tests.runtime.tuning.kernels import gpu_attention
from tests.runtime.tuning.made_up import MadeUp
from tilewright.backends.gpu.machine_code import disassembler_missing
from tilewright.bench.programs import attention_text
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile.choices import Choice
from tilewright.passes.to_tile.cost.defaults import last_units
from tilewright.runtime.compiled_ranking import (
    FEW,
    Compiled,
    Resources,
    compile_choices,
    compiled_first,
    put_right,
    resources,
)
from tilewright.runtime.tuning.trial import Effort, Outcome

GRAPH = run_passes(parse(attention_text(64, dtype="bf16")), TO_KERNELS).graphs[0]
UNITS = last_units(GRAPH)
THIN = {"rows": 128, "inner": 128, "warps": 2, "stages": 2}
GOOD = {"rows": 64, "inner": 64, "warps": 4, "stages": 3}


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_schedule_that_spills_moves_behind_one_that_does_not(backend: str) -> None:
    """Through the very steps that the tuner takes, but for the processes."""
    if backend == "cuda" and disassembler_missing():
        pytest.skip(disassembler_missing())

    def compiled(choice: Choice) -> Outcome:
        return compile_choices(kernel, [choice], Effort())[0]

    kernel, target = gpu_attention(backend), named_target("cuda-sm80")
    ranked: list[tuple[Choice, float]] = [(THIN, 1.0), (GOOD, 1.1)]
    found, reasons = compiled_first(kernel, target, ranked, MadeUp(compiled, slots=9), 600.0)
    assert [choice for choice, _ in found] == [GOOD, THIN] and not reasons
    assert found[0][1] == 1.1 < found[1][1]


takes = st.builds(Resources, st.integers(0, 255), st.sampled_from([0, 0, 4, 200]), st.just(0))
outcomes = st.one_of(
    st.builds(lambda x: Compiled("ok", resources=x), takes),
    st.just(Compiled("ok", resources=Resources(9, 0, 1000))),
    st.just(Outcome("crash", reason="ended by SIGSEGV")),
)


@given(st.lists(st.floats(0.1, 10.0), max_size=12), st.dictionaries(st.integers(0, 5), outcomes))
def test_the_second_stage_only_moves_what_was_compiled(
    seconds: list[float], made: dict[int, Outcome]
) -> None:
    ranked = [({"rows": at}, x) for at, x in enumerate(sorted(seconds))]
    made = {at: x for at, x in made.items() if at < len(ranked)}
    found, reasons = put_right(ranked, made, 999)
    places = [choice["rows"] for choice, _ in found]
    if not any(isinstance(x, Compiled) for x in made.values()):
        assert found == ranked and set(reasons) == set(made)
        return
    large = {at for at, x in made.items() if isinstance(x, Compiled) and x.resources.shared_bytes}
    failed = {at for at, x in made.items() if x.state != "ok"}
    assert sorted(places) == [at for at in range(len(ranked)) if at not in large]
    assert set(reasons) == large | failed
    assert set(places[len(places) - len(failed) :]) == failed
    first = [at for at in places if at < FEW and at not in failed]
    assert places[: len(first)] == first and places[len(first) : len(places) - len(failed)] == [
        at for at in range(FEW, len(ranked))
    ]
    spills = {at: x.resources.spills for at, x in made.items() if isinstance(x, Compiled)}
    free = [at for at in first if not spills.get(at)]
    assert free == sorted(free), "what does not spill stays in the model's order"


def test_schedules_of_processors_are_not_compiled_ahead() -> None:
    with pytest.raises(UnsupportedError, match="no GPU"):
        resources(GRAPH, named_target("znver4"), 0, UNITS, {})
