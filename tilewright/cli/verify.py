"""``tilewright verify``: drawn programs, or one that is given, held to the oracle's bound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import tilewright
from tilewright.cli.inputs import check_memory, input_shapes, result_shapes
from tilewright.cli.long_runs import INTERRUPTED, duration
from tilewright.cli.output import note, plural, say, table
from tilewright.cli.programs import only_tensor_level, read_program
from tilewright.cli.sizes import names_of
from tilewright.ir.errors import DataError, SettingError, close_to

if TYPE_CHECKING:
    from tilewright.ir.core import Module
    from tilewright.runtime.verification.campaign import Failure, Plan, Tally
    from tilewright.runtime.verification.grammar.cases import Place

FAILED = 1  # exit code when a case fails that the ledger does not explain


def verify(  # noqa: PLR0913, PLR0917 (Typer wants each option as a parameter)
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="One program; without it, drawn ones.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long: 60s, 10m, 1h.")
    ] = None,
    cases: Annotated[int | None, typer.Option(min=1, help="How many cases at most.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="What is drawn follows from it.")] = 0,
    backend: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="mlir, numba, interpreter, cuda-host …; repeatable."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Processor: host, x86-64-v3 …; repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="graphs, rows, attention, products, lowbit, routing."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what was verified, as JSON.")
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where programs that fail are written.")
    ] = Path("verify-failures"),
    max_failures: Annotated[int, typer.Option(min=1, help="End after so many failures.")] = 20,
    timeout: Annotated[
        str, typer.Option(metavar="TIME", help="Processor time of one case until it hangs.")
    ] = "60s",
) -> None:
    """Draw programs, sizes, strides and numbers; compare back ends with the float64 oracle."""
    from tilewright.runtime.verification.campaign import require_hypothesis
    from tilewright.runtime.verification.certificate import certificate as certified
    from tilewright.runtime.verification.certificate import write_certificate
    from tilewright.runtime.whole_file import check_folder, check_writable

    require_hypothesis()
    check_folder(out, DataError)
    if certificate is not None:
        check_writable(certificate, DataError)
    module = None if file is None else only_tensor_level(read_program(file), file, "verify")
    if module is not None:  # the smallest call of it
        least = dict.fromkeys(names_of(module.main), 1)
        check_memory([*input_shapes(module.main, least), *result_shapes(module.main, least)])
    plan = _plan(module, budget, cases, seed, (backend, target), only)
    plan = replace(plan, most=max_failures)
    tally, files = _run(module, plan, out, duration("--timeout", timeout))
    _summary(tally, files)
    if certificate is not None:
        write_certificate(certificate, certified(plan, tally, tilewright.__version__, files))
        note(f"certificate in {certificate}")
    if tally.failures:
        raise typer.Exit(FAILED)
    if tally.interrupted:
        raise typer.Exit(INTERRUPTED)


def _run(
    module: Module | None, plan: Plan, out: Path, seconds: float
) -> tuple[Tally, dict[int, Path]]:
    """The campaign: its tally, and where failures were written."""
    from tilewright.runtime.verification import workers
    from tilewright.runtime.verification.campaign import Campaign
    from tilewright.runtime.verification.failures import write_failure
    from tilewright.runtime.verification.ledger import read_ledger

    files: dict[int, Path] = {}

    def tell(number: int, failure: Failure) -> None:
        try:
            files[number] = write_failure(out, failure, tilewright.__version__)
        except DataError as error:  # the disk is full by now: say it, and go on
            note(f"{failure.outcome.status}: {error.message}; its program:\n{failure.case.text}")
            return
        note(f"{failure.outcome.status}: {files[number]}")

    with workers.Worker(seconds) as worker, Live(plan) as live:
        campaign = Campaign(plan, worker, read_ledger(), module)
        try:
            campaign.run(live.watch, tell)
        except KeyboardInterrupt:
            campaign.tally.interrupted = True
            return campaign.stopped(), files
    return campaign.tally, files


def _plan(
    module: Module | None,
    budget: str | None,
    cases: int | None,
    seed: int,
    where: tuple[list[str] | None, list[str] | None],
    only: list[str] | None,
) -> Plan:
    from tilewright.runtime.verification.campaign import Plan
    from tilewright.runtime.verification.grammar.cases import KINDS

    for kind in only or ():
        if kind not in KINDS:
            near = close_to(kind, KINDS)
            raise SettingError(f"--only {kind}: unknown kind{near}; known: {', '.join(KINDS)}")
    if module is not None and only:
        raise SettingError("--only chooses among drawn programs; a file is one program")
    if budget is None and cases is None:
        budget = "60s"
    seconds = None if budget is None else duration("--budget", budget)
    kinds = tuple(only or KINDS) if module is None else ("given",)
    return Plan(_places(*where), kinds, seed, cases, seconds)


def _places(backends: list[str] | None, targets: list[str] | None) -> tuple[Place, ...]:
    """Back ends on targets; numba and the interpreter once. Raises TargetError,
    BackendMissingError."""
    from tilewright.runtime.backends import choose_backend, default_backend
    from tilewright.runtime.targets import program_target, require_runnable
    from tilewright.runtime.verification.grammar.cases import Place

    out = []
    for name in backends or [default_backend()]:
        backend = choose_backend(name)
        for target in targets or ["host"]:
            wanted = None if target == "host" else target
            if backend == "numba":
                wanted = None  # plain loops, whatever the target
            found = program_target(wanted, backend)
            if backend == "mlir":
                require_runnable(found)
            out.append(Place(backend, wanted))
    return tuple(dict.fromkeys(out))


class Live:
    """A line that says how far a campaign is: on a terminal in place, else one now and then."""

    def __init__(self, plan: Plan) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("verify"),
            BarColumn(24),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            refresh_per_second=2,
        )
        self._plan, self._shown = plan, 0.0
        self._quiet = not console.is_terminal
        self._task = self._progress.add_task("", total=plan.seconds or plan.cases)

    def __enter__(self) -> Live:
        if not self._quiet:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._quiet:
            self._progress.stop()

    def watch(self, campaign: object) -> None:
        """Called after every case."""
        from tilewright.runtime.verification.campaign import Campaign

        assert isinstance(campaign, Campaign)
        tally = campaign.tally
        text = f"{plural(tally.cases, 'case')}, {plural(len(tally.failures), 'failure')}"
        text += f", worst {max(tally.worst.values(), default=0):.2g} of the bound"
        done = campaign.elapsed if self._plan.seconds is not None else tally.cases
        self._progress.update(self._task, completed=done, description=text)
        if self._quiet and campaign.elapsed - self._shown >= EVERY:
            self._shown = campaign.elapsed
            note(f"{campaign.elapsed:.0f} s: {text}")


MOST_REASONS = 5  # for refusals that are shown; the certificate has all
EVERY = 30.0  # s between lines where there is no terminal


def _summary(tally: Tally, files: dict[int, Path]) -> None:
    columns = ["kind", "where", "cases", "ok", "refused", "explained", "failed", "error ÷ bound"]
    rows = []
    for (kind, where), counts in sorted(tally.by_place.items()):
        ok, refused, explained = (counts[s] for s in ("ok", "refused", "explained"))
        failed = counts.total() - ok - refused - explained
        worst = tally.worst.get((kind, where), 0.0)
        rows.append(
            (kind, where, counts.total(), ok, refused, explained, failed or "", f"{worst:.2g}")
        )
    table(columns, rows, right=columns[2:])
    say(
        f"{plural(tally.cases, 'case')}, {plural(tally.calls, 'call')}, "
        f"{plural(tally.elements, 'element')} ({tally.unspecified} unspecified) in "
        f"{tally.seconds:.0f} s, in {plural(tally.processes, 'worker process', 'es')}"
        + (", interrupted" if tally.interrupted else "")
    )
    for reason, count in tally.refused.most_common(MOST_REASONS):
        say(f"refused  {plural(count, 'case')}: {reason}")
    for kind, where in tally.unverified:
        say(f"nothing of {kind} was verified on {where}: every case was refused")
    for name, count in tally.explained.items():
        say(f"known    {name}: {plural(count, 'case')}")
    for at, failure in enumerate(tally.failures):
        what = failure.outcome.message.splitlines()[:1] or [
            f"error ÷ bound {failure.outcome.comparison.ratio:.3g}"
        ]
        say(f"{failure.outcome.status:<8} {failure.case.where}: {what[0][:160]}")
        say(f"         {files.get(at, 'not written')}")
    if tally.repeated:
        say(f"         and {plural(tally.repeated, 'failure')} like these")
