"""Programs as the command line names them: a file with IR, ``-``, or ``module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tilewright.cli.output import amount
from tilewright.ir.core import Module
from tilewright.ir.errors import SettingError, close_to
from tilewright.ir.types import TensorType

_BOM = "\ufeff"  # editors on Windows begin files with it
MOST_BYTES = 4 << 20  # no program is longer; a wrong file is


def is_function(name: str) -> bool:
    """True for ``module:function`` (a file of that very name wins)."""
    return ":" in name and not Path(name).exists()


def read_program(name: str) -> Module:
    """The module in a file, or on stdin for ``-``. Raises SettingError, ParseError, VerifyError."""
    from tilewright.ir.parser import parse

    return parse(read_text(name), "<stdin>" if name == "-" else name)


def read_text(name: str) -> str:
    """The text of a file, or of stdin for ``-``. Raises SettingError."""
    shown = "<stdin>" if name == "-" else name
    data = _read_stdin() if name == "-" else _read(Path(name))
    try:
        return data.decode("utf-8").removeprefix(_BOM)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"{shown}: byte {error.start} (line {line}) is not UTF-8: a program is text"
        raise SettingError(message) from None


def _read_stdin() -> bytes:
    if sys.stdin is None:  # as Python has it where the file descriptor was closed (<&-)
        raise SettingError("stdin is closed; pipe a program into it, or name a file instead of -")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise SettingError(f"cannot read stdin: {error.strerror}; name a file instead") from None


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise SettingError(f"{path} is a folder; name a file in it")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise SettingError(f"{path} has {amount(size)}: no program is longer than 4 MiB")
        return path.read_bytes()
    except FileNotFoundError:
        near = close_to(path.name, _programs_in(path.parent))
        raise SettingError(f"there is no file {str(path)!r}{near}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingError(f"cannot read {str(path)!r}: {reason}") from None


def _programs_in(folder: Path) -> list[str]:
    try:
        return [p.name for p in folder.iterdir() if p.suffix == ".tw"]
    except OSError:
        return []


def only_tensor_level(module: Module, name: str, what: str) -> Module:
    """The module, which has to hold one graph, at the tensor level. Raises SettingError."""
    if module.main.level != "graph":
        message = f"{what} takes a program at the tensor level (graph …), {name} holds "
        raise SettingError(message + f"{module.main.level} {module.main.name}")
    only_one_graph(module, name, what)
    for param in module.main.params:
        if not isinstance(param.type, TensorType):
            raise SettingError(
                f"{name}: %{param.hint} is {param.type}; inputs of a graph are tensors"
            )
    return module


def only_one_graph(module: Module, name: str, what: str) -> None:
    """Raises SettingError for a file of several graphs, of which a command would take the first."""
    if len(module.graphs) > 1:
        names = ", ".join(graph.name for graph in module.graphs)
        raise SettingError(
            f"{name} holds {len(module.graphs)} graphs ({names}); {what} takes one: put each into "
            "a file of its own"
        )


def import_function(name: str) -> Callable[..., Any]:
    """What ``package.module:name`` or ``path/file.py:name`` names. Raises SettingError."""
    place, _, attribute = name.rpartition(":")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [n for n in dir(found) if not n.startswith("_")]
            near = close_to(part, known)
            raise SettingError(f"{place} has no {attribute!r}{near}")
        found = getattr(found, part)
    if not callable(found):
        raise SettingError(f"{name} is a {type(found).__name__}, which cannot be called")
    function: Callable[..., Any] = found
    return function


def _import_module(name: str) -> Any:
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as ``python -m`` has it
    if not all(part.isidentifier() for part in name.split(".")):
        raise SettingError(f"{name!r} names no Python module; write package.module:function")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        own = name == missing or name.startswith(f"{missing}.")
        what = "there is no Python module" if own else f"{name} needs the Python module"
        raise SettingError(f"{what} {missing!r} (looked from {here})") from None
    except Exception as error:  # the user's code, run by the import
        raise SettingError(f"{name} does not import: {_last_line(error)}") from error


def _import_file(path: Path) -> Any:
    from importlib.util import module_from_spec, spec_from_file_location

    if not path.is_file():
        raise SettingError(f"there is no file {str(path)!r}")
    name = f"{path.stem}_run_by_tilewright"  # hides no module of the file's own name
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.absolute()))  # as ``python file.py`` has it
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code, run by the import
        raise SettingError(f"{path} does not import: {_last_line(error)}") from error
    return module


def _last_line(error: Exception) -> str:
    """What an exception of the user's code says, with its place in that code."""
    place, trace = "", error.__traceback__
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}: "
        trace = trace.tb_next
    return f"{place}{type(error).__name__}: {error}"
