"""``tilewright run FILE``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.cli.conftest import Command
from tilewright.cli import results, run_file
from tilewright.evaluation import to_numpy

Example = Callable[[str], str]
Refused = Callable[..., str]
Write = Callable[[str, str], str]

SMALL = ("--repeat", "1", "-s", "N=33,M=20")


@pytest.mark.parametrize("name", ["attention", "causal_attention", "log_sum_exp"])
def test_every_example_runs_and_is_right(tilewright: Command, example: Example, name: str) -> None:
    done = tilewright("run", example(name), *SMALL)
    assert done.code == 0, done
    assert "N = 33, M = 20" in done.out
    assert "against the float64 oracle" in done.out and "WRONG" not in done.out
    assert f"{name}: " in done.out.split("kernels 1")[1]


def test_the_sizes_that_were_chosen_are_told(tilewright: Command, example: Example) -> None:
    done = tilewright("run", example("attention"), *SMALL, "--no-check")
    assert "B = 2, K = 2, G = 2" in done.out
    assert "(B, K, G chosen; --size sets them)" in done.out
    assert "%q       2 x 4 x 33 x 64 x f32" in done.out
    assert "-> %out  2 x 4 x 33 x 64 x f32" in done.out
    assert "error" not in done.out


def test_the_time_is_a_median_and_the_kernel_comes_from_the_cache_the_second_time(
    tilewright: Command, example: Example
) -> None:
    tilewright("run", example("log_sum_exp"), *SMALL)
    done = tilewright("run", example("log_sum_exp"), "-s", "N=9", "-s", "M=0", "--repeat", "3")
    assert "(median of 3, best" in done.out
    again = tilewright("run", example("log_sum_exp"), *SMALL)
    assert "loaded from the disk cache" in again.out


def test_threads_dtype_and_seed(tilewright: Command, example: Example) -> None:
    options = (*SMALL, "--threads", "1", "--dtype", "f16", "--seed", "7")
    done = tilewright("run", example("attention"), *options)
    assert done.code == 0, done
    assert "1 thread" in done.out and "33 x 64 x f16" in done.out
    other = tilewright("run", example("attention"), *options[:-1], "8")
    error = [next(x for x in o.out.splitlines() if x.startswith("error")) for o in (done, other)]
    assert error[0] != error[1]


def test_other_back_ends_and_targets(tilewright: Command, example: Example) -> None:
    tiny = ("-s", "N=3,M=5", "--repeat", "1")
    done = tilewright("run", example("log_sum_exp"), *tiny, "--backend", "interpreter")
    assert done.code == 0 and "by interpreter" in done.out, done
    done = tilewright("run", example("log_sum_exp"), *tiny, "--target", "x86-64-v3")
    assert done.code == 0 and "mlir for x86-64-v3" in done.out, done


def test_a_program_from_stdin(tilewright: Command) -> None:
    text = "graph twice<N>(%x: tensor<N x f32>) { %y = math.add %x, %x return %y }"
    done = tilewright("run", "-", "-s", "N=5", "--backend", "interpreter", stdin=text)
    assert done.code == 0 and "twice, for host by interpreter" in done.out, done


def test_wrong_results_are_called_wrong(
    tilewright: Command, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_file, "to_numpy", lambda x: to_numpy(x) + 0.01)
    done = tilewright("run", example("log_sum_exp"), *SMALL)
    assert done.code == 1 and "WRONG" in done.out, done


def test_results_of_another_form_are_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    row = ("%y", np.zeros((2, 1)), np.zeros(2), "f32")
    assert not results.show_errors([row])
    assert "%y has the shape (2, 1), the oracle's (2,)  WRONG" in capsys.readouterr().out
    assert not results.same_count(1, 2)
    assert "1 result, the oracle has 2  WRONG" in capsys.readouterr().out


def test_the_oracle_is_left_out_when_it_would_take_too_long(
    tilewright: Command, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_file, "ORACLE_ELEMENTS", 100)
    done = tilewright("run", example("log_sum_exp"), *SMALL)
    assert done.code == 0 and "not checked: too large for the oracle" in done.err, done


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-s", "N=x"], "--size 'N=x': write a name and a number, such as N=1024"),
        (["-s", "N"], "--size 'N': write a name and a number"),
        (["-s", "N=-1"], "--size 'N=-1': write a name and a number"),
        (["-s", "N=1", "-s", "N=2"], "--size N: given as 1 and as 2"),
        (["-s", "N=99999999999999999"], "no size is above"),
        (["-s", "n=4"], "has no size n; its sizes: B, K, G, N, M"),
        (["-s", "N=99999999"], "this machine has"),
        (["--dtype", "f33"], "unknown dtype 'f33'; did you mean 'f32'?; known: f64, f32"),
        (["--dtype", "i32"], "only floats can stand for floats"),
        (["--backend", "llvm"], "unknown back end 'llvm'; known: mlir"),
        (["--target", "znver9"], "unknown target 'znver9'; known targets: host, x86-64-v2"),
        (["-i", "2x2:f32"], "name an input of the program and say what it holds"),
        (["-i", "q=2x2:f32"], "write a kind of numbers and how they lie"),
        (["-i", "w=normal"], "the program has no input 'w'; its inputs: q, k, v"),
        (["-i", "q=normal,strides=1x2"], "2 strides for 4 dimensions"),
        (["--threads", "0"], "Invalid value for '--threads'"),
        (["--repeat", "0"], "Invalid value for '--repeat'"),
    ],
)
def test_options_that_mean_nothing(
    refused: Refused, example: Example, options: list[str], message: str
) -> None:
    assert message in refused("run", example("attention"), *options)


def test_only_tensor_programs_run(refused: Refused, write: Write) -> None:
    stream = write("s.tw", "stream f<N>(%x: tensor<N x f32>) { return %x }")
    assert "run takes a program at the tensor level" in refused("run", stream)
    odd = write("odd.tw", "graph f(%x: index) { return %x }")
    assert "index" in refused("run", odd)


@pytest.mark.parametrize(
    ("got", "wanted", "error", "scale"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5, 2.5),
        ([], [], 0.0, 0.0),
        ([np.nan, np.inf], [np.nan, np.inf], 0.0, 0.0),
        ([1.0], [np.nan], np.inf, 0.0),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf, 1.0),
        ([True, False], [True, True], 1.0, 1.0),
    ],
)
def test_the_largest_error(
    got: list[float], wanted: list[float], error: float, scale: float
) -> None:
    assert results.difference(np.array(got), np.array(wanted)) == (error, scale)
