"""``tilewright bundle``: kernels compiled into a folder that loads without a compiler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import tilewright
from tilewright.cli.output import amount, note, plural, say, table
from tilewright.cli.programs import only_one_graph, read_program
from tilewright.cli.sizes import choose_sizes, parse_sizes
from tilewright.ir.core import Module
from tilewright.ir.errors import BundleError, SettingError, TilewrightError, UnsupportedError
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    from tilewright.runtime.bundle.export import Exporter, Made
    from tilewright.runtime.tracing.kernels import TracedKernel


def bundle(
    source: Annotated[
        str, typer.Argument(metavar="TRACE|FILE.tw", help="A trace, or a program; - is stdin.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="The folder to write.")
    ],
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N=1,M=4096",
            help="Sizes of a call that the program is for; repeatable. None: all row classes.",
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="Processor: host, x86-64-v3, znver5 …, cuda-sm90 …")
    ] = "host",
    every_class: Annotated[
        bool,
        typer.Option(help="Besides the calls' row classes, all others of their kernels."),
    ] = False,
    force: Annotated[bool, typer.Option(help="Replace the bundle that is there.")] = False,
) -> None:
    """Compile the kernels of a trace or of a program into FOLDER: a shared library, a C header and
    a manifest (for a GPU: cubin and PTX)."""
    from tilewright.runtime.bundle.folder import check_place, write_folder

    place = out.expanduser().absolute()
    check_place(place, force)
    exporter = _exporter(target)
    exporter.every_class = every_class
    if _is_trace(source):
        if sizes:
            raise SettingError("--sizes: a trace has the sizes of its calls; leave them out")
        _add_trace(exporter, source)
    else:
        module = read_program(source)
        only_one_graph(module, source, "bundle")
        _add_program(exporter, module, sizes or [])
    made = exporter.made()
    write_folder(place, made.manifest, made.files, force)
    _show(made, place)


def _exporter(target: str) -> Exporter:
    from tilewright.runtime.bundle.export import Exporter
    from tilewright.runtime.targets import resolve_target

    return Exporter(resolve_target(target), tilewright.__version__)


def _is_trace(source: str) -> bool:
    """A folder of parts, or a file of JSON; programs begin with a word or a comment."""
    path = Path(source)
    if source == "-" or not path.exists():
        return False
    if path.is_dir():
        return True
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip().startswith(b"{")
    except OSError as error:
        raise SettingError(f"cannot read {source!r}: {error.strerror}") from None


def _add_program(exporter: Exporter, module: Module, sizes: list[str]) -> None:
    """A program for the calls that the user names, or in all its row classes."""
    from tilewright.runtime.bundle.export import meta_inputs

    if module.main.level == "stream":
        raise SettingError("bundle takes programs at the tensor level (graph …) or the tile level")
    if not sizes:
        exporter.add(module, None)
        return
    if module.main.level == "tile":
        raise SettingError("--sizes: a tile program is one kernel for all sizes; leave them out")
    for text in sizes:
        values = choose_sizes(module.main, parse_sizes([text]))
        shapes = []
        for param in module.main.params:
            assert isinstance(param.type, TensorType)
            shape = tuple(size.evaluate(values) for size in param.type.shape)
            shapes.append((param.type.dtype.name, shape, None))
        exporter.add(module, meta_inputs(shapes))


def _add_trace(exporter: Exporter, source: str) -> None:
    """Every program and kernel of a trace; what cannot be bundled is said, and left out."""
    from tilewright.runtime.tracing.file import read_trace

    trace = read_trace(source)
    rows = list(_rows(trace, exporter))
    if not rows:
        kind, other = ("GPU", "CPUs") if exporter.target.gpu else ("CPU", "GPUs")
        why = f": what it ran, it ran on {other}; trace on a {kind}, or bundle the .tw programs"
        raise BundleError(
            f"{source} has no kernel for {exporter.target.name}: nothing to bundle"
            + why * bool(trace.kernels)
        )
    left: dict[str, str] = {}
    for row in rows:
        try:
            _add_row(exporter, row, trace.machine)
        except TilewrightError as error:
            left.setdefault(row.name, error.message.splitlines()[0])
    for name, reason in left.items():
        note(f"left out {name}: {reason}")
        exporter.uncalled.setdefault(name, reason[:300])


def _rows(trace: object, exporter: Exporter) -> Iterator[TracedKernel]:
    """The rows that are for the bundle's kind of device."""
    from tilewright.runtime.tracing.kernels import Trace

    assert isinstance(trace, Trace)
    gpu = bool(exporter.target.gpu)
    for row in trace.kernels:
        if row.level != "stream" and (row.options.get("device", "cpu") != "cpu") == gpu:
            yield row


def _add_row(exporter: Exporter, row: TracedKernel, machine: Mapping[str, str]) -> None:
    """Adds a row of a trace that was made on a ``machine``."""
    from tilewright.runtime.threads import set_num_threads

    here = exporter.target.cpu, exporter.target.features
    same = row.target == exporter.target.name
    if row.target == "host":
        same = same and (machine.get("cpu"), machine.get("features")) == here
    if row.level == "tile" and not same:
        raise UnsupportedError(
            f"a tile program for {row.target}, not for {exporter.target.name}: trace there"
        )
    threads = row.options.get("threads")
    set_num_threads(threads if isinstance(threads, int) and threads > 0 else None)
    try:
        exporter.add(row.module(), row.meta_inputs() if row.level == "graph" else None)
    finally:
        set_num_threads(None)


def _show(made: Made, place: Path) -> None:
    """What is in the bundle now."""
    manifest = made.manifest
    rows = []
    for program in manifest.programs:
        forms = sum(len(step.family.forms) for step in program.steps)
        rows.append((program.name, ", ".join(program.inputs), len(program.steps), forms))
    table(("program", "inputs", "kernels", "forms"), rows, right=("kernels", "forms"))
    for name, reason in manifest.uncalled.items():
        note(f"{name} has no name to be called by: {reason}")
    total = sum(entry.bytes for entry in manifest.files.values())
    say(
        f"wrote {place}: {plural(len(manifest.codes), 'kernel')} for {manifest.target.name} "
        f"({manifest.target.cpu}), {amount(total)}"
    )
