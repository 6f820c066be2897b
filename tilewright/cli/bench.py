"""``tilewright bench``: suites against other providers, reports, and the figures of single
topics."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from tilewright.bench.suites.catalogue import SUITES, unknown
from tilewright.cli.long_runs import INTERRUPTED
from tilewright.cli.output import note
from tilewright.ir.errors import BenchError

if TYPE_CHECKING:  # importing a command must not import torch
    from tilewright.bench.devices import Device
    from tilewright.bench.providers.catalogue import Provider
    from tilewright.bench.report.document import Document

FIGURES = {
    "attention": "attention beside torch; memory, compiling, first calls",
    "cross_entropy": "the loss of a product over a large vocabulary",
    "determinism": "what each level of determinism costs beside the default",
    "demo": "a small Llama, layer by layer and in few bits",
    "expert_memory": "experts of adapters in memory: pages, loading, pauses",
    "experts": "layers of experts",
    "kv_cache": "attention over caches of few bits",
    "lowbit": "products with weights of few bits",
    "masks": "masks and scores, and their first calls",
    "placement": "experts on devices",
    "routing": "routers with adapters",
    "simulator": "the streaming machine",
    "soak": "64 threads at work for minutes: nothing wrong, lost or left over",
    "tuning_quality": "the cost model's order of schedules held against measuring them all",
}
REGRESSION = 1
SITTINGS = 7
SUITE_HELP = "; ".join(f"{name}: {about}" for name, about in SUITES.items())
_PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


class _Bench(TyperGroup):
    """``bench attention …`` is ``bench suite attention …``, and so on: see ``spelled_out``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spelled_out(args))


app = typer.Typer(
    cls=_Bench,
    no_args_is_help=True,
    help="Measure against other providers (bench SUITE --vs …), compare reports, show them.",
    epilog=f"Suites: {SUITE_HELP}.",
)


def spelled_out(args: list[str]) -> list[str]:
    """With the command's name: SUITE alone is ``suite SUITE``, a topic of figures that is no suite
    is ``figures TOPIC``."""
    if not args or args[0].startswith("-") or args[0] in COMMANDS:
        return args
    if args[0] in FIGURES and args[0] not in SUITES:
        return ["figures", *args]
    return ["suite", *args]


@app.command("suite")
def run_suite(  # noqa: PLR0913, PLR0917  (options of a command)
    suite: Annotated[str, typer.Argument(help=SUITE_HELP)],
    vs: Annotated[
        list[str] | None,
        typer.Option(help="A provider or a group (torch, all); several, or with commas."),
    ] = None,
    only: Annotated[str, typer.Option(help="Only problems with this in name or section.")] = "",
    seconds: Annotated[float, typer.Option(min=0.1, help="For each problem in all.")] = 4.0,
    sittings: Annotated[
        int | None,
        typer.Option(
            min=1, max=50, help="Times everything is set up anew (7); 3 at least to compare."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda or cuda:NUMBER: where everybody computes.")
    ] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Tiny, to see that it works.")] = False,
    dry: Annotated[
        bool, typer.Option("--dry", help="Rehearse --device cuda without one: quick, interpreted.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write it as Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as one HTML page.")] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Write all three into bench/results/, too.")
    ] = False,
) -> None:
    """Measure a suite: Tilewright and every provider in turns."""
    if dry:  # before anything imports Triton
        os.environ["TRITON_INTERPRET"] = "1"
    from tilewright.bench import devices
    from tilewright.bench.one_sitting import Options
    from tilewright.bench.report.terminal import Display, show
    from tilewright.bench.run_document import document_of
    from tilewright.bench.running import run
    from tilewright.bench.suites import catalogue
    from tilewright.runtime.whole_file import check_writable

    quick = quick or dry
    if save and (quick or only):
        raise BenchError("only a whole run is saved: leave out --quick, --dry and --only")
    place = devices.device(device, dry)
    found = catalogue.suite(suite, place)
    for path in filter(None, (json, markdown, html)):
        check_writable(path, BenchError)
    providers = _providers(vs or (), place)
    options = Options(
        _sittings(sittings, quick, dry), seconds, quick, only, "new", not quick, place
    )
    with _new_caches(), Display(Console(stderr=True, highlight=False)) as display:
        finished = run(found, providers, options, display)
    document = document_of(finished)
    show(document)
    _write(document, json, markdown, html)
    if finished.cut_short:
        note(finished.cut_short)
        raise typer.Exit(INTERRUPTED if finished.interrupted else 1)
    if save:
        _keep(document)


def _sittings(asked: int | None, quick: bool, dry: bool) -> int:
    """As many as were asked for; of a trial run no more than show that it works, and a note."""
    if not quick:
        return SITTINGS if asked is None else asked
    most, option = (1, "--dry") if dry else (2, "--quick")
    if asked is not None and asked > most:
        note(f"{option} has {most} of the {asked} sittings; leave it out to measure in all of them")
    return min(most, asked or most)


