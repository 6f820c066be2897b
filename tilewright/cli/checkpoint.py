"""``tilewright checkpoint``: quantised checkpoints of other tools, looked at and converted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilewright.cli.output import amount, heading, note, plural, say, table
from tilewright.ir.errors import SettingError

if TYPE_CHECKING:  # torch loads only when a command runs
    from tilewright.frontend.checkpoints import Checkpoint, Converted, Weight
    from tilewright.frontend.quantize.plan import Plan

app = typer.Typer(
    help="Look into quantised checkpoints (GPTQ, AWQ, GGUF, …), or convert them.",
    no_args_is_help=True,
)
UNREADABLE = 1  # the exit code of ``inspect`` if something cannot be read

_Path = Annotated[
    Path, typer.Argument(metavar="PATH", help="A .safetensors, .gguf or .onnx file, or a folder.")
]
_ZeroPoint = Annotated[
    str | None,
    typer.Option(metavar="v1|v2", help="How GPTQ's zeros are stored; default: the data decide."),
]


@app.command("inspect")
def inspect(
    path: _Path,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    layers: Annotated[bool, typer.Option(help="List every layer, too.")] = False,
    zero_point: _ZeroPoint = None,
) -> None:
    """Say which formats, widths and groups a checkpoint has, and how its zeros are stored.

    Ends with exit code 1 if some of it cannot be read.
    """
    from tilewright.frontend.checkpoints import open_checkpoint

    opened = open_checkpoint(path, zero_point)
    if as_json:
        say(json.dumps(_facts(opened), indent=2, ensure_ascii=False))
    else:
        _show(opened, layers)
    if opened.problems:
        raise typer.Exit(UNREADABLE)


def _stored(opened: Checkpoint, names: tuple[str, ...]) -> int:
    return sum(opened.source.entries[name].nbytes for name in names)


def _facts(opened: Checkpoint) -> dict[str, Any]:
    rule = opened.zero_rule
    weights = [
        {
            "name": weight.name,
            "format": weight.format,
            "dtype": weight.dtype,
            "bits": weight.bits,
            "shape": list(weight.shape),
            "group": weight.group,
            "zeros": weight.zeros,
            "note": weight.note,
            "bytes": _stored(opened, weight.tensors),
            "tensors": list(weight.tensors),
        }
        for weight in opened.weights.values()
        if not weight.problem
    ]
    return {
        "path": str(opened.source.path),
        "container": opened.source.container,
        "method": opened.source.quantization.get("quant_method"),
        "weights": weights,
        "zero_rule": None
        if rule is None
        else {
            "rule": rule.rule,
            "decided_by": rule.decided_by,
            "claimed": rule.claimed,
            "contradicts": rule.contradicts,
            "evidence": rule.why,
        },
        "plain": {"tensors": len(opened.plain), "bytes": _stored(opened, opened.plain)},
        "unreadable": opened.problems,
    }


def _show(opened: Checkpoint, layers: bool) -> None:
    source = opened.source
    total = sum(entry.nbytes for entry in source.entries.values())
    count = plural(len(source.entries), "tensor")
    say(f"{source.path}: {source.container}, {count}, {amount(total)}")
    readable = [w for w in opened.weights.values() if not w.problem]
    kinds = Counter((w.format, w.dtype, w.bits, w.group, w.zeros) for w in readable)
    rows = [_kind_row(opened, kind, readable) for kind in kinds]
    columns = ("format", "dtype", "bits", "group", "zeros", "layers", "size", "bits per weight")
    table(columns, rows, right=("bits", "layers", "size", "bits per weight"), indent=2)
    say(
        f"  not quantised: {plural(len(opened.plain), 'tensor')}, "
        f"{amount(_stored(opened, opened.plain))}"
    )
    if (rule := opened.zero_rule) is not None:
        heading("zero points")
        say(f"  {rule}")
    notes = Counter(w.note for w in readable if w.note)
    for text, layers_with_it in notes.items():
        say(f"  {plural(layers_with_it, 'layer')}: {text}")
    if layers:
        heading("layers")
        listed = [(w.name, w.format, w.dtype, list(w.shape), _group(w.group)) for w in readable]
        table(("name", "format", "dtype", "shape", "group"), listed, indent=2)
    if opened.problems:
        heading(f"cannot be read: {len(opened.problems)}")
        for name, reason in opened.problems.items():
            say(f"  {name}: {reason}")


def _kind_row(
    opened: Checkpoint, kind: tuple[str, str, int, int, str], readable: list[Weight]
) -> tuple[object, ...]:
    own = [w for w in readable if (w.format, w.dtype, w.bits, w.group, w.zeros) == kind]
    size = sum(_stored(opened, w.tensors) for w in own)
    count = sum(_count(w.shape) for w in own)
    label, dtype, bits, group, zeros = kind
    each = f"{8 * size / count:.2f}" if count else "-"
    return label, dtype, bits, _group(group), zeros or "none", len(own), amount(size), each


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _group(group: int) -> str:
    return str(group) if group else "tensor"


@app.command("convert")
def convert(
    path: _Path,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A folder or .safetensors file to be made.")
    ],
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='JSON: {"*.down_proj": "u6", …}; quantises plain weights, and others anew.',
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="Quantise all plain weights to this, too.")
    ] = None,
    group: Annotated[int, typer.Option(metavar="N", help="Their group.")] = 64,
    keep_unread: Annotated[
        bool, typer.Option("--keep-unread", help="Keep what cannot be read as it is.")
    ] = False,
    zero_point: _ZeroPoint = None,
) -> None:
    """Write a checkpoint with tilewright's quantised tensors; the values stay what they are.

    Everything is written, or nothing. A folder of a transformers model loads with from_pretrained.
    """
    from tilewright.frontend.checkpoints import convert_checkpoint, open_checkpoint

    opened = open_checkpoint(path, zero_point)
    if (rule := opened.zero_rule) is not None:
        note(f"zero points: {rule}")
    report = convert_checkpoint(opened, out, _plan(plan, dtype, group), keep_unread=keep_unread)
    _report(report)


def _plan(path: Path | None, dtype: str | None, group: int) -> Plan | None:
    """The plan that the options describe; None if they say nothing. Raises SettingError."""
    from tilewright.frontend.quantize.plan import Plan

    if path is None:
        return None if dtype is None else Plan.of(dtype, group=group)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(
            f"--plan: cannot read {str(path)!r}: {error.strerror}; name a JSON file such as "
            '{"*.down_proj": "u6"}'
        ) from None
    except (ValueError, RecursionError) as error:
        raise SettingError(f"--plan {path}: {error}") from None
    if not isinstance(rows, dict):
        raise SettingError(f"--plan {path}: must hold a JSON object of patterns and dtypes")
    return Plan.of(dtype, rows, group=group)


def _report(report: Converted) -> None:
    before = sum(row.bytes_before for row in report.rows)
    after = sum(row.bytes_after for row in report.rows)
    kinds = Counter((row.source, row.dtype, _group(row.group)) for row in report.rows)
    rows = [(source, dtype, group, count) for (source, dtype, group), count in kinds.items()]
    table(("from", "to", "group", "layers"), rows, right=("layers",))
    say(
        f"{plural(len(report.rows), 'layer')}: {amount(before)} before, {amount(after)} now; "
        f"{plural(len(report.kept), 'other tensor')} as they were"
    )
    for name, reason in report.unread.items():
        note(f"not read, kept as it is: {name}: {reason}")
    for name in report.not_copied:
        note(f"not copied, since it is a link out of the folder or too large: {name}")
    for pattern in report.unused_patterns:
        note(f"no weight is named like {pattern!r} of the plan")
    say(f"written: {report.path}")
