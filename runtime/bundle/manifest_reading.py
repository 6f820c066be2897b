"""A manifest's bytes to data, with every field checked: what comes after may use it.

Names, sizes and dtypes are checked against patterns, numbers against bounds, and whatever refers to
something else in the manifest against what is there.
"""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from tilewright.ir.dtypes import TABLE
from tilewright.ir.errors import BundleError
from tilewright.ir.sizes import Size, parse_size
from tilewright.ir.target import Target
from tilewright.runtime.bundle.manifest import (
    ABI,
    MANIFEST,
    SCHEMA,
    VERSION,
    Buffer,
    Code,
    Family,
    File,
    Form,
    Image,
    Machine,
    Manifest,
    Program,
    Sized,
    Step,
    digest_of,
)
from tilewright.runtime.json_fields import IDENTIFIER, SHA256, Fields, check_version, parse_object

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", re.ASCII)
_FEATURE = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}", re.ASCII)
_SIZE = re.compile(r"[A-Za-z0-9_*+\- ]{1,500}", re.ASCII)
_MOST_RANK, _MOST_PARAMS = 16, 256


def read_manifest(data: bytes, place: str) -> Manifest:
    """The manifest in a file's bytes. BundleError names the field that is wrong."""
    head = parse_object(data, place, BundleError)
    check_version(head, SCHEMA, VERSION, "a bundle")
    top = head.inside("bundle")
    try:
        digest = digest_of(top.value)
    except RecursionError:
        raise BundleError(f"{place} is damaged: nested too deeply") from None
    if digest != head.text("sha256", SHA256):
        raise BundleError(f"{place} is damaged: its contents have another SHA-256 than it says")
    abi = top.number("abi", least=1)
    if abi != ABI:
        raise BundleError(
            f"{place}: its kernels are called by calling convention {abi}, this Tilewright's is "
            f"{ABI}: make the bundle again with this version, or use the version that made it "
            f"({str(top.value.get('made_by'))[:120]})"
        )
    codes = tuple(_code(x) for x in top.objects("codes"))
    if not codes:
        raise BundleError(f"{place} has no kernel")
    by_symbol = {c.symbol: c for c in codes}
    if len(by_symbol) != len(codes):
        raise BundleError(f"{place}: two codes have one symbol")
    sized = tuple(_sized(x, by_symbol) for x in top.objects("sized"))
    forms = {s.form for s in sized}
    if missing := [c.symbol for c in codes if c.form not in forms]:
        raise BundleError(f"{place}: {missing[0]} belongs to no form")
    found = Manifest(
        _target(top.inside("target")),
        _machine(top.inside("needs")),
        _file_name(top, "library", empty=True),
        {_checked_name(top, n): _file(top.inside("files"), n) for n in top.entries("files")},
        codes,
        sized,
        tuple(_program(x, forms) for x in top.objects("programs")),
        {k: str(v) for k, v in top.entries("uncalled").items()},
        {k: str(v) for k, v in top.entries("made_by").items()},
    )
    _check_files(found, place)
    if found.target.gpu and not re.fullmatch(r"sm_\d{2,3}", found.target.cpu):
        raise BundleError(f"{place}: {found.target.cpu[:40]!r} is no GPU that bundles are for")
    return found


def _check_files(manifest: Manifest, place: str) -> None:
    """Every file that is used is listed; every code has its memory of machine code."""
    used = {manifest.library} if manifest.library else set()
    for code in manifest.codes:
        if code.image is not None:
            used |= {code.image.cubin, *([code.image.ptx] if code.image.ptx else [])}
        elif not manifest.library:
            raise BundleError(f"{place}: {code.symbol} has no machine code")
    if missing := sorted(used - set(manifest.files)):
        raise BundleError(f"{place}: the file {missing[0]!r} has no entry in 'files'")


def _target(x: Fields) -> Target:
    """A target by its fields."""
    given: dict[str, Any] = {}
    for field in fields(Target):
        kind = str(field.type)
        if kind == "str":
            given[field.name] = x.text(field.name, most=20_000)
        else:
            given[field.name] = x.flag(field.name) if kind == "bool" else x.number(field.name)
    return Target(**given)


def _machine(x: Fields) -> Machine:
    system, machine = x.text("system", most=40), x.text("machine", most=40)
    return Machine(system, machine, x.texts("features", _FEATURE))


