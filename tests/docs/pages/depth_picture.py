"""How deep a program's channels are, as written and in its kernels, as a small SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from tilewright.ir.core import Graph, Module
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.channels import Channel, find_channels
from tilewright.passes.pipeline import TO_KERNELS, run_passes

SIZE = 1024  # that every name of a size stands for in the picture
BAR, GAP, TOP, PANEL, MARGIN = 5, 2, 40, 330, 16
DEEP, SHALLOW, INK = "#c44e00", "#005aa0", "#333333"
TEXT = f'font-family="sans-serif" font-size="11" fill="{INK}"'


@dataclass(frozen=True)
class Depths:
    """Channels as written, and of the kernels that the rules and the cuts leave."""

    written: tuple[Channel, ...]
    kernels: tuple[tuple[Channel, ...], ...]


def depths(module: Module) -> Depths:
    """Of a tensor-level program."""
    until = [step.name for step in TO_KERNELS].index("to_stream") + 1
    streams = run_passes(module, TO_KERNELS[:until]).graphs
    written = [c for graph in streams for c in find_channels(canonicalise_graph(graph))]
    kernels = run_passes(module, TO_KERNELS).graphs
    return Depths(tuple(written), tuple(map(_channels, kernels)))


def _channels(graph: Graph) -> tuple[Channel, ...]:
    return tuple(find_channels(graph))


def picture(title: str, found: Depths) -> str:
    """Two panels of bars, one a channel, their lengths logarithms; what has to hold a row is
    another colour and says so in words."""
    after = [channel for kernel in found.kernels for channel in kernel]
    rows = max(len(found.written), len(after) + len(found.kernels) - 1)
    height = TOP + rows * (BAR + GAP) + MARGIN
    width = 2 * PANEL + 3 * MARGIN
    count = "1 kernel" if len(found.kernels) == 1 else f"{len(found.kernels)} kernels"
    second = 2 * MARGIN + PANEL
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">',
        f"<title>{escape(title)}: depths of its channels</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="20" {TEXT}>as written: {_words(found.written)}</text>',
        f'<text x="{second}" y="20" {TEXT}>{count}: {_words(after)}</text>',
        *_bars(found.written, MARGIN, TOP),
    ]
    y = TOP
    for kernel in found.kernels:
        lines += _bars(kernel, second, y)
        y += (len(kernel) + 1) * (BAR + GAP)
    return "\n".join([*lines, "</svg>", ""])


def _words(channels: Sequence[Channel]) -> str:
    deep = [c for c in channels if c.deep]
    if deep:
        return f"{len(deep)} of {len(channels)} channels hold a row or more"
    deepest = max((_places(c) for c in channels), default=0)
    return f"{len(channels)} channels, the deepest holds {deepest}"


def _bars(channels: Sequence[Channel], x: int, y: int) -> Iterator[str]:
    for at, channel in enumerate(channels):
        top = y + at * (BAR + GAP)
        length = round(_length(_places(channel)))
        colour = DEEP if channel.deep else SHALLOW
        name = f"%{channel.value.hint} → {channel.consumer.name}"
        yield (
            f'<rect x="{x}" y="{top}" width="{length}" height="{BAR}" fill="{colour}">'
            f"<title>{escape(name)}: {escape(str(channel.depth))}</title></rect>"
        )
        if channel.deep:
            label = f"{name}: {channel.depth}"
            yield f'<text x="{x + length + 6}" y="{top + BAR + 2}" {TEXT}>{escape(label)}</text>'


def _places(channel: Channel) -> int:
    return channel.full.evaluate(dict.fromkeys(channel.depth.names | _names(channel), SIZE))


def _names(channel: Channel) -> set[str]:
    return set(channel.full.tokens.names) | set(channel.full.per.names)


def _length(places: int) -> float:
    """Pixels: two fifths of the panel at SIZE places, so that words have room."""
    return 8 + (0.4 * PANEL - 8) * math.log(max(1, places)) / math.log(SIZE)
