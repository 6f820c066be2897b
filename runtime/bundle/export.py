"""Programs, and the calls that a trace or the user names, to a bundle's manifest and files."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product

import torch

from tilewright.ir.core import Module
from tilewright.ir.errors import BundleError, SettingError, UnsupportedError
from tilewright.ir.printer import print_graph, print_module
from tilewright.ir.target import Target
from tilewright.ir.types import TensorType
from tilewright.passes.to_tile.tables import STRIDE
from tilewright.runtime.bundle import manifest as m
from tilewright.runtime.bundle.collect import Collector, MetaForm, buffers, collecting
from tilewright.runtime.bundle.collect_gpu import GpuCollector
from tilewright.runtime.bundle.folder import entry_of
from tilewright.runtime.bundle.header import HEADER, header_text
from tilewright.runtime.bundle.link import link
from tilewright.runtime.bundle.machine import needs_of
from tilewright.runtime.family import KernelFamily
from tilewright.runtime.fingerprint import generator_versions, source_hash
from tilewright.runtime.kernel import TORCH_DTYPES
from tilewright.runtime.program import Program
from tilewright.runtime.tuned import BySize

LIBRARY = "kernels.so"


@dataclass(frozen=True)
class Made:
    """A bundle in memory: its manifest, and its files' bytes by name."""

    manifest: m.Manifest
    files: dict[str, bytes]


@dataclass
class Exporter:
    """Takes programs with their calls, and makes a bundle of their kernels for a target.

    Raises UnsupportedError for GPUs that bundles are not made for yet, BundleError for another
    kind of machine: its code is made and linked there.
    """

    target: Target
    version: str
    programs: dict[str, Program] = field(default_factory=dict)  # by text
    tiles: dict[str, MetaForm] = field(default_factory=dict)  # by symbol
    uncalled: dict[str, str] = field(default_factory=dict)  # what has no name, and why
    every_class: bool = False  # calls bring the other row classes of their kernels with them

    def __post_init__(self) -> None:
        if self.target.gpu not in ("", "cuda"):
            raise UnsupportedError(f"bundles are for CPUs and CUDA devices, not {self.target.name}")
        here = platform.machine()
        if self.target.triple and not self.target.triple.startswith(f"{here}-"):
            raise BundleError(
                f"a bundle for {self.target.name} is made on such a machine (this one is {here}), "
                f"where its code can be linked: run the command there; its assembly can be read "
                f"here (tilewright compile --emit asm --target {self.target.name})"
            )
        gpu = bool(self.target.gpu)
        self.collector = GpuCollector(self.target) if gpu else Collector(self.target)

    def add(self, module: Module, inputs: Sequence[torch.Tensor] | None) -> None:
        """A program as it is called with such inputs (of the ``meta`` device); None: all its forms
        for contiguous inputs, which needs sizes that lie inside elements to be numbers.

        Raises UnsupportedError for programs without kernels, BindError for inputs that do not fit.
        """
        if isinstance(self.collector, GpuCollector):
            self._called(module, inputs)
            return
        with collecting(self.collector):
            if module.main.level == "tile":
                form = self.collector.tile(module.main)
                self.tiles[form.code.symbol] = form
            else:
                self._called(module, inputs)

    def _called(self, module: Module, inputs: Sequence[torch.Tensor] | None) -> None:
        if module.main.level != "graph":
            raise UnsupportedError(f"{module.main.name}: no program at the tensor level")
        program = self._program(module)
        if inputs is None:
            all_forms(program)
        else:
            program(*inputs)
            if self.every_class:
                other_classes(program)

    def _program(self, module: Module) -> Program:
        text = print_module(module)
        if text not in self.programs:
            self.programs[text] = self._made(module)
        return self.programs[text]

    def _made(self, module: Module) -> Program:
        if isinstance(self.collector, GpuCollector):
            program = Program(module, target=self.target.name, backend="cuda")
            for step in program.steps:
                if step.family is not None:
                    step.family.make = self.collector.make
            if program._single not in (None, program.steps[0].call):
                raise UnsupportedError(f"{module.main.name}: routing has no bundle for GPUs yet")
            return program
        program = Program(module, target=self.target.name, backend="export")
        if not program.supported:
            reasons = [s.reason for s in program.steps if s.family is None]
            raise UnsupportedError(f"{module.main.name}: no kernel ({'; '.join(reasons)})")
        return program

    def made(self) -> Made:
        """The bundle. BundleError if there is nothing in it."""
        codes = tuple(sorted(self.collector.codes.values(), key=lambda c: c.symbol))
        if not codes:
            raise BundleError("there is no kernel to put into the bundle")
        gpu = isinstance(self.collector, GpuCollector)
        files = {HEADER: header_text(codes, self.target, LIBRARY).encode()}
        if isinstance(self.collector, GpuCollector):
            files |= self.collector.files
        else:
            files[LIBRARY] = link(self.collector.objects, LIBRARY)
        made_by = {
            "tilewright": self.version,
            "sources": source_hash(),
            "generators": generator_versions(),
        }
        named = self._named()
        manifest = m.Manifest(
            self.target,
            needs_of(self.target),
            "" if gpu else LIBRARY,
            {name: entry_of(files[name]) for name in sorted(files)},
            codes,
            _sized(codes, self.programs.values()),
            tuple(named),
            dict(self.uncalled),
            made_by,
        )
        return Made(manifest, files)

    def _named(self) -> list[m.Program]:
        """What can be called by name; what cannot is noted."""
        named: list[m.Program] = []
        for text, program in self.programs.items():
            name = _free_name(program.module.main.name, [p.name for p in named])
            try:
                named.append(_described(name, text, program))
            except UnsupportedError as error:
                self.uncalled[name] = error.message
        for form in self.tiles.values():
            named.append(_tile(_free_name(form.graph.name, [p.name for p in named]), form))
        return named


