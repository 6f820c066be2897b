"""docs/reference/errors.md: every error class, what to do about it, and a message as it is raised.

A new class in ir/errors.py needs a few words in advice.toml; its docstring says what it is.
"""

from __future__ import annotations

import re
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from tests.docs.pages.markdown import WRITTEN, fenced, prose, sentence, table
from tilewright.cli import app
from tilewright.ir import errors
from tilewright.ir.errors import TilewrightError

HEAD = """\
# Error codes

{written} Every mistake that Tilewright finds is a `tilewright.TilewrightError` with a code. The
message names the thing, says what was expected and what was found, and what to do; where it comes
from a text, it shows the line with a caret. On the command line it is printed after
`error[CODE]:` and the exit code is 2. Anything else that is raised, an `AssertionError` above
all, is a bug of ours: please report it, with the program (`.tw`) if there is one.

```python
import tilewright

try:
    tilewright.parse("graph f(%x: tensor<4 x f32>) {{ return %y }}")
except tilewright.TilewrightError as error:
    print(error.code)
```

```text
TW001
```

{contents}"""

# class -> what a reader does about it
ADVICE: dict[str, str] = tomllib.loads(
    Path(__file__).with_name("advice.toml").read_text(encoding="utf-8")
)

STREAMS = Path(__file__).resolve().parents[3] / "examples" / "streams"
TWICE = """graph f<N>(%x: tensor<N x N x f32>) {
  %y = math.exp %x
  %t = tensor.transpose %y {permutation = [1, 0]}
  %z = math.add %y, %t
  return %z
}"""
UNWRITTEN = """tile f(%o: buffer<8 x f32, unit 0>) with {grid = [[1, 1]], outputs = 1} {
%c = math.const {value = 0, type = index}
%s = tile.alloc {type = scratch<8 x f32>}
%a = tile.load %s, %c {dims = [0], layout = spatial(8)}
tile.store %a, %o, %c {dims = [0]}
return }"""


def run(*arguments: str) -> None:
    """A command, with its mistake as it is before the command line prints it."""
    command: Any = typer.main.get_command(app)
    for name in arguments:
        if not hasattr(command, "commands"):
            break
        command = command.commands[name]
        arguments = arguments[1:]
    command.main(list(arguments), standalone_mode=False)


def _parse() -> None:
    import tilewright

    tilewright.parse("graph f(%x: tensor<4 x f32>) {\n  %y = math.exp %z\n  return %y\n}")


def _verify() -> None:
    import tilewright

    tilewright.parse(
        "graph f(%x: tensor<4 x 8 x f32>) { %y = tensor.softmax %x {axis = 2} return %y }"
    )


def _bind() -> None:
    import numpy as np

    import tilewright

    text = "graph f<N>(%x: tensor<N x f32>, %y: tensor<N x f32>) { %z = math.add %x, %y return %z }"
    tilewright.evaluate(tilewright.parse(text), np.zeros(4, np.float32), np.zeros(5, np.float32))


def _unsupported() -> None:
    import tilewright
    from tilewright.passes.to_stream import to_stream

    to_stream(tilewright.parse(TWICE))


def _target() -> None:
    from tilewright.ir.target import named_target

    named_target("z80")


def _evaluation() -> None:
    import tilewright

    tilewright.evaluate(tilewright.parse(UNWRITTEN))


def _setting() -> None:
    import tilewright

    tilewright.table_dtype("mine", [0.0, 1.0, 2.0])


def _deadlock() -> None:
    run("simulate", str(STREAMS / "naive.tw"), "--size", "N=8", "--depth", "short=2,long=N-3")


def _tuning() -> None:
    from tilewright.runtime.tuning.database import Database
    from tilewright.runtime.tuning.exchange import take_file

    with tempfile.TemporaryDirectory() as folder:
        take_file(Database(Path(folder) / "tuning.sqlite3"), Path("measured.json"))


def _schedule() -> None:
    from tilewright.passes.to_tile.choices import Space

    Space({"rows": 8}, {"rows": (4, 8, 16)}, lambda choice: "").check({"rows": 5})


def _data() -> None:
    import tilewright

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors").write_bytes(b"\0" * 5)
        tilewright.open_checkpoint(Path(folder) / "model.safetensors")


def _bundle() -> None:
    import tilewright

    tilewright.load_bundle("kernels")


def _bench() -> None:
    from tilewright.bench.suites.catalogue import suite

    suite("atention")


def _trace() -> None:
    from tilewright.runtime.tracing.file import read_trace

    read_trace(Path("trace.json"))


# class -> what was done, and that
MESSAGES: dict[str, tuple[str, Callable[[], None]]] = {
    "ParseError": ("a value that nothing defines", _parse),
    "VerifyError": ("an axis that is not there", _verify),
    "BindError": ("two sizes for one name", _bind),
    "UnsupportedError": ("a matrix and its own transpose in one sum", _unsupported),
    "TargetError": ("`--target z80`", _target),
    "EvaluationError": ("a tile program that reads scratch memory first", _evaluation),
    "SettingError": ("a table of three values", _setting),
    "DeadlockError": (
        "`tilewright simulate examples/streams/naive.tw --size N=8 --depth short=2,long=N-3`",
        _deadlock,
    ),
    "ScheduleError": ("a choice that is not in the kernel's space", _schedule),
    "TuningError": ("`tilewright tune import measured.json`", _tuning),
    "DataError": ("five bytes called model.safetensors", _data),
    "BundleError": ("a bundle that is not there", _bundle),
    "BenchError": ("a suite's name with a slip", _bench),
    "TraceError": ("a trace that is not there", _trace),
}


def classes() -> Iterator[type[TilewrightError]]:
    """In the order of ir/errors.py."""
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, TilewrightError):
            yield value


def page() -> str:
    """The whole page. Raises AssertionError for a class without advice."""
    rows, parts = [], []
    for cls in classes():
        own = "code" in vars(cls)
        name = f"[{cls.code}](#{cls.code.lower()})"
        if own:
            rows.append((name, f"`{cls.__name__}`", sentence(cls.__doc__)))
            parts.append(f"## {cls.code}\n")
        parts += [section(cls)]
    contents = table(("code", "class", "is"), rows)
    head = HEAD.format(written=WRITTEN.format(source="ir/errors.py"), contents=contents)
    return "\n".join([head, *parts])


def section(cls: type[TilewrightError]) -> str:
    name = cls.__name__
    about = prose(cls.__doc__).replace("\n", " ")
    base = cls.__bases__[0].__name__
    kind = "" if base in ("TilewrightError", "Exception") else f" (a `{base}`)"
    lines = [f"**`{name}`**{kind}: {about}\n"]
    if name in ADVICE:
        lines.append(f"*What to do:* {ADVICE[name]}\n")
    else:
        assert base not in ("TilewrightError", "Exception"), (
            f"{name} needs a few words in tests/docs/pages/advice.toml: what does a reader do?"
        )
    if name in MESSAGES:
        what, do = MESSAGES[name]
        lines += [
            f"For example, {what}:\n",
            fenced("text", f"error[{cls.code}]: {message(do, cls)}"),
        ]
    return "\n".join(lines)


def message(do: Callable[[], None], cls: type[TilewrightError]) -> str:
    """The message with which it raises the error; folders of this machine are left out."""
    try:
        do()
    except cls as error:
        assert type(error) is cls, f"{cls.__name__} expected, {type(error).__name__} raised"
        text = str(error).replace(f"{Path.cwd()}/", "")
        return re.sub(rf"{re.escape(tempfile.gettempdir())}/\w+/", "", text)
    raise AssertionError(f"nothing raised {cls.__name__}")
