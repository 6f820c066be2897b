"""Which compiled form of a kernel takes a call, and in what a call differs from those there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from tilewright.ir.errors import BindError, BundleError
from tilewright.ir.sizes import parse_size
from tilewright.runtime.bundle.arrays import Seen
from tilewright.runtime.bundle.manifest import Family, Form

LONGEST = 1 << 30  # positions are computed in 32 bits (passes/to_tile/narrow.py)


def find_form(
    family: Family, sizes: dict[str, int], units: list[int], given: Sequence[Seen], where: str
) -> Form:
    """The form for a call, chosen as ``KernelFamily.key`` does. BundleError if there is none."""
    for at in family.gathered:
        if 0 in given[at].shape:
            raise BindError(f"{family.name}: %{family.params[at].name} has no elements to read")
    rows = parse_size(family.row_count).evaluate(sizes)
    inner = parse_size(family.inner).evaluate(sizes)
    if inner == 0 and family.empty:
        raise BundleError(
            f"{family.name}: there is nothing to sum over ({family.inner} = 0), and a bundle has "
            f"no code for that ({where}); leave such calls out, or compile the program"
        )
    if max(rows, inner) >= LONGEST:
        raise BindError(f"{family.name}: {max(rows, inner)} positions; fewer than 2^30 are taken")
    static = tuple(sizes[name] for name in family.static)
    bound = next((c for c in family.classes if c and rows <= c), 0)
    fits = [f for f in family.forms if f.static == static and f.rows == bound]
    for form in fits:
        if form.units == tuple(units):
            return form
    for form in fits:  # code that counts on no stride of one takes all
        if all(have in (-1, unit) for have, unit in zip(form.units, units, strict=True)):
            return form
    _refuse(family, tuple(units), static, bound, where)


def class_text(rows: int) -> str:
    """A row class in words."""
    if not rows:
        return "any number of rows"
    return f"up to {rows} rows" if rows > 1 else "one row"


def _refuse(
    family: Family, units: tuple[int, ...], static: tuple[int, ...], rows: int, where: str
) -> NoReturn:
    """Names the first key in which the call differs from the form that is nearest to it."""

    def near(form: Form) -> int:
        return (form.static == static) * 4 + (form.units == units) * 2 + (form.rows == rows)

    if not family.forms:
        raise BundleError(f"{where} has no form of {family.name}")
    form = max(family.forms, key=near)
    if form.static != static:
        wanted = ", ".join(f"{n} = {v}" for n, v in zip(family.static, static, strict=True))
        found = sorted({f.static for f in family.forms})
        what = f"sizes {wanted}", ", ".join(map(_tuple, found))
    elif form.units != units:
        names = [p.name for p in family.params]
        odd = [n for n, a, b in zip(names, units, form.units, strict=True) if a != b]
        what = f"dimension of stride one of %{odd[0]}", "another one (is it contiguous?)"
        what = (
            f"{what[0]}: {_dimension(units, names, odd[0])}",
            (f"{_dimension(form.units, names, odd[0])}; make that input contiguous"),
        )
    else:
        found_rows = sorted({f.rows for f in family.forms if f.static == static})
        what = f"size class: {class_text(rows)}", ", ".join(map(class_text, found_rows))
    raise BundleError(
        f"{family.name}: no compiled form for this call ({what[0]}); {where} has {what[1]}. "
        "Bundle it with such sizes, too (tilewright bundle … --sizes, or trace such a call)"
    )


def _tuple(values: tuple[int, ...]) -> str:
    return " x ".join(map(str, values))


def _dimension(units: tuple[int, ...], names: list[str], name: str) -> str:
    unit = units[names.index(name)]
    return f"dimension {unit}" if unit >= 0 else "none"
