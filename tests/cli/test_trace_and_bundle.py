"""``tilewright trace`` and ``tilewright bundle``: from a script's calls to a folder that loads
without a compiler, and that a C program calls."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import tilewright
from tests import bundle_programs as programs
from tests.cli.conftest import Command
from tilewright.runtime.tracing.file import read_trace

Refused = Callable[..., str]
MAIN = sys.executable, "-c", "from tilewright.cli import main; main()"
SCRIPT = """
import sys, torch, tilewright
x = torch.ones(40, 8)
program = tilewright.Program(tilewright.parse(open(sys.argv[1]).read()))
for _ in range(3):
    program(x)
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace that the command wrote: three calls by a script that ended with code 7."""
    folder = tmp_path_factory.mktemp("traced")
    (folder / "sums.tw").write_text(programs.ROW_SUMS)
    (folder / "script.py").write_text(SCRIPT)
    names = [str(folder / "script.py"), str(folder / "sums.tw")]
    command = "trace", "-o", str(folder / "t.json"), "--", sys.executable, *names, "7"
    done = subprocess.run([*MAIN, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "3 calls of 1 program in 1 size" in done.stderr and "in 1 process" in done.stderr
    assert sorted(p.name for p in folder.iterdir()) == ["script.py", "sums.tw", "t.json"]
    return folder / "t.json"


def test_a_trace_says_what_a_script_called(traced: Path) -> None:
    (program,) = read_trace(traced).at("graph")
    assert program.name == "sums" and program.count == 3
    assert program.sizes == {"N": 40, "M": 8}


def test_from_a_trace_to_a_bundle(tilewright: Command, traced: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    done = tilewright("bundle", str(traced), "-o", str(out))
    assert done.code == 0, done
    assert f"wrote {out}: " in done.out and "sums" in done.out
    x = programs.numbers(40, 8)
    (found,) = load(out)["sums"](x)
    assert torch.equal(found, compiled(programs.ROW_SUMS)(x)[0])
    again = tilewright("bundle", str(traced), "-o", str(out))
    assert again.code == 2 and "holds a bundle already; --force replaces it" in again.err
    assert tilewright("bundle", str(traced), "-o", str(out), "--force", "--every-class").code == 0
    assert torch.equal(load(out)["sums"](x[:1])[0], compiled(programs.ROW_SUMS)(x[:1])[0])


def load(path: Path) -> tilewright.Bundle:
    return tilewright.load_bundle(path)


def compiled(text: str) -> tilewright.Program:
    return tilewright.Program(tilewright.parse(text))


def test_a_program_for_sizes(
    tilewright: Command, example: Callable[[str], str], tmp_path: Path
) -> None:
    sizes = "--sizes", "B=1,K=2,G=1,N=1", "--sizes", "N=300"
    done = tilewright("bundle", example("attention"), *sizes, "-o", str(tmp_path / "b"))
    assert done.code == 0, done
    bundle = load(tmp_path / "b")
    (step,) = bundle.manifest.programs[0].steps
    assert sorted(f.rows for f in step.family.forms) == [0, 1]
    for target in ("x86-64-v4", "znver4"):  # this machine need not be one
        done = tilewright(
            *("bundle", example("attention"), "--sizes", "N=300", "--target", target),
            *("-o", str(tmp_path / target)),
        )
        assert done.code == 0, done
        needs = json.loads((tmp_path / target / "manifest.json").read_text())["bundle"]["needs"]
        assert "avx512vl" in needs["features"]


def test_refusals(
    refused: Refused, traced: Path, example: Callable[[str], str], tmp_path: Path
) -> None:
    attention, out = example("attention"), str(tmp_path / "b")
    assert "a trace has the sizes" in refused("bundle", str(traced), "--sizes", "N=1", "-o", out)
    assert "has no size Q" in refused("bundle", attention, "--sizes", "Q=1", "-o", out)
    assert "unknown target 'z80'" in refused("bundle", attention, "--target", "z80", "-o", out)
    assert "there is no file" in refused("bundle", "none.tw", "-o", out)
    twice = tmp_path / "twice.tw"
    twice.write_text(programs.TWO_KERNELS)
    message = refused("bundle", str(twice), "-o", out)
    assert "the size M is compiled into the code: give it (--sizes M=64" in message
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter").touch()
    assert "a folder with other files" in refused("bundle", attention, "--force", "-o", str(full))
    damaged = tmp_path / "damaged.json"
    damaged.write_bytes(traced.read_bytes()[:-40])
    assert "is damaged: it is not JSON" in refused("bundle", str(damaged), "-o", out)
    of_cpus = refused("bundle", str(traced), "--target", "cuda-sm90", "-o", out)
    assert "it ran on CPUs; trace on a GPU, or bundle the .tw programs" in of_cpus
    assert not Path(out).exists()
    for arguments, message in (
        (("-o", str(traced), "--", "true"), "exists: name another file, or --force"),
        (("-o", str(tmp_path), "--", "true"), "is a folder; name a file in it"),
        (("-o", str(tmp_path / "no" / "t"), "--", "true"), "there is no folder"),
        (("-o", str(tmp_path / "t"), "--", "no-such-command"), "cannot run 'no-such-command': No"),
    ):
        assert message in refused("trace", *arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "damaged.json",
        "full",
        "twice.tw",
    ]


def test_exit_codes_pass_through(tilewright: Command, tmp_path: Path) -> None:
    out = str(tmp_path / "t.json")
    done = tilewright("trace", "-o", out, "--", "sh", "-c", "exit 3")
    assert done.code == 3 and "called no kernel of Tilewright" in done.err
    done = tilewright("trace", "-o", out, "--force", "--", "sh", "-c", "kill -9 $$")
    assert done.code == 128 + signal.SIGKILL
    assert read_trace(out).kernels == ()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 5), (signal.SIGINT, 6)])
def test_a_request_to_end_is_passed_on(tmp_path: Path, number: int, code: int) -> None:
    """Without a terminal, which would have told the command itself of a SIGINT."""
    script = f"trap 'exit 5' TERM; trap 'exit 6' INT; touch {tmp_path / 'ready'}; sleep 60 & wait"
    process = subprocess.Popen(
        [*MAIN, "trace", "-o", str(tmp_path / "t"), "--", "sh", "-c", script],
        start_new_session=True,
    )
    for _ in range(600):
        if (tmp_path / "ready").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(number)
    try:
        assert process.wait(60) == code
    finally:
        process.kill()
    assert read_trace(tmp_path / "t").kernels == ()


C_PROGRAM = """
#include "tilewright_kernels.h"
#include <stdio.h>
int main(void) {
  static float q[2 * 30 * 64], k[2 * 50 * 64], v[2 * 50 * 64], out[2 * 30 * 64];
  FILE *given = fopen("given.bin", "rb");
  size_t read = fread(q, sizeof q, 1, given) + fread(k, sizeof k, 1, given);
  if (read + fread(v, sizeof v, 1, given) < 3) return 9;
  fclose(given);
  const int64_t rows[4] = {2 * 30 * 64, 30 * 64, 64, 1}, keys[4] = {2 * 50 * 64, 50 * 64, 64, 1};
  const int64_t bad[4] = {2 * 50 * 64, 50 * 64, 1, 64};
  if (CALL(q, rows, k, bad, v, keys, out, rows, SIZES, 2) != TW_BAD_STRIDE) return 8;
  int code = CALL(q, rows, k, keys, v, keys, out, rows, SIZES, 2);
  FILE *found = fopen("found.bin", "wb");
  fwrite(out, sizeof out, 1, found);
  fclose(found);
  return code;
}
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
@pytest.mark.parametrize("openmp", [False, True])
def test_a_c_program_calls_a_kernel(
    tilewright: Command, example: Callable[[str], str], tmp_path: Path, openmp: bool
) -> None:
    folder = tmp_path / "b"
    sizes = ("--sizes", "B=1,K=2,G=1,N=30,M=50")
    done = tilewright("bundle", example("attention"), *sizes, "-o", str(folder))
    assert done.code == 0, done
    (code,) = load(folder).manifest.codes
    names = sorted("BKGNM")
    values = dict(zip("BKGNM", (1, 2, 1, 30, 50), strict=True))
    given = [programs.numbers(1, 2, n, 64, seed=n) for n in (30, 50, 50)]
    (tmp_path / "given.bin").write_bytes(b"".join(x.numpy().tobytes() for x in given))
    (tmp_path / "main.c").write_text(C_PROGRAM)
    defined = [f"-DCALL={code.symbol}_call", f"-DSIZES={','.join(str(values[n]) for n in names)}"]
    strict = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", *(["-fopenmp"] * openmp)]
    if not openmp:
        strict.append("-Wpedantic")
    linked = [f"-I{folder}", str(folder / "kernels.so"), f"-Wl,-rpath,{folder}"]
    subprocess.run(
        ["gcc", *strict, *defined, "main.c", *linked, "-o", "main"], cwd=tmp_path, check=True
    )
    variables = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    subprocess.run([str(tmp_path / "main")], cwd=tmp_path, env=variables, check=True)
    found = np.fromfile(tmp_path / "found.bin", np.float32).reshape(1, 2, 30, 64)
    assert np.array_equal(found, load(folder)["attention"](*given)[0].numpy())