def meta_inputs(
    shapes: Iterable[tuple[str, tuple[int, ...], tuple[int, ...] | None]],
) -> list[torch.Tensor]:
    """Tensors without memory of (dtype, shape, strides); strides None: contiguous."""
    found = []
    for name, shape, strides in shapes:
        dtype = TORCH_DTYPES[name]
        plain = torch.empty(shape, dtype=dtype, device="meta")
        found.append(plain if strides is None else plain.new_empty_strided(shape, strides))
    return found


def all_forms(program: Program) -> None:
    """Every row class of every kernel, for contiguous inputs. SettingError names sizes that have to
    be numbers."""
    for step in program.steps:
        family = step.family
        if family is None:
            continue
        if family.static_names:
            names = ", ".join(family.static_names)
            raise SettingError(
                f"{step.graph.name}: the size {names} is compiled into the code: give it "
                f"(--sizes {family.static_names[0]}=64,…)"
            )
        ranks = [p.type.shape for p in family.graph.params if isinstance(p.type, TensorType)]
        units = tuple(len(shape) - 1 for shape in ranks)
        for rows in family.classes or (0,):
            _make_form(family, (units, (), rows))


def other_classes(program: Program) -> None:
    """The forms of other row classes with the unit strides and sizes of those that there are."""
    for family in (step.family for step in program.steps):
        if family is not None:
            known = {(units, static) for units, static, rows in family.forms if rows >= 0}
            for (units, static), rows in product(sorted(known), family.classes or (0,)):
                _make_form(family, (units, static, rows))


def _make_form(family: KernelFamily, key: tuple[tuple[int, ...], tuple[int, ...], int]) -> None:
    """A form, where a schedule covers it; calls of other classes are not worse off."""
    with suppress(UnsupportedError):
        call = family.forms.get(key) or family._make(key)
        if isinstance(call, BySize):
            call.make_all()


def _sized(codes: Iterable[m.Code], programs: Iterable[Program]) -> tuple[m.Sized, ...]:
    """The codes of every form by size class, as programs choose between them."""
    found: dict[str, m.Sized] = {}
    for program in programs:
        for family in (step.family for step in program.steps):
            for call in () if family is None else family.forms.values():
                if isinstance(call, BySize) and (sized := _by_size(call)) is not None:
                    found[sized.form] = sized

    def order(code: m.Code) -> tuple[int, int, str]:  # on GPUs the form for tensors that lie best
        wide = code.image.wide if code.image is not None else ()
        return len(code.choice), -len(wide), code.symbol

    for code in sorted(codes, key=order):
        found.setdefault(code.form, m.Sized(code.form, (), (((), code.symbol),)))
    return tuple(found[form] for form in sorted(found))


