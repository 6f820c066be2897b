"""A transformer through PyTorch and through Tilewright: ``python -m tilewright.bench.demo``."""

from __future__ import annotations

import copy
import statistics
from dataclasses import asdict
from typing import Annotated, Any

import torch
import typer

import tilewright
from tilewright.bench import machine
from tilewright.bench.command import AsJson, Save, deliver, note
from tilewright.bench.demo_output import show_demo
from tilewright.bench.generation import WARM_UP_STEPS, Side, first_difference, generate
from tilewright.bench.kernel_list import kernels_of, operations_left, torch_regions
from tilewright.bench.llama import DEMO, TINY, ModelSize, build_model, new_cache, prompt
from tilewright.bench.lowbit_demo import with_lowbit
from tilewright.bench.lowbit_output import draw, plot_path
from tilewright.bench.records import Comparison, Goal, Quantity, Record
from tilewright.bench.timing import summary

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SPEED_GOAL = Goal(1.1, 1.3)
ERROR_GOAL = Goal(2.0, 1.0)


@app.command()
def demo(
    as_json: AsJson = False,
    save: Save = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny model, to see that it works.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Tokens to generate.", min=2)] = 64,
    repeats: Annotated[int, typer.Option(help="Timed runs of both sides.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Begin no further run after so long.")] = 60.0,
) -> None:
    """Runs a Llama of 50 M parameters on 1,024 bytes of text, then generates, on both sides.

    Then the same model with weights of 8 to 2 bits: tokens a second, and how far its logits move.
    """
    if save and quick:
        raise typer.BadParameter("only a whole run is saved: leave out --quick")
    note("running both sides, then every width: about two minutes")
    size, length = (TINY, 96) if quick else (DEMO, 1024)
    record = run(size, length, steps, repeats, seconds)
    record = with_lowbit(record, size, length // 2, steps, seconds / 3)
    deliver(record.without_goals() if quick else record, as_json, save, show_demo)
    path = plot_path(record, save)
    if draw(record.details["lowbit"]["rows"], path):
        typer.echo(f"drawn in {path}", err=True)


def run(size: ModelSize, length: int, steps: int, repeats: int, seconds: float = 60.0) -> Record:
    """Both sides on the first ``length`` bytes, then ``steps`` greedy steps, ``repeats`` times."""
    torch.set_num_threads(machine.THREADS)
    date, here = machine.now(), machine.describe_machine()
    model, ids = build_model(size), prompt(length)
    compiled = tilewright.compile(model)
    ours, theirs = Side(compiled), Side(model)
    generate((ours, theirs), lambda: new_cache(model), ids, steps, repeats, seconds)
    errors = logit_errors(model, ids, ours.logits, theirs.logits)
    report = compiled.explain().to_dict()
    return Record(
        "demo",
        date,
        here,
        comparisons(size, length, model, ours, theirs, errors),
        (
            Quantity(
                "largest logit error, as a multiple of torch's",
                errors[0] / errors[1],
                "times",
                ERROR_GOAL,
                {"ours": errors[0], "torch": errors[1]},
            ),
            first_calls(ours),
        ),
        {
            "model": asdict(size) | {"parameters": count_parameters(model)},
            "prompt": length,
            "steps": steps,
            "repeats": len(ours.prefills),
            "tokens": compare_tokens(ours, theirs),
            "graphs": len(report["graphs"]),
            "kernels": [asdict(kernel) for kernel in kernels_of(report)],
            "regions_with_torch": torch_regions(report),
            "operations_left": dict(operations_left(report).most_common()),
        },
    )


def comparisons(
    size: ModelSize, length: int, model: Any, ours: Side, theirs: Side, errors: tuple[float, float]
) -> tuple[Comparison, Comparison]:
    """Prefill, whose work is counted in operations, and a decode step, in bytes of weights read."""
    weights = count_parameters(model) - model.model.embed_tokens.weight.numel()
    scores = size.layers * size.heads * (size.hidden // size.heads) * length**2 / 2
    return (
        Comparison(
            f"demo model, prefill of {length:,} tokens",
            "torch eager",
            summary(ours.prefills),
            summary(theirs.prefills),
            SPEED_GOAL,
            (2 * weights * length + 4 * scores) / 1e9,
            "GFLOP/s",
            *errors,
        ),
        Comparison(
            "demo model, one decode step",
            "torch eager",
            summary(ours.steps),
            summary(theirs.steps),
            SPEED_GOAL,
            4 * weights / 1e9,
            "GB/s",
        ),
    )


def first_calls(ours: Side) -> Quantity:
    """Seconds that the warm-up's prefill and steps took beyond the later ones."""
    usual = statistics.median(ours.prefills) + WARM_UP_STEPS * statistics.median(ours.steps)
    seconds = sum(ours.first) - usual
    return Quantity(
        "demo model, capture and compiling", seconds, "s", Goal(), {"first": ours.first}
    )


def logit_errors(
    model: Any, ids: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor
) -> tuple[float, float]:
    """The largest errors of the prompt's logits against a copy of the model in float64."""
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(ids, use_cache=False).logits
    return float((ours - exact).abs().max()), float((theirs - exact).abs().max())


def compare_tokens(ours: Side, theirs: Side) -> dict[str, Any]:
    """Where the tokens part, and how near the choice was there and at its nearest."""
    at = first_difference(ours.tokens, theirs.tokens)
    return {
        "equal": at is None,
        "number": len(ours.tokens),
        "distinct": len(set(theirs.tokens)),
        "first_difference": at,
        # until then both sides saw the same tokens, so the gap is between the same two logits
        "gap_at_difference": None if at is None else theirs.gaps[at],
        "smallest_gap": min(theirs.gaps),
        "ours": ours.tokens,
        "torch": theirs.tokens,
    }


def count_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    app()
