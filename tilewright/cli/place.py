"""``tilewright place``: experts on devices, from what a router did."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilewright.cli.long_runs import duration
from tilewright.cli.output import note, plural, say, table
from tilewright.cli.output import seconds as time_text
from tilewright.ir.errors import SettingError
from tilewright.runtime.whole_file import check_writable

if TYPE_CHECKING:  # NumPy and SciPy load only when the command runs
    from tilewright.runtime.placement.evaluate import Evaluation, Judge
    from tilewright.runtime.placement.solve import Solution

_TIMES = "\N{MULTIPLICATION SIGN}"


def place(  # noqa: PLR0913, PLR0917  (a command's options)
    trace: Annotated[
        Path,
        typer.Argument(
            metavar="TRACE",
            help="Expert ids [tokens, layers] or [tokens, layers, k]: .safetensors, .npz or .json.",
        ),
    ],
    gpus: Annotated[int, typer.Option(metavar="N", help="Devices; N has to divide the experts.")],
    nodes: Annotated[int, typer.Option(metavar="N", help="Machines that hold the devices.")] = 1,
    inter_cost: Annotated[
        int, typer.Option(metavar="N", help="A hop between machines, where one within costs 1.")
    ] = 2,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="auto, chain, exact, recursive or search.")
    ] = "auto",
    time_limit: Annotated[
        str, typer.Option(metavar="TIME", help="At most so long: 60s, 2m.")
    ] = "60s",
    experts: Annotated[
        int | None, typer.Option(metavar="N", help="Of a layer, if the trace does not say.")
    ] = None,
    hold_out: Annotated[
        float, typer.Option(metavar="SHARE", help="Judge by this share of the tokens, not used.")
    ] = 0.0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the placement there, as JSON.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace the file if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The figures, as JSON.")] = False,
) -> None:
    """Place experts so that tokens change devices rarely, with equally many on each.

    A hop is a move from one of a token's experts to one of the next layer's on another device.
    """
    from tilewright.runtime.placement import evaluate, solve
    from tilewright.runtime.placement.file import Placement
    from tilewright.runtime.placement.topology import Topology
    from tilewright.runtime.placement.trace import read_trace

    limit = duration("--time-limit", time_limit)
    _check_options(hold_out, out, force)
    topology = Topology(gpus, nodes, inter_cost)
    used = judged = read_trace(trace, experts)
    if hold_out:
        used, judged = used.split(hold_out)
    topology.experts_per_gpu(used.experts)
    chosen = evaluate.Judge(used, topology)
    solution = solve.place(chosen.affinity, topology, method=method, seconds=limit)
    judge = evaluate.Judge(judged, topology) if hold_out else chosen
    rows = (judge("placed", solution.places), *judge.references())
    facts = _facts(trace, chosen, solution, rows)
    if as_json:
        say(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _show(facts, gpus, nodes, hold_out)
    if out is not None:
        Placement(solution.places, topology, facts).save(out, force)
        note(f"written: {out}")


def _check_options(hold_out: float, out: Path | None, force: bool) -> None:
    """Before the work, not after it. Raises SettingError."""
    if not 0 <= hold_out < 1:
        raise SettingError(f"--hold-out: a share of 0 up to 1, not {hold_out:g}")
    if out is None:
        return
    if not out.parent.is_dir():
        raise SettingError(f"--out {out}: there is no folder {out.parent}")
    if out.is_file() and not force:
        raise SettingError(f"--out {out} exists: name another file, or --force to replace it")
    check_writable(out, SettingError)


def _facts(
    path: Path, judge: Judge, solution: Solution, rows: tuple[Evaluation, ...]
) -> dict[str, Any]:
    """Everything there is to say, as plain data: for --json and for the file."""
    trace = judge.trace
    return {
        "trace": {
            "file": path.name,
            "tokens": trace.tokens,
            "layers": trace.layers,
            "experts": trace.experts,
            "choices": trace.choices,
        },
        "method": solution.method,
        "seconds": round(solution.seconds, 3),
        "cost_per_token": judge.per_token(solution.cost),
        "bound_per_token": judge.per_token(solution.bound),
        "gap": solution.gap,
        "proven": solution.proven,
        "per_token": [asdict(row) for row in rows],
    }


def _show(facts: dict[str, Any], gpus: int, nodes: int, hold_out: float) -> None:
    about = facts["trace"]
    tokens, layers = plural(about["tokens"], "token"), plural(about["layers"], "layer")
    experts, each = plural(about["experts"], "expert"), plural(about["experts"] // gpus, "expert")
    machines = f" on {plural(nodes, 'node')}" if nodes > 1 else ""
    say(
        f"{about['file']}: {tokens}, {layers} of {experts}, top-{about['choices']}; "
        f"{plural(gpus, 'GPU')}{machines}, {each} on each"
    )
    rows = facts["per_token"]
    base = rows[1]  # round robin
    names = ["hops", "cost" if nodes > 1 else "", "between nodes" if nodes > 1 else ""]
    columns = [name for name in names if name]
    columns += ["of round robin", "rows, two exchanges", "rows, coherent"]
    table(
        ("per token", *columns),
        [_row(row, base, nodes > 1) for row in rows],
        right=columns,
        indent=2,
    )
    if hold_out:
        say(f"  on the last {hold_out:.0%} of the tokens, which the placement was not chosen by")
    proven = "the optimum, proven" if facts["proven"] else f"at most {facts['gap']:.1%} above it"
    say(
        f"method: {facts['method']}, {time_text(facts['seconds'])}; costs "
        f"{facts['cost_per_token']:.4g} per token, lower bound {facts['bound_per_token']:.4g}: "
        f"{proven}"
    )


def _row(row: dict[str, Any], base: dict[str, Any], several: bool) -> tuple[str, ...]:
    ratio = f"{row['cost'] / base['cost']:.2f}{_TIMES}" if base["cost"] else "-"
    far = (f"{row['cost']:.3f}", f"{row['far']:.3f}") if several else ()
    sent = (f"{row['exchange_rows']:.2f}", f"{row['coherent_rows']:.2f}")
    return row["name"], f"{row['hops']:.3f}", *far, ratio, *sent