def _by_size(call: BySize) -> m.Sized | None:
    codes = {c: f.code for c, f in call.made().items() if isinstance(f, MetaForm)}
    if not codes:
        return None
    (form,) = {code.form for code in codes.values()}
    if len({code.symbol for code in codes.values()}) == 1:
        return m.Sized(form, (), (((), next(iter(codes.values())).symbol),))
    pairs = tuple((size_class, code.symbol) for size_class, code in sorted(codes.items()))
    return m.Sized(form, call.dimensions, pairs)


def _tile(name: str, form: MetaForm) -> m.Program:
    """A kernel that was written as a tile program, which has one form for all sizes."""
    count = len(form.code.params) - form.code.outputs
    inputs, outputs = form.code.params[:count], form.code.params[count:]
    text = print_graph(form.graph)
    sized = m.Form(tuple(b.unit for b in inputs), (), 0, form.code.form)
    plain = tuple(replace(b, unit=-1) for b in inputs)
    facts = (), STRIDE, (), (), "1", "1", (), False, (sized,)
    family = m.Family(form.graph.name, form.graph.sizes, plain, count, *facts)
    names, results = tuple(b.name for b in inputs), tuple(b.name for b in outputs)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return m.Program(name, digest, text, names, results, (m.Step(names, results, family),))


def _free_name(name: str, taken: Sequence[str]) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name) or "program"
    plain = plain if not plain[0].isdigit() else f"_{plain}"
    found, number = plain, 2
    while found in taken:
        found, number = f"{plain}_{number}", number + 1
    return found


def _described(name: str, text: str, program: Program) -> m.Program:
    """A program as the manifest has it. UnsupportedError for one that only the compiler's passes
    can call: its kernels are found by their keys, not by its name."""
    single = program._single
    if single is not None and single is not program.steps[0].call:
        raise UnsupportedError(f"how {name} is called depends on sizes: its kernels have no name")
    plain = _Plain(program)
    steps = tuple(
        m.Step(
            tuple(plain.name(n) for n in step.inputs),
            tuple(plain.name(n) for n in step.outputs),
            _family(step.family),
        )
        for step in program.steps
        if step.family is not None
    )
    inputs = tuple(plain.name(n) for n in program.inputs)
    results = tuple(plain.name(n) for n in program.results)
    return m.Program(name, hashlib.sha256(text.encode()).hexdigest(), text, inputs, results, steps)


class _Plain:
    """Values' names as identifiers, one for one."""

    def __init__(self, program: Program) -> None:
        names = [*program.inputs, *program.results]
        for step in program.steps:
            names += [*step.inputs, *step.outputs]
        self.names: dict[str, str] = {}
        for name in names:
            if name not in self.names:
                self.names[name] = _free_name(name, list(self.names.values()))

    def name(self, name: str) -> str:
        return self.names[name]


def _family(family: KernelFamily) -> m.Family:
    graph = family.graph
    forms = []
    for (units, static, rows), call in family.forms.items():
        if rows < 0:
            continue  # calls with nothing to sum
        each = list(call.made().values()) if isinstance(call, BySize) else [call]
        if not each or not isinstance(each[0], MetaForm):
            raise UnsupportedError(f"{graph.name}: a form of several kernels has no name")
        forms.append(m.Form(units, static, rows, each[0].code.form))
    forms.sort(key=lambda form: (form.units, form.static, form.rows))
    return m.Family(
        graph.name,
        graph.sizes,
        buffers(graph.params),
        family.given,
        tuple(family.tables),
        STRIDE,
        family.gathered,
        family.static_names,
        str(family.row_count),
        str(family.inner),
        family.classes,
        family.empty is not None,
        tuple(forms),
    )
