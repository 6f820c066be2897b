"""The charts of a report: where everything lies. The page draws them, and has the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tilewright.bench.method.statistics import Estimate
from tilewright.bench.providers.catalogue import PROVIDERS, titles
from tilewright.bench.report import shapes as s
from tilewright.bench.report.document import Document, ProblemResults
from tilewright.bench.report.words import (
    TIMES,
    headline_times,
    interval_text,
    ratio_text,
    seconds_text,
    verdict,
)

WIDE, NARROW = 760.0, 330.0
LINE = 19.0  # height of a line of bars
_FARTHEST = 100.0  # ratios beyond it, or beyond its inverse, end there


def styles(document: Document) -> dict[str, s.Style]:
    """By provider: the same in every report, whoever was measured."""
    numbers = {p.name: at for at, p in enumerate(PROVIDERS)}
    names = titles(document.measured)
    return {
        name: s.Style(numbers.get(name, len(numbers)), title, name) for name, title in names.items()
    }


def charts(document: Document) -> list[s.Chart]:
    """All that the report has numbers for."""
    found = [*speed_ups(document), *latencies(document)]
    return [*found, roofline(document), errors(document)] if document.measured else found


def _both(draw: Callable[[float], s.Drawing]) -> tuple[s.Drawing, s.Drawing]:
    return draw(WIDE), draw(NARROW)


# ---- speed-up bars


def speed_ups(document: Document) -> Iterator[s.Chart]:
    """A chart for each section: a group of bars for each problem."""
    style = styles(document)
    for section in document.sections:
        problems = [p for p in document.problems if p.section == section and _ratios(p)]
        if problems:
            wide, narrow = _both(lambda width: _bars(problems, style, width))  # noqa: B023
            yield s.Chart(
                f"speed-{section}",
                f"Speed-up: {section}",
                "How many times as fast as each provider Tilewright is; bars to the right of the "
                "line at 1 say that it is faster. The thin line is the interval; where it crosses "
                "1 the bar is hollow: nothing can be said.",
                wide,
                narrow,
            )


def _ratios(problem: ProblemResults) -> list[tuple[str, Estimate]]:
    found = []
    for result in problem.results:
        times = headline_times(problem, result)
        if times and times.ratio:
            found.append((result.provider, times.ratio))
    return found


def _bars(problems: list[ProblemResults], style: dict[str, s.Style], width: float) -> s.Drawing:
    values = [n for p in problems for _, r in _ratios(p) for n in (r.median, r.low, r.high, 1.0)]
    low, high = s.around([min(max(v, 1 / _FARTHEST), _FARTHEST) for v in values], 1.15)
    names = 108.0
    numbers = 138.0 if width > 500 else 54.0
    axis = s.LogAxis(low, high, names, width - numbers)
    lines = sum(1.35 + len(_ratios(p)) for p in problems)
    drawing = s.Drawing(width, 24 + LINE * lines + 8)
    for tick in axis.ticks(9 if width > 500 else 5):
        x, kind = axis(tick), "one" if tick == 1 else "grid"
        drawing.grid.append(s.Line(((x, 20), (x, drawing.height - 4)), kind))
        drawing.labels.append(s.Label(x, 13, f"{tick:g}{TIMES}", "middle", "tick"))
    y = 24.0
    for problem in problems:
        y += LINE
        state = f" ({problem.headline})"
        drawing.labels.append(s.Label(0, y - 3, problem.name + state, kind="group"))
        for provider, ratio in _ratios(problem):
            _bar(drawing, axis, style[provider], ratio, y)
            y += LINE
        y += 0.35 * LINE
    return drawing


def _bar(drawing: s.Drawing, axis: s.LogAxis, style: s.Style, ratio: Estimate, y: float) -> None:
    middle, said = y + LINE / 2, verdict(ratio)
    start, end = sorted((axis(1.0), axis(ratio.median)))
    hollow = " hollow" if said == "undecided" else ""
    drawing.boxes.append(
        s.Box(start, y + 3, max(1.5, end - start), LINE - 6, f"p{style.number} bar{hollow}")
    )
    low, high = axis(ratio.low), axis(ratio.high)
    drawing.lines.append(s.Line(((low, middle), (high, middle)), "whisker"))
    for x in (low, high):
        drawing.lines.append(s.Line(((x, middle - 3.5), (x, middle + 3.5)), "whisker"))
    drawing.marks.append(
        s.Mark(6, middle, style.shape, f"p{style.number}", f"{style.name}: {ratio_text(ratio)}")
    )
    drawing.labels.append(s.Label(15, middle + 4, style.name))
    number = ratio_text(ratio)
    if drawing.width > 500:
        number += f" {interval_text(ratio)}"
    drawing.labels.append(s.Label(drawing.width, middle + 4, number, "end", said))


# ---- latency against size


def latencies(document: Document) -> Iterator[s.Chart]:
    """A chart for each series of problems that differ in size only."""
    style = styles(document)
    series: dict[str, list[ProblemResults]] = {}
    for problem in document.problems:
        if problem.series:
            series.setdefault(problem.series, []).append(problem)
    for at, (name, problems) in enumerate(series.items()):
        curves = _curves(problems)
        if len(problems) > 1 and curves:
            wide, narrow = _both(lambda width: _latency(curves, style, width))  # noqa: B023
            yield s.Chart(
                f"latency-{at}",
                f"Time against size: {name}",
                f"Seconds of a call with caches {problems[0].headline}, over the size; lower is "
                "better, and the thin vertical lines are intervals.",
                wide,
                narrow,
                tuple(style[provider] for provider in curves),
            )


def _curves(problems: list[ProblemResults]) -> dict[str, list[tuple[float, Estimate]]]:
    """By provider: sizes and times."""
    found: dict[str, list[tuple[float, Estimate]]] = {}
    for problem in sorted(problems, key=lambda p: p.size):
        for result in problem.results:
            times = headline_times(problem, result)
            if times:
                found.setdefault(result.provider, []).append((problem.size, times.time))
    return found


def _latency(
    curves: dict[str, list[tuple[float, Estimate]]], style: dict[str, s.Style], width: float
) -> s.Drawing:
    points = [point for curve in curves.values() for point in curve]
    times = [n for _, t in points for n in (t.median, t.low, t.high) if n > 0]
    drawing, x, y = _frame(
        width, s.around([size for size, _ in points], 1.1), s.around(times), "size", seconds_text
    )
    for provider, curve in reversed(curves.items()):  # ours last, on top
        look = style[provider]
        path = tuple((x(size), y(time.median)) for size, time in curve)
        drawing.lines.append(s.Line(path, f"p{look.number} curve", look.dash))
        for size, time in curve:
            ends = ((x(size), y(max(time.low, y.low))), (x(size), y(time.high)))
            drawing.lines.append(s.Line(ends, f"p{look.number} thin"))
            tip = f"{look.name}, {size:,g}: {seconds_text(time.median)}"
            drawing.marks.append(
                s.Mark(x(size), y(time.median), look.shape, f"p{look.number}", tip)
            )
    return drawing


def _frame(
    width: float,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    title: str,
    text: Callable[[float], str],
) -> tuple[s.Drawing, s.LogAxis, s.LogAxis]:
    """Two axes of logarithms with their grid; ``text`` writes the numbers of the vertical one."""
    height = 380.0 if width > 500 else 300.0
    drawing = s.Drawing(width, height)
    x = s.LogAxis(*x_range, 62.0, width - 10)
    y = s.LogAxis(*y_range, height - 38, 10.0)
    for tick in x.ticks(8 if width > 500 else 4):
        drawing.grid.append(s.Line(((x(tick), y.start), (x(tick), y.end))))
        drawing.labels.append(s.Label(x(tick), y.start + 15, f"{tick:,g}", "middle", "tick"))
    for tick in y.ticks(7):
        drawing.grid.append(s.Line(((x.start, y(tick)), (x.end, y(tick)))))
        drawing.labels.append(s.Label(x.start - 6, y(tick) + 4, text(tick), "end", "tick"))
    drawing.labels.append(s.Label((x.start + x.end) / 2, height - 5, title, "middle", "tick"))
    return drawing, x, y


# ---- roofline


def roofline(document: Document) -> s.Chart:
    """Operations per second over operations per byte, under the machine's roofs."""
    style = styles(document)
    wide, narrow = _both(lambda width: _roofline(document, style, width))
    return s.Chart(
        "roofline",
        "Roofline",
        "How fast each problem was done, over how much arithmetic it has for each byte. The "
        "slanted lines are what memory and the last cache allow, the level ones what arithmetic "
        "allows; both were measured in this run.",
        wide,
        narrow,
        tuple(style.values()),
    )