def _file(x: Fields, name: str) -> File:
    found = x.inside(name)
    return File(found.text("sha256", SHA256), found.number("bytes"))


def _checked_name(x: Fields, name: str) -> str:
    if not FILE_NAME.fullmatch(name) or name == MANIFEST:
        raise x.refuse("files", f"names {name[:60]!r}; a file's name has letters, digits, _ . -")
    return name


def _file_name(x: Fields, field: str, empty: bool = False) -> str:
    if empty and x.value.get(field) == "":
        return ""
    return x.text(field, FILE_NAME)


def _buffer(x: Fields) -> Buffer:
    name, dtype = x.text("name", IDENTIFIER), x.text("dtype", IDENTIFIER)
    if dtype not in TABLE or not TABLE[dtype].addressable:
        raise x.refuse("dtype", f"is {dtype!r}, which memory does not hold element by element")
    shape = tuple(str(_size(x, "shape", s)) for s in x.texts("shape", _SIZE))
    if len(shape) > _MOST_RANK:
        raise x.refuse("shape", f"has {len(shape)} dimensions, at most {_MOST_RANK} are allowed")
    return Buffer(name, dtype, shape, x.number("unit", -1, max(0, len(shape) - 1)))


def _buffers(x: Fields) -> tuple[Buffer, ...]:
    return tuple(_buffer(p) for p in x.objects("params", _MOST_PARAMS))


def _size(x: Fields, field: str, text: object) -> Size:
    try:
        return parse_size(text) if isinstance(text, str) else _not_a_size(text)
    except ValueError:
        raise x.refuse(field, f"holds {str(text)[:60]!r}, which is no size") from None


def _not_a_size(value: object) -> Size:
    raise ValueError(value)


def _grid(x: Fields) -> tuple[tuple[str, int], ...]:
    found = []
    for pair in x.items("grid", _MOST_RANK):
        good = isinstance(pair, list) and len(pair) == 2 and type(pair[1]) is int
        if not good or not 1 <= pair[1] <= 1 << 30:
            raise x.refuse("grid", "must hold pairs of a size and how much of it an item takes")
        found.append((str(_size(x, "grid", pair[0])), int(pair[1])))
    return tuple(found)


def _code(x: Fields) -> Code:
    params, outputs = _buffers(x), x.number("outputs", 0)
    if outputs > len(params):
        raise x.refuse("outputs", f"is {outputs}, there are {len(params)} params")
    code = Code(
        x.text("symbol", IDENTIFIER),
        x.text("form", SHA256),
        x.text("kernel", most=200),
        x.text("level", IDENTIFIER),
        x.text("program", SHA256),
        x.number("rows", 0, 1 << 30),
        x.counts("static"),
        x.entries("choice"),
        x.texts("sizes", IDENTIFIER),
        _grid(x),
        x.number("scratch_bytes", 0, 1 << 36),
        params,
        outputs,
        None if x.value.get("image") is None else _image(x.inside("image"), params),
    )
    _check_names(x, code)
    return code


def _check_names(x: Fields, code: Code) -> None:
    """All sizes of a code follow from its inputs, so that a call can know them."""
    inputs = code.params[: len(code.params) - code.outputs]
    known = {n for p in inputs for s in p.shape for n in parse_size(s).names}
    wanted = {n for p in code.params for s in p.shape for n in parse_size(s).names}
    wanted |= {n for s, _ in code.grid for n in parse_size(s).names} | set(code.sizes)
    if unknown := sorted(wanted - known):
        raise x.refuse("sizes", f"need {unknown[0]!r}, which follows from no input")


def _image(x: Fields, params: tuple[Buffer, ...]) -> Image:
    strides = _pairs(x, "strides")
    for at, dim in strides:
        if at >= len(params) or dim >= len(params[at].shape):
            raise x.refuse("strides", f"name dimension {dim} of buffer {at}: there is none")
    vectors = x.flag("vectors")
    wide = tuple(range(len(params))) if vectors else ()
    if "wide" in x.value:  # not in bundles of 0.1
        wide = x.numbers("wide", 0, len(params) - 1)
        if bool(wide) != vectors:
            raise x.refuse("wide", "does not go with 'vectors'")
    return Image(
        _file_name(x, "cubin"),
        _file_name(x, "ptx", empty=True),
        x.number("threads", 1, 1024),
        x.number("shared_bytes", 0, 1 << 20),
        tuple(strides),
        vectors,
        wide,
    )


