"""Adapters on one model, in one batch: ``python -m tilewright.bench.adapters_demo``.

Every sequence's logits and tokens are those of its adapter's merged model: a plain copy of the
model with the adapter's experts written into it. Ends with 1 if they are not.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import tilewright
from tilewright.bench import machine
from tilewright.bench.adapters_model import (
    ADAPTERS,
    BIG,
    SMALL,
    Size,
    build,
    expert_bytes,
    merge,
    prompts,
    task_text,
    write_adapter,
)
from tilewright.bench.adapters_output import show_adapters
from tilewright.bench.command import AsJson, deliver
from tilewright.bench.llama import new_cache
from tilewright.bench.records import Comparison, Goal, Quantity, Record
from tilewright.bench.timing import summary
from tilewright.experts import record_choices, reroute

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
# whose each sequence of the batch is; None: the base model's
BATCH = ("law", None, "math", "poems", "math", "law", None, "poems")
ERROR_LIMIT = 2.0  # our error against float64 may be so many times that of torch's own operations
Merged = dict[str | None, Any]  # models by the adapter written into them
SECONDS = 5.0  # no further timed step begins after so long, on a busy machine
TRUSTED = "eager"  # transformers' own experts, in torch's operations: nothing of ours


@dataclass(frozen=True)
class Row:
    """What is shown of an adapter, or of the base. Bytes are those of experts.

    ``difference``: the largest between its logits and those of its merged model, run by the same
    kernels; ``error`` and ``torch_error``: against its merged model in float64, of our logits and
    of those that transformers' own experts give in float32.
    """

    name: str
    sequences: int
    experts: int
    layers: int
    own_bytes: int
    merged_bytes: int
    difference: float
    error: float
    torch_error: float
    tokens: int
    equal_tokens: int
    unlike_base: int

    @property
    def equal(self) -> bool:
        """The same tokens, and logits that differ by rounding at most."""
        near = self.error <= ERROR_LIMIT * self.torch_error
        rounding = (1.0 + ERROR_LIMIT) * self.torch_error
        return near and self.difference <= rounding and self.equal_tokens == self.tokens


@app.command()
def demo(
    as_json: AsJson = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny model, to see that it works.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Tokens to generate.", min=2)] = 24,
    rounds: Annotated[int, typer.Option(help="Timed decode steps.", min=1)] = 40,
) -> None:
    """Loads three generated adapters into one small Qwen3-MoE, runs one batch of sequences of all
    of them and of the base, and compares each with the merged model of its adapter."""
    record = run(SMALL if quick else BIG, steps, rounds)
    deliver(record, as_json, False, show_adapters)
    if not record.details["equal"]:
        raise typer.Exit(1)


def run(size: Size, steps: int, rounds: int) -> Record:
    """Builds, saves, loads, compares, then times decode steps in turns."""
    torch.set_num_threads(machine.THREADS)
    date, here = machine.now(), machine.describe_machine()
    tilewright.register_experts()
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        model = build(size)
        merged: Merged = {None: copy.deepcopy(model)}
        files = {name: Path(folder) / f"{name}.safetensors" for name in ADAPTERS}
        for at, (name, path) in enumerate(files.items()):
            write_adapter(model, task_text(at), path, at, size)
            merged[name] = merge(copy.deepcopy(model), path)
        bank = tilewright.ExpertBank(model, slots=len(files), experts_per_slot=size.per_slot)
        for name, path in files.items():
            bank.load(name, path, share=1.0)
        ids = prompts(len(BATCH), size.prompt)
        rows = compare(model, bank, merged, ids, steps)
        seconds = decode_steps(model, bank, merged, ids, rounds)
        read = experts_read(model, bank, ids)
    comparisons, quantities = figures(seconds)
    report = bank.report()
    details = {
        "model": asdict(size) | {"parameters": sum(p.numel() for p in merged[None].parameters())},
        "batch": list(BATCH),
        "steps": steps,
        "rows": [asdict(row) | {"equal": row.equal} for row in rows],
        "equal": all(row.equal for row in rows),
        "mapped_bytes": report.mapped_bytes,
        "existing_bytes": report.existing_bytes,
        "merged_bytes": sum(row.merged_bytes for row in rows),
        "experts_read": read,
    }
    return Record("adapters", date, here, comparisons, quantities, details)


def compare(
    model: Any,
    bank: tilewright.ExpertBank,
    merged: Merged,
    ids: torch.Tensor,
    steps: int,
) -> list[Row]:
    """The base first. All of a merged model's calls have the same batch, so that everything but the
    experts is done alike; only the rows of its own sequences count."""
    options = {"max_new_tokens": steps, "do_sample": False, "pad_token_id": 0}
    with bank.adapters(BATCH):
        logits, tokens = model(ids).logits, model.generate(ids, **options)
    base = merged[None].generate(ids, **options)
    report, rows = bank.report(), []
    for name, alone in merged.items():
        mine = [at for at, owner in enumerate(BATCH) if owner == name]
        wanted, given = alone.generate(ids, **options)[mine], tokens[mine]
        same = given[:, ids.shape[1] :] == wanted[:, ids.shape[1] :]
        error, theirs = errors(alone, ids, logits, mine)
        own = report.adapters.get(name) if name else None
        rows.append(
            Row(
                name=name or "base",
                sequences=len(mine),
                experts=sum(own.experts.values()) if own else 0,
                layers=sum(map(bool, own.experts.values())) if own else 0,
                own_bytes=own.nbytes if own else 0,
                merged_bytes=expert_bytes(alone),
                difference=largest(logits[mine] - alone(ids).logits[mine]),
                error=error,
                torch_error=theirs,
                tokens=same.numel(),
                equal_tokens=int(same.sum()),
                unlike_base=int((given != base[mine]).sum()),
            )
        )
    return rows


def errors(
    merged: Any, ids: torch.Tensor, logits: torch.Tensor, mine: list[int]
) -> tuple[float, float]:
    """The largest errors against the merged model in float64, of ``logits`` and of those that
    transformers' own experts give in float32."""
    plain = copy.deepcopy(merged)
    plain.set_experts_implementation(TRUSTED)
    theirs = plain(ids[mine]).logits
    exact = plain.double()(ids[mine]).logits
    return largest(logits[mine] - exact), largest(theirs - exact)


def largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())


def decode_steps(
    model: Any,
    bank: tilewright.ExpertBank,
    merged: Merged,
    ids: torch.Tensor,
    rounds: int,
) -> dict[str, list[float]]:
    """Seconds of a step for all sequences: with adapters, without, and by the merged models one
    after the other, each for its own sequences. In turns; the first round is not counted."""
    token, nobody = ids[:, -1:], (None,) * len(BATCH)
    sides: dict[str, Callable[[], object]] = {}

    def with_bank(owners: tuple[str | None, ...]) -> Callable[[], object]:
        cache = new_cache(model)

        def step(given: torch.Tensor = token) -> None:
            with bank.adapters(owners):
                model(given, past_key_values=cache)

        step(ids)
        return step

    def one_by_one() -> Callable[[], object]:
        groups = []
        for name, alone in merged.items():
            mine = [at for at, owner in enumerate(BATCH) if owner == name]
            cache = new_cache(model)
            alone(ids[mine], past_key_values=cache)
            groups.append((alone, token[mine], cache))

        def step() -> None:
            for alone, given, cache in groups:
                alone(given, past_key_values=cache)

        return step

    sides = {"adapters": with_bank(BATCH), "base": with_bank(nobody), "merged": one_by_one()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    begin = time.perf_counter()
    for at in range(1 + rounds):
        if at > 2 and time.perf_counter() - begin > SECONDS:
            break
        names = list(sides)
        turn = at % len(names)
        for name in (*names[turn:], *names[:turn]):
            start = time.perf_counter()
            sides[name]()
            if at:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def experts_read(model: Any, bank: tilewright.ExpertBank, ids: torch.Tensor) -> dict[str, float]:
    """How many different experts of a layer a step reads, the mean of the layers."""
    with record_choices(model) as choices, bank.adapters(BATCH):
        model(ids[:, -1:])
    slots = torch.tensor([-1 if name is None else bank.slot(name) for name in BATCH])
    plain = [_different(chosen) for chosen, _ in choices.values()]
    moved = [_different(reroute(c[0], slots, bank.maps(at))) for at, c in choices.items()]
    return {"base": sum(plain) / len(plain), "adapters": sum(moved) / len(moved)}


def _different(ids: torch.Tensor) -> int:
    return len(set(ids.flatten().tolist()))


def figures(
    seconds: Mapping[str, list[float]],
) -> tuple[tuple[Comparison, ...], tuple[Quantity, ...]]:
    """The steps as figures that are held to nothing: they depend on which experts are drawn."""
    timings = {name: summary(each) for name, each in seconds.items()}
    name = f"decode step of {len(BATCH)} sequences, {len(ADAPTERS)} adapters and the base"
    peer = f"{len(ADAPTERS) + 1} merged models in turns"
    row = Comparison(name, peer, timings["adapters"], timings["merged"], Goal())
    ratio = timings["adapters"].median / timings["base"].median
    times = {name: timing.median for name, timing in timings.items()}
    return (row,), (
        Quantity(
            "the same, as a multiple of a step without adapters", ratio, "times", Goal(), times
        ),
    )


if __name__ == "__main__":
    app()