@app.command()
def show(
    report: Annotated[Path, typer.Argument(help="A JSON file of bench SUITE.")],
    markdown: Annotated[Path | None, typer.Option(help="Write it as Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as one HTML page.")] = None,
) -> None:
    """Show a report again, or write it as Markdown or as a page. Measures nothing."""
    from tilewright.bench.report.document import load
    from tilewright.bench.report.terminal import show as tables

    document = load(report)
    if markdown is None and html is None:
        tables(document)
    _write(document, None, markdown, html)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json")],
    after: Annotated[Path, typer.Argument(metavar="B.json")],
    threshold: Annotated[
        float, typer.Option(min=0.0, help="Smaller changes are none, whatever the intervals say.")
    ] = 0.05,
    other_machine: Annotated[
        bool, typer.Option("--other-machine", help="Compare reports of different machines, too.")
    ] = False,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="Two runs of one build: count ratios that agree.")
    ] = False,
) -> None:
    """Say what is slower or less exact in B than in A by more than noise; exit with 1 if anything
    is."""
    from tilewright.bench.report import compare as c
    from tilewright.bench.report.document import load
    from tilewright.bench.report.terminal import show_agreement, show_comparison

    a, b = load(before), load(after)
    found = c.compare(a, b, threshold, other_machine)
    show_comparison(found)
    if agreement:
        show_agreement(c.agreement(a, b))
    if found.regressions:
        raise typer.Exit(REGRESSION)


@app.command("list")
def list_() -> None:
    """Suites and providers, and which of them are here."""
    from tilewright.bench.providers.catalogue import PROVIDERS
    from tilewright.cli.output import heading, table

    heading("suites")
    table(("name", "what"), list(SUITES.items()), indent=2)
    heading("providers")
    rows = []
    for provider in PROVIDERS:
        absence = provider.absence()
        versions = ", ".join(f"{name} {number}" for name, number in provider.versions().items())
        rows.append(
            (provider.name, absence or "here", versions, provider.install if absence else "")
        )
    table(("name", "state", "version", "how to get it"), rows, indent=2)
    heading("figures")
    table(("name", "what"), list(FIGURES.items()), indent=2)


@app.command("figures", context_settings=_PASSED_ON)
def figures(context: typer.Context, topic: Annotated[str, typer.Argument()] = "") -> None:
    """The figures of one topic that the README shows, held to their goals: options go to it."""
    from tilewright.cli.output import heading, table

    if topic in ("-h", "--help"):  # passed on, too: `bench figures attention --help` is its own
        heading("tilewright bench figures TOPIC [OPTIONS]")
        table(("topic", "what"), list(FIGURES.items()), indent=2)
        return
    if topic not in FIGURES:
        raise BenchError(unknown("topic of figures", topic, FIGURES))
    _pass_on(topic, context.args)


@app.command("readme", context_settings=_PASSED_ON)
def readme(context: typer.Context) -> None:
    """Write the newest figures into README.md and docs/results.md (--check: are they there?)."""
    _pass_on("readme", context.args)


COMMANDS = ("suite", "show", "compare", "list", "figures", "readme")


def _pass_on(module: str, args: list[str]) -> None:
    found = importlib.import_module(f"tilewright.bench.{module}")
    sys.argv = [f"tilewright bench {module}", *args]
    found.app()


def _write(document: object, json: Path | None, markdown: Path | None, html: Path | None) -> None:
    from tilewright.bench.report.document import Document
    from tilewright.bench.report.markdown import markdown as as_markdown
    from tilewright.bench.report.page import page
    from tilewright.runtime.whole_file import write_whole

    assert isinstance(document, Document)
    kinds = ((json, Document.to_json), (markdown, as_markdown), (html, page))
    for path, made in kinds:
        if path is not None:
            write_whole(path, made(document).encode(), BenchError, force=True)
            typer.echo(f"wrote {path}", err=True)


def _providers(given: Iterable[str], place: Device) -> list[Provider]:
    """Those that were asked for; of which are absent a note."""
    from tilewright.bench.providers.catalogue import chosen

    found = chosen([name for names in given for name in names.split(",") if name])
    for provider in found:
        if absence := provider.absence(place):
            note(f"{provider.title} is absent: {absence}")
    return found


def _keep(document: Document) -> None:
    """In bench/results/, as JSON, Markdown and a page."""
    from tilewright.bench.records import RESULTS
    from tilewright.bench.report.kept import default_name

    path = RESULTS / default_name(document)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(document, path, path.with_suffix(".md"), path.with_suffix(".html"))


@contextmanager
def _new_caches() -> Iterator[None]:
    """Empty folders of compiled kernels, ours and Inductor's, so that compiling is measured; with
    them no schedules that this user has tuned."""
    from tilewright.runtime.native_code import kernel_cache
    from tilewright.runtime.settings import settings

    names = ("TILEWRIGHT_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory(prefix="tilewright-bench-") as folder:
        os.environ.update({name: str(Path(folder) / name) for name in names})
        settings.cache_clear()  # suites have been imported, and with them what reads settings
        kernel_cache.cache_clear()
        try:
            yield
        finally:
            settings.cache_clear()
            kernel_cache.cache_clear()
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
