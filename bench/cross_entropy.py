"""The figures of the cross-entropy of a product over a large vocabulary, and of a model's head and
its mean loss, as a command: ``python -m tilewright.bench.cross_entropy``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
import typer

import tilewright
from tilewright.bench.command import AsJson, Quick, Save, Seconds, begin, deliver
from tilewright.bench.method.memory import growth
from tilewright.bench.programs import cross_entropy_text
from tilewright.bench.records import Comparison, Goal, Quantity, Record
from tilewright.bench.timing import Effort, Timing, interleaved

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SCRATCH_GOAL = Goal(8.0, 1.0)  # MB; the logits of the first workload alone are 67
NO_GOAL = Goal()
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Workload:
    """Rows of hidden numbers times a vocabulary's weights, one label a row; ``dtype`` of both."""

    name: str
    rows: int
    hidden: int
    vocabulary: int
    goal: Goal = NO_GOAL
    dtype: torch.dtype = torch.float32

    @property
    def work(self) -> float:
        """10⁹ operations of the product."""
        return 2 * self.rows * self.hidden * self.vocabulary / 1e9

    def smaller(self) -> Workload:
        """The same problem with an eighth of the rows and words."""
        return replace(
            self,
            name=f"{self.name}, an eighth",
            rows=max(1, self.rows // 8),
            vocabulary=self.vocabulary // 8,
            goal=NO_GOAL,
        )


WORKLOADS = (
    Workload("x 512x512, vocabulary 32,768", 512, 512, 32768, Goal(1.0, 1.3)),
    Workload("x 64x1024, vocabulary 32,768", 64, 1024, 32768),
    Workload("x 1x1024, vocabulary 32,768", 1, 1024, 32768),
)

HEADS = tuple(
    Workload(f"head and mean loss, {tokens} {name}", rows, hidden, words, NO_GOAL, dtype)
    for name, dtype in (("in f32", torch.float32), ("in bf16", torch.bfloat16))
    for tokens, rows, hidden, words in (
        ("4,096 tokens x1024, vocabulary 50,000", 4096, 1024, 50_000),
        ("16 tokens x2048, vocabulary 20,000", 16, 2048, 20_000),
        ("1 token x2048, vocabulary 20,000", 1, 2048, 20_000),
    )
)


@app.command()
def cross_entropy(
    as_json: AsJson = False,
    save: Save = False,
    quick: Quick = False,
    seconds: Seconds = 4.0,
) -> None:
    """Measures cross_entropy(x @ W.T, labels) without logits in memory against PyTorch's own."""
    if save and quick:
        raise typer.BadParameter("only a whole run is saved: leave out --quick")
    record = run(Effort(seconds=seconds), quick=quick)
    deliver(record, as_json, save)


def run(effort: Effort, *, quick: bool = False) -> Record:
    """All comparisons, and the memory of the first. ``quick`` holds nothing to its goals."""
    date, here, effort = begin(effort, quick)
    chosen, heads = (
        [w.smaller() for w in found] if quick else list(found) for found in (WORKLOADS, HEADS)
    )
    rows = tuple(compare(workload, effort) for workload in chosen)
    rows += tuple(compare_head(workload, effort) for workload in heads)
    memory = scratch_memory(chosen[0]), head_memory(heads[0])
    record = Record("cross_entropy", date, here, rows, memory)
    return record.without_goals() if quick else record


def compare(workload: Workload, effort: Effort) -> Comparison:
    """One program with the product inside, and torch's product and loss one after the other."""
    program = tilewright.Program(tilewright.parse(cross_entropy_text()))
    x, weight, labels = make_inputs(workload)
    with torch.inference_mode():
        exact = torch_losses(x.double(), weight.double(), labels)
        both = program(x, weight, labels)[0], torch_losses(x, weight, labels)
        errors = [float((losses - exact).abs().max()) for losses in both]
        del exact, both

        def ours() -> torch.Tensor:
            return program(x, weight, labels)[0].mean()

        def theirs() -> torch.Tensor:
            return F.cross_entropy(x @ weight.T, labels)

        times = interleaved(ours, theirs, effort)
    return _compared(workload, "torch F.cross_entropy", times, errors)


def _compared(
    workload: Workload, peer: str, times: tuple[Timing, Timing], errors: list[float]
) -> Comparison:
    return Comparison(
        workload.name,
        peer,
        *times,
        goal=workload.goal,
        work=workload.work,
        unit="GFLOP/s",
        our_error=errors[0],
        their_error=errors[1],
    )


class Head(torch.nn.Module):
    """The last layer of a language model, and the mean loss of its logits in f32."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.head.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.head(hidden).float(), labels)


def compare_head(workload: Workload, effort: Effort) -> Comparison:
    """A head and its loss as torch runs them, and under ``tilewright.compile``."""
    x, weight, labels = make_inputs(workload)
    head = Head(weight)
    compiled = tilewright.compile(head)
    with torch.no_grad():
        exact = torch_losses(x.double(), weight.double(), labels).mean()
        errors = [float(abs(f(x, labels) - exact)) for f in (compiled, head)]
        times = interleaved(lambda: compiled(x, labels), lambda: head(x, labels), effort)
    return _compared(workload, "torch nn.Linear and F.cross_entropy", times, errors)


def head_memory(workload: Workload) -> Quantity:
    """MB that the process grows by at the peak of a head's loss (on Linux only), and by torch's."""
    x, weight, labels = make_inputs(workload)
    head = Head(weight)
    compiled = tilewright.compile(head)
    with torch.no_grad():
        compiled(x[:64], labels[:64])  # compiled and loaded before the measurement
        ours, theirs = growth(lambda: compiled(x, labels)), growth(lambda: head(x, labels))
    details = {"torch_bytes": None if theirs is None else theirs.peak}
    value = 0.0 if ours is None else ours.peak / 1e6
    return Quantity(f"memory, {workload.name}", value, "MB", NO_GOAL, details)


def torch_losses(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One loss a row."""
    return F.cross_entropy(x @ weight.T, labels, reduction="none")


def make_inputs(workload: Workload) -> Tensors:
    """Rows, weights whose products are of size one, and labels; the same in every run."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(workload.rows, workload.hidden, generator=generator)
    weight = torch.randn(workload.vocabulary, workload.hidden, generator=generator)
    labels = torch.randint(0, workload.vocabulary, (workload.rows,), generator=generator)
    return x.to(workload.dtype), (weight * workload.hidden**-0.5).to(workload.dtype), labels


def scratch_memory(workload: Workload) -> Quantity:
    """MB beyond inputs and losses: the larger of what kernels declare and how far the process
    grew (the latter on Linux only)."""
    program = tilewright.Program(tilewright.parse(cross_entropy_text()))
    x, weight, labels = make_inputs(workload)
    with torch.inference_mode():
        program(x, weight[:64], labels % 64)  # compiled and loaded before the measurement
        grown = growth(lambda: program(x, weight, labels))
    grown_bytes = None if grown is None else grown.peak
    kernels = program.explain().kernels
    declared = sum(max(v.scratch_bytes for v in kernel.variants) for kernel in kernels)
    declared *= torch.get_num_threads()
    details = {"declared_bytes": declared, "growth_bytes": grown_bytes, "kernels": len(kernels)}
    value = max(declared, grown_bytes or 0) / 1e6
    return Quantity(f"scratch memory, {workload.name}", value, "MB", SCRATCH_GOAL, details)


if __name__ == "__main__":
    app()