def _roofline(document: Document, style: dict[str, s.Style], width: float) -> s.Drawing:
    roofs, points = document.roofs, _speeds(document)
    intensities = [x for _, x, _, _ in points]
    top = max(roofs.peaks.values(), default=1e9)
    ridge = top / roofs.memory
    x_range = s.around([*intensities, ridge, ridge / 6], 1.6)  # so that memory's line is seen
    y_range = s.around([*(y for _, _, y, _ in points), top], 1.5)
    drawing, x, y = _frame(width, x_range, y_range, "operations per byte", _speed_text)
    for kind, peak in roofs.peaks.items():
        left = max(peak / roofs.cache, x.low)
        drawing.lines.append(s.Line(((x(left), y(peak)), (x.end, y(peak))), "roof"))
        drawing.labels.append(s.Label(x.end - 3, y(peak) - 4, f"{kind} peak", "end", "roofname"))
    for name, speed in (("memory", roofs.memory), ("cache", roofs.cache)):
        low, high = max(x.low, y.low / speed), min(x.high, top / speed)
        if low < high:
            ends = ((x(low), y(low * speed)), (x(high), y(high * speed)))
            drawing.lines.append(s.Line(ends, "roof", "" if name == "memory" else "5 3"))
            at = (low * high**0.25) ** (1 / 1.25)
            place = (x(at) + 5, y(at * speed) + (14 if name == "memory" else -6))
            anchor = "start" if name == "memory" else "end"
            drawing.labels.append(s.Label(*place, name, anchor, "roofname"))
    for provider, intensity, speed, tip in reversed(points):
        look = style[provider]
        drawing.marks.append(s.Mark(x(intensity), y(speed), look.shape, f"p{look.number}", tip))
    return drawing


