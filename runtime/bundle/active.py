"""The bundle in use: programs that are compiled in this process take their kernels from it.

``use_bundle`` or the environment names it. What it has is not compiled; what it lacks is, where a
compiler is installed, and is else refused with the key that differs. It also says what this
process' target is, since code of one process is for one processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tilewright.ir.errors import BundleError, NotInBundleError
from tilewright.runtime.bundle.bundle import Bundle
from tilewright.runtime.bundle.forget import forget_target
from tilewright.runtime.bundle.forms import class_text
from tilewright.runtime.bundle.manifest import Buffer, Code, Sized
from tilewright.runtime.locks import Guard
from tilewright.runtime.settings import settings

if TYPE_CHECKING:
    from tilewright.ir.core import Graph
    from tilewright.ir.target import Target


@dataclass
class _State:
    """``known``: whether ``bundle`` has been decided in this process."""

    known: bool = False
    bundle: Bundle | None = None


_state = _State()
_guard = Guard()


def use_bundle(bundle: Bundle | Path | str | None) -> Bundle | None:
    """Programs made from now on take their kernels from a bundle (a folder, or one that is loaded);
    None: from no bundle any more. Kernels that have been made stay.

    Gives the loaded bundle. Raises BundleError, and what was in use stays in use.
    """
    loaded = Bundle(bundle) if isinstance(bundle, Path | str) else bundle
    if loaded is not None and loaded.target.gpu:
        raise BundleError(
            f"the bundle {loaded.path} is for {loaded.target.name}: call its programs by name "
            "(tilewright.load_bundle); only kernels for CPUs are put in place of compiled ones"
        )
    if loaded is not None:
        loaded.address(loaded.manifest.codes[0].symbol)  # damage shows now, not at the first call
    with _guard.lock:
        _put(loaded)
    return loaded


def bundle_in_use() -> Bundle | None:
    """The bundle that programs take kernels from, if any. Raises BundleError for one that the
    environment names and that cannot be used."""
    if not _state.known:
        named = settings().bundle
        use_bundle(named)
    return _state.bundle


def codes_for(bundle: Bundle, form: str, target: Target) -> Sized | None:
    """The codes of a form for a target, if the bundle has it."""
    return bundle.sized.get(form) if bundle.target.isa == target.isa else None


def refuse(graph: Graph, form: str, program: str, units: tuple[int, ...], target: Target) -> None:
    """NotInBundleError with what differs, if a bundle is in use: nothing here compiles. ``form``
    and ``program`` are hashes (runtime/bundle/keys.py)."""
    bundle = bundle_in_use()
    if bundle is None:
        return
    why = _difference(bundle, graph, program, units, target)
    raise NotInBundleError(
        f"{graph.name}: the bundle {bundle.path} has no kernel for this call ({why}), and no "
        "compiler is installed to make one: bundle such a call, too, or pip install "
        f"'tilewright[mlir]' (form {form[:12]})"
    )


def _put(bundle: Bundle | None) -> None:
    _state.bundle, _state.known = bundle, True
    forget_target()


def _difference(
    bundle: Bundle, graph: Graph, program: str, units: tuple[int, ...], target: Target
) -> str:
    """The first key in which a call differs from what a bundle has."""
    if bundle.target.isa != target.isa:
        return f"target: the program's is {target.name}, the bundle's {bundle.target.name}"
    same = [c for c in bundle.manifest.codes if c.program == program]
    for code in same:
        have = tuple(b.unit for b in code.params[: len(code.params) - code.outputs])
        if have == units:
            classes = sorted({class_text(c.rows) for c in same})
            return f"size class: the bundle has {', '.join(classes)}"
    if same:
        return f"strides: the bundle has other dimensions of stride one than {units}"
    named = [c for c in bundle.manifest.codes if c.kernel == graph.name]
    found = next((d for c in named if (d := _buffers_differ(graph, c))), "")
    if found:
        return found
    if named:
        return f"program: its {graph.name} computes something else"
    names = sorted({c.kernel for c in bundle.manifest.codes})
    return f"program: it has {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"


def _buffers_differ(graph: Graph, code: Code) -> str:
    """How the inputs of a kernel of the same name differ."""
    inputs = code.params[: len(code.params) - code.outputs]
    if len(inputs) != len(graph.params):
        return f"inputs: {len(graph.params)}, the bundle's {graph.name} takes {len(inputs)}"
    for param, buffer in zip(graph.params, inputs, strict=True):
        for what, mine, other in _facts(param.type, buffer):
            if mine != other:
                return f"{what} of %{param.hint}: {mine}, the bundle has {other}"
    return ""


def _facts(type_: object, buffer: Buffer) -> Iterator[tuple[str, str, str]]:
    """Dtype and sizes that are numbers, in the program and in the bundle."""
    yield "dtype", str(getattr(type_, "dtype", "")), buffer.dtype
    shape = tuple(map(str, getattr(type_, "shape", ())))
    yield "number of dimensions", str(len(shape)), str(len(buffer.shape))
    for mine, other in zip(shape, buffer.shape, strict=False):
        if mine.isdigit() or other.isdigit():
            yield "size", mine, other
