"""What a user sees of a mistake: place, message, source line, caret; exit code 2; no traceback."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tilewright.cli.output import friendly_warnings
from tilewright.runtime.cache import CacheWarning

Refused = Callable[..., str]
Write = Callable[[str, str], str]
COMMANDS = ("run", "compile", "opt", "explain")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_parse_error_points_at_the_place(refused: Refused, write: Write, command: str) -> None:
    path = write("bad.tw", "graph f(%x: tensor<4 x f32>) {\n  %y = math.neg %z\n  return %y\n}\n")
    lines = refused(command, path).splitlines()
    assert lines[0].startswith(f"error[TW001]: {path}:2:17: %z is not defined here")
    assert lines[1] == "      %y = math.neg %z"
    assert lines[2].index("^") == lines[1].index("%z")


def test_a_broken_rule_names_the_operation_and_its_types(refused: Refused) -> None:
    text = "graph f(%x: tensor<4 x f32>) {\n  %y = tensor.softmax %x {axis = 3}\n return %y }"
    message = refused("compile", "-", stdin=text)
    assert message.startswith("error[TW002]: <stdin>:2:8: tensor.softmax(tensor<4 x f32>): axis 3")
    assert message.rstrip().endswith("^")


@pytest.mark.parametrize("command", COMMANDS)
def test_files_that_are_not_there(
    refused: Refused, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "attention.tw").touch()
    message = refused(command, "atention.tw")
    assert "there is no file 'atention.tw'; did you mean 'attention.tw'?" in message
    assert "is a folder" in refused(command, ".")
    assert "there is no file 'no/such.tw'" in refused(command, "no/such.tw")
    assert "cannot read" in refused(command, "attention.tw/x")
    assert "cannot read" in refused(command, "x" * 5000)


def test_files_that_are_no_text(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "binary.tw"
    path.write_bytes(b"graph\n\xff\xfe")
    assert "byte 6 (line 2) is not UTF-8" in refused("run", str(path))
    path.write_bytes(b" " * (5 << 20))
    assert "no program is longer than 4 MiB" in refused("run", str(path))
    path.write_bytes(b"")
    assert "the text ends here" in refused("run", str(path))


GARBAGE = {
    "letters": lambda: "".join(random.Random(0).choices("abc{}()<>%,;\n 0", k=1_000_000)),
    "nested": lambda: "graph f() {" + " tile.for () {" * 70_000,
    "lists": lambda: "graph f() { %c = math.const {value = " + "[" * 400_000,
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_megabyte_of_garbage_ends_soon(refused: Refused, write: Write, kind: str) -> None:
    path = write("garbage.tw", GARBAGE[kind]())
    start = time.process_time()  # a busy machine makes the time on the wall longer, not this one
    message = refused("compile", path)
    assert time.process_time() - start < 10
    assert message.startswith("error[TW001]") and len(message) < 1000


def test_no_command_and_unknown_ones(tilewright: Command) -> None:
    assert "Usage: tilewright" in tilewright().out + tilewright().err
    done = tilewright("frobnicate")
    assert done.code == 2 and "No such command 'frobnicate'" in done.err
    done = tilewright("run")
    assert done.code == 2 and "Missing argument" in done.err


def test_our_warnings_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *rest: others.append(str(message)))
    with friendly_warnings():
        warnings.simplefilter("always")
        warnings.warn("the cache is full", CacheWarning, stacklevel=1)
        warnings.warn("another's", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: the cache is full\n"
    assert others == ["another's"]