def _speeds(document: Document) -> list[tuple[str, float, float, str]]:
    """Provider, operations per byte, operations per second, what it is."""
    found = []
    for problem in document.problems:
        if not problem.operations or not problem.bytes:
            continue
        for result in problem.results:
            times = headline_times(problem, result)
            if times:
                speed = problem.operations / times.time.median
                tip = f"{result.provider}, {problem.name}: {_speed_text(speed)}"
                found.append((result.provider, problem.operations / problem.bytes, speed, tip))
    return found


def _speed_text(speed: float) -> str:
    for unit, power in (("T", 12), ("G", 9), ("M", 6)):
        if speed >= 0.999 * 10**power:
            return f"{speed / 10**power:.3g} {unit}op/s"
    return f"{speed:.3g} op/s"


# ---- errors


def errors(document: Document) -> s.Chart:
    """Relative errors against float64, a line for each problem."""
    style = styles(document)
    wide, narrow = _both(lambda width: _errors(document, style, width))
    return s.Chart(
        "errors",
        "Error against float64",
        "The norm of the error over the norm of the exact result; further left is better. The bar "
        "at the right of a line is what counts as wrong.",
        wide,
        narrow,
        tuple(style.values()),
    )


def _errors(document: Document, style: dict[str, s.Style], width: float) -> s.Drawing:
    rows = [(problem, _known_errors(problem)) for problem in document.problems]
    rows = [(problem, found) for problem, found in rows if found]
    values = [error for _, found in rows for _, error in found]
    axis = s.LogAxis(*s.around([*values, *(p.tolerance for p, _ in rows)], 1.6), 8.0, width - 8)
    step = 34.0
    drawing = s.Drawing(width, 26 + step * len(rows))
    for tick in axis.ticks(9 if width > 500 else 5):
        drawing.grid.append(s.Line(((axis(tick), 20), (axis(tick), drawing.height))))
        drawing.labels.append(s.Label(axis(tick), 13, f"{tick:.0e}", "middle", "tick"))
    for at, (problem, found) in enumerate(rows):
        y = 26 + step * at
        drawing.labels.append(s.Label(0, y + 9, problem.name, kind="group"))
        drawing.grid.append(s.Line(((axis.start, y + 21), (axis.end, y + 21)), "rule"))
        limit = axis(problem.tolerance)
        drawing.lines.append(s.Line(((limit, y + 14), (limit, y + 28)), "limit"))
        for provider, error in reversed(found):  # ours last, on top
            look, tip = style[provider], f"{provider}, {problem.name}: {error:.1e}"
            drawing.marks.append(s.Mark(axis(error), y + 21, look.shape, f"p{look.number}", tip))
    return drawing


def _known_errors(problem: ProblemResults) -> list[tuple[str, float]]:
    found = [(r.provider, r.error_relative) for r in problem.results if r.warm]
    return [(provider, error) for provider, error in found if error]
