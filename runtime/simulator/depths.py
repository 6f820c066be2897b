"""``short=2,long=N+2,e->p=inf``: depths of channels as the command line spells them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from tilewright.ir.errors import SettingError
from tilewright.ir.sizes import parse_size
from tilewright.passes.channels import Channel

ALL, SHORT, LONG, WITHOUT_LIMIT = "all", "short", "long", "inf"
MOST = 1 << 40


def parse_depths(
    texts: Iterable[str], channels: Sequence[Channel], sizes: Mapping[str, int]
) -> dict[str, int | None]:
    """Capacities by channel name, for those that are given; None is without limit.

    Each part is ``CHANNEL=DEPTH``, where a channel is ``value->node`` (``%`` may be left out),
    ``long`` (those the analysis calls deep), ``short`` (the rest) or ``all``, which a lone DEPTH
    means, too. What is named more closely counts. A depth is an expression in the sizes, or
    ``inf``. Raises SettingError.
    """
    given: dict[str, str] = {}
    for part in (p.strip() for text in texts for p in text.split(",")):
        name, _, depth = part.rpartition("=")
        name = name.strip().replace("%", "").replace(" ", "") or ALL
        if not depth.strip():
            raise SettingError(f"--depth {part!r}: write a channel and a depth, such as short=2")
        if given.get(name, depth) != depth:
            raise SettingError(f"--depth {name}: given as {given[name]} and as {depth}")
        given[name] = depth.strip()
    _check_names(given, channels)
    out: dict[str, int | None] = {}
    for channel in channels:
        kind = LONG if channel.deep else SHORT
        chosen = next((n for n in (channel.name, kind, ALL) if n in given), None)
        if chosen is not None:
            out[channel.name] = _places(chosen, given[chosen], sizes)
    return out


def _check_names(given: Mapping[str, str], channels: Sequence[Channel]) -> None:
    names = [c.name for c in channels]
    for name in given:
        if name not in (ALL, SHORT, LONG, *names):
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingError(
                f"--depth {name}: there is no such channel{hint}; channels: short, long, "
                + ", ".join(names)
            )


def _places(name: str, text: str, sizes: Mapping[str, int]) -> int | None:
    if text == WITHOUT_LIMIT:
        return None
    try:
        size = parse_size(text)
    except ValueError:
        raise SettingError(
            f"--depth {name}={text}: write a number, an expression such as N+2, or inf"
        ) from None
    unknown = sorted(size.names - set(sizes))
    if unknown:
        known = ", ".join(sizes) or "none"
        raise SettingError(f"--depth {name}={text}: no size {unknown[0]}; sizes: {known}")
    places = size.evaluate(sizes)
    if not 1 <= places <= MOST:
        raise SettingError(f"--depth {name}={text} is {places}; a channel has 1 to {MOST} places")
    return places
