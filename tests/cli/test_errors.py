"""What a user sees of a mistake: place, message, source line, caret; exit code 2; no traceback."""

from __future__ import annotations

import os
import pty
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tilewright.cli.output import friendly_warnings
from tilewright.runtime.cache import CacheWarning

Example = Callable[[str], str]
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


@pytest.mark.parametrize("command", ["run", "explain", "verify", "bisect", "tune run", "bundle"])
def test_a_file_of_several_graphs_is_not_its_first(
    refused: Refused, write: Write, command: str, tmp_path: Path
) -> None:
    one = "graph {}(%x: tensor<4 x f32>) {{ %y = math.neg %x return %y }}\n"
    path = write("two.tw", one.format("first") + one.format("second"))
    out = ["-o", str(tmp_path / "out")] if command == "bundle" else []
    message = refused(*command.split(), path, *out)
    assert "two.tw holds 2 graphs (first, second); " in message
    assert "takes one: put each into a file of its own" in message


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


@pytest.mark.parametrize("command", ["run", "simulate", "bisect"])
def test_seeds_are_numbers_from_zero(refused: Refused, example: Example, command: str) -> None:
    assert "Invalid value for '--seed'" in refused(command, example("attention"), "--seed", "-1")


def test_a_byte_order_mark_is_no_part_of_a_program(
    tilewright: Command, refused: Refused, tmp_path: Path
) -> None:
    path = tmp_path / "windows.tw"
    path.write_text("graph f(%x: tensor<4 x f32>) {\n  return %x\n}\n", encoding="utf-8-sig")
    assert tilewright("opt", str(path)).code == 0
    path.write_text("grap f", encoding="utf-8-sig")
    assert f"{path}:1:1: " in refused("opt", str(path))


def test_a_choice_that_there_is_not_is_told_in_our_words(refused: Refused) -> None:
    message = refused("compile", "x.tw", "--emit", "zzz")
    assert "'zzz' is not one of 'tensor'" in message and "alue error" not in message


# ---- a process of its own: what its standard streams are matters

PROGRAM = "graph f(%x: tensor<4 x f32>) { return %x }"
OURS = (sys.executable, "-m", "tilewright")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [("opt", "-"), ("--version",), ("--help",)])
def test_a_full_disk_is_told_in_one_line(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*OURS, *arguments],
            input=PROGRAM,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error[TW009]: cannot write the output: No space left")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_has_gone_is_no_mistake() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*OURS, "opt", "-"], input=PROGRAM.encode(), stdout=write, stderr=-1, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_closed_stdin_is_told_in_one_line() -> None:
    closed = f"{' '.join(OURS)} opt - <&-"
    done = subprocess.run(["sh", "-c", closed], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error[TW009]: stdin is closed; ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_are_for_terminals_that_want_them(
    variables: dict[str, str], coloured: bool
) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    ours, theirs = pty.openpty()
    environment = {**kept, "TERM": "xterm", **variables}
    subprocess.run([*OURS, "run", "nofile"], stderr=theirs, env=environment, check=False)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "there is no file 'nofile'" in shown
    assert ("\x1b[" in shown) is coloured


@pytest.mark.parametrize(("columns", "boxes"), [("30", False), ("80", True)])
def test_help_in_a_narrow_terminal_has_no_boxes(columns: str, boxes: bool) -> None:
    command = [*OURS, "tune", "run", "--help"]
    environment = {**os.environ, "COLUMNS": columns}
    shown = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert ("│" in shown.stdout) is boxes and ("--budget" in shown.stdout), shown.stdout