def _family(x: Fields, forms: set[str]) -> Family:
    params = _buffers(x)
    given = x.number("given", 0, len(params))
    tables = x.numbers("tables", 0, max(0, given - 1))
    if given + 2 * len(tables) != len(params):
        raise x.refuse("tables", f"do not make {given} inputs {len(params)}")
    family = Family(
        x.text("name", most=200),
        x.texts("sizes", IDENTIFIER),
        params,
        given,
        tables,
        x.number("table_stride", 1, 1 << 20),
        x.numbers("gathered", 0, max(0, len(params) - 1)),
        x.texts("static", IDENTIFIER),
        str(_size(x, "row_count", x.text("row_count", _SIZE))),
        str(_size(x, "inner", x.text("inner", _SIZE))),
        x.numbers("classes", 0, 1 << 30),
        x.flag("empty"),
        tuple(_form(f, forms) for f in x.objects("forms")),
    )
    needed = {*family.static, *(n for s in (family.row_count, family.inner) for n in _names(s))}
    if unknown := sorted(needed - {n for p in params for s in p.shape for n in _names(s)}):
        raise x.refuse("sizes", f"need {unknown[0]!r}, which follows from no input")
    for form in family.forms:
        if len(form.units) != len(params) or len(form.static) != len(family.static):
            raise x.refuse("forms", f"fit another number of inputs than {len(params)}")
    return family


def _names(size: str) -> frozenset[str]:
    return parse_size(size).names


def _sized(x: Fields, codes: dict[str, Code]) -> Sized:
    """The codes of a form; all of them have its inputs."""
    form, found = x.text("form", SHA256), []
    dimensions = tuple((at, dim) for at, dim in _pairs(x, "dimensions"))
    for pair in x.items("codes"):
        good = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], list)
        if not good or not all(type(n) is int and 0 <= n <= 64 for n in pair[0]):
            raise x.refuse("codes", "must hold pairs of a size class and a symbol")
        code = codes.get(pair[1]) if isinstance(pair[1], str) else None
        if code is None or code.form != form or len(pair[0]) != len(dimensions):
            raise x.refuse("codes", f"hold {str(pair[1])[:60]!r}, which is no code of the form")
        for at, dim in dimensions:
            if at >= len(code.params) - code.outputs or dim >= len(code.params[at].shape):
                raise x.refuse("dimensions", f"name dimension {dim} of input {at}: there is none")
        found.append((tuple(pair[0]), code.symbol))
    if not found:
        raise x.refuse("codes", "are none")
    return Sized(form, dimensions, tuple(found))


def _pairs(x: Fields, name: str) -> list[tuple[int, int]]:
    """A list of pairs of small numbers."""
    found = []
    for pair in x.items(name, 1 << 12):
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair)
        if not whole or not all(0 <= n < 1 << 12 for n in pair):
            raise x.refuse(name, "must hold pairs of a buffer and a dimension")
        found.append((pair[0], pair[1]))
    return found


def _form(x: Fields, forms: set[str]) -> Form:
    form = x.text("form", SHA256)
    if form not in forms:
        raise x.refuse("form", f"is {form[:12]} …, of which there is no code")
    units = x.numbers("units", -1, _MOST_RANK)
    return Form(units, x.numbers("static"), x.number("rows", 0, 1 << 30), form)


def _program(x: Fields, forms: set[str]) -> Program:
    inputs = x.texts("inputs", IDENTIFIER)
    known, steps = set(inputs), []
    for step in x.objects("steps", 10_000):
        taken, given = step.texts("inputs", IDENTIFIER), step.texts("outputs", IDENTIFIER)
        if unknown := sorted(set(taken) - known):
            raise step.refuse("inputs", f"name {unknown[0]!r}, which nothing before gives")
        family = _family(step.inside("family"), forms)
        if len(taken) != family.given:
            raise step.refuse("inputs", f"are {len(taken)}, its kernel takes {family.given}")
        known |= set(given)
        steps.append(Step(taken, given, family))
    results = x.texts("results", IDENTIFIER)
    if unknown := sorted(set(results) - known):
        raise x.refuse("results", f"name {unknown[0]!r}, which nothing gives")
    return Program(
        x.text("name", IDENTIFIER),
        x.text("sha256", SHA256),
        x.text("text", most=8 << 20),
        inputs,
        results,
        tuple(steps),
    )
