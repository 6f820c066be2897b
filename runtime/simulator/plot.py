"""Pictures of how full the channels are over time, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tilewright.ir.errors import BackendMissingError, SettingError
from tilewright.runtime.simulator.run import ChannelResult, Simulation

BINS = 2048
FORMATS = (".png", ".svg")
MOST_CHANNELS = 12


def plot_occupancy(run: Simulation, path: Path) -> None:
    """Draws a run with ``bins`` into a PNG or SVG file: a panel a channel, the deepest first.

    Raises SettingError for another kind of file, BackendMissingError without matplotlib.
    """
    check_plot(path)
    pyplot = _pyplot()
    shown = sorted(zip(run.channels, run.occupancy, strict=True), key=lambda c: -c[0].peak)
    shown = shown[:MOST_CHANNELS]
    figure, panels = pyplot.subplots(
        len(shown), 1, sharex=True, squeeze=False, figsize=(9, 0.6 + 0.75 * len(shown))
    )
    for panel, (channel, occupancy) in zip(panels[:, 0], shown, strict=True):
        _draw(panel, channel, occupancy, run)
    panels[-1, 0].set_xlabel("cycle")
    figure.suptitle(_title(run), fontsize=10)
    figure.tight_layout()
    # no date and fixed ids, so that the same run gives the same file
    with pyplot.rc_context({"svg.hashsalt": "tilewright", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    pyplot.close(figure)


def check_plot(path: Path) -> None:
    """The errors of ``plot_occupancy``, before a long run."""
    if path.suffix.lower() not in FORMATS:
        raise SettingError(f"{path}: a picture is a file that ends in .png or .svg")
    _pyplot()


def _draw(panel: Any, channel: ChannelResult, occupancy: Any, run: Simulation) -> None:
    bins = max(1, -(-run.cycles // run.bin_width))
    edges = np.minimum(np.arange(bins + 1) * run.bin_width, run.cycles)
    height = np.round(occupancy[:bins], 2)
    starts = np.flatnonzero(np.diff(height, prepend=height[0] + 1))  # equal neighbours are one step
    steps = np.append(edges[starts], edges[-1])
    panel.stairs(height[starts], steps, fill=True, color="#4477aa")
    top = max(channel.peak, 2)
    panel.set_ylim(0, top * 1.15)
    panel.set_xlim(0, max(run.cycles, 1))
    panel.set_yticks([0, channel.peak])
    panel.tick_params(labelsize=7)
    limit = "no limit" if channel.capacity is None else f"of {channel.capacity}"
    panel.set_title(f"{channel.name}: peak {channel.peak} {limit}", fontsize=8, loc="left", pad=2)
    panel.spines[["top", "right"]].set_visible(False)


def _title(run: Simulation) -> str:
    sizes = ", ".join(f"{name} = {n}" for name, n in run.plan.sizes.items())
    return (
        f"{run.plan.nodes.graph.name} ({sizes}): places taken in each channel, {run.cycles} cycles"
    )


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise BackendMissingError(
            "pictures need matplotlib: pip install 'tilewright[plot]' (or matplotlib)"
        ) from None
    matplotlib.use("svg")
    from matplotlib import pyplot

    return pyplot
