"""What the emulation refuses, and what it must let pass: races, reads of what nobody wrote, bounds,
alignment, threads that diverge. Each case is a kernel of a few lines."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import numpy as np
import pytest

from tilewright.backends.cuda.host import run_on_host
from tilewright.ir.errors import (
    BindError,
    KernelAlignmentError,
    KernelBoundsError,
    KernelCompileError,
    KernelDeadlockError,
    KernelDivergenceError,
    KernelFaultError,
    KernelRaceError,
    KernelUninitialisedError,
)

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="the emulation needs g++")
SEEDS = range(4)


@dataclass(frozen=True)
class Case:
    """A body of 64 threads in two blocks with 1,024 bytes of shared memory, an input ``x`` of 64
    ints, an output ``y`` of 128; what it raises, and words of the message."""

    body: str
    error: type[KernelFaultError] | None = None
    words: str = ""


PUT = "tw::shared_store<int>(tw_shared + 4 * t, t);\n"
GET = "tw::global_store(y + g, tw::shared_load<int>(tw_shared + 4 * (t ^ {})));\n"
FETCH = "tw::copy_async<4>(tw_shared + 4 * t, x + t); tw::commit();\n"

CASES = {
    # ---- races
    # Where the reader comes first, nobody has written yet.
    "written, then read by another": Case(PUT + GET.format(1), KernelFaultError, "shared memory"),
    "a barrier between": Case(PUT + "tw::barrier();\n" + GET.format(33)),
    "a warp's barrier within the warp": Case(PUT + "tw::warp_barrier();\n" + GET.format(1)),
    "a warp's barrier between warps": Case(
        PUT + "tw::warp_barrier();\n" + GET.format(32), KernelRaceError, "nothing between"
    ),
    "a shuffle orders nothing": Case(
        PUT + "tw::shuffle_xor(t, 1);\n" + GET.format(1), KernelRaceError, "nothing between"
    ),
    "written by two": Case(
        "tw::shared_store<int>(tw_shared + 4 * (t / 2), t);", KernelRaceError, "wrote in line 3"
    ),
    "neighbouring bytes by two": Case(
        "tw::shared_store<signed char>(tw_shared + t, t); tw::barrier();\n"
        "y[g] = tw::shared_load<signed char>(tw_shared + 63 - t);"
    ),
    "read by one, then written by another": Case(
        PUT + "tw::barrier(); const int v = tw::shared_load<int>(tw_shared + 4 * (t ^ 1));\n" + PUT,
        KernelRaceError,
        "which thread",
    ),
    "read by everybody, then written by one": Case(
        "if (t == 0) tw::shared_store<int>(tw_shared, 1);\ntw::barrier();\n"
        "y[g] = tw::shared_load<int>(tw_shared);\n"
        "if (t == 40) tw::shared_store<int>(tw_shared, 2);",
        KernelRaceError,
        "byte 0 of shared memory",
    ),
    "read by everybody, a barrier, then written by one": Case(
        "if (t == 0) tw::shared_store<int>(tw_shared, 1);\ntw::barrier();\n"
        "y[g] = tw::shared_load<int>(tw_shared);\ntw::barrier();\n"
        "if (t == 40) tw::shared_store<int>(tw_shared, 2);"
    ),
    "a part of 16 bytes": Case(
        "if (t == 0) tw::shared_store_vec<16>(tw_shared, tw::Vec<16>{1, 2, 3, 4});\n"
        "tw::barrier();\nif (t == 0) tw::shared_store<short>(tw_shared + 6, 9);\n"
        "if (t == 1) tw::shared_load_vec<16>(tw_shared);",
        KernelRaceError,
        "shared memory",
    ),
    "a numbered barrier orders who meets there": Case(
        "if (t < 32) { tw::shared_store<int>(tw_shared + 4 * t, t); tw::barrier_arrive(1, 64); }\n"
        "else { tw::barrier(1, 64); y[g] = tw::shared_load<int>(tw_shared + 4 * (t - 32)); }"
    ),
    "bar.arrive does not order what comes after": Case(
        "if (t < 32) { tw::barrier_arrive(1, 64); tw::shared_store<int>(tw_shared + 4 * t, t); }\n"
        "else { tw::barrier(1, 64); y[g] = tw::shared_load<int>(tw_shared + 4 * (t - 32)); }",
        KernelFaultError,  # a race, or nobody has written yet
    ),
    "two blocks write one element": Case("tw::global_store(y + t, t);", KernelRaceError, "block"),
    "a block reads what another wrote": Case(
        "tw::global_store(y + g, t);\ntw::barrier();\ntw::global_load(y + 127 - g);",
        KernelRaceError,
        "reads byte",
    ),
    # ---- copies in the background
    "a copy waited for, and a barrier": Case(
        FETCH + "tw::wait<0>(); tw::barrier();\n" + GET.format(33)
    ),
    "a copy waited for by its own thread": Case(FETCH + "tw::wait<0>();\n" + GET.format(0)),
    "a copy not waited for": Case(FETCH + GET.format(0), KernelRaceError, "not been waited for"),
    "a wait without a barrier": Case(
        FETCH + "tw::wait<0>();\n" + GET.format(1), KernelFaultError, "shared memory"
    ),
    "a barrier without a wait": Case(
        FETCH + "tw::barrier();\n" + GET.format(1), KernelRaceError, "not been waited for"
    ),
    "a wait for too few groups": Case(
        FETCH + "tw::wait<1>(); tw::barrier();\n" + GET.format(1),
        KernelRaceError,
        "not been waited for",
    ),
    "a copy outside every group": Case(
        "tw::copy_async<4>(tw_shared + 4 * t, x + t); tw::wait<0>(); tw::barrier();\n"
        + GET.format(1),
        KernelRaceError,
        "not been waited for",
    ),
    "a copy onto what others still read": Case(
        PUT + "tw::barrier();\n" + GET.format(32) + FETCH, KernelRaceError, "shared memory"
    ),
    # ---- nobody wrote it, it is not there
    "nobody wrote it": Case(
        "tw::shared_load<int>(tw_shared + 512 + 4 * t);", KernelUninitialisedError, "nobody"
    ),
    "the last byte of a vector": Case(
        "if (t < 15) tw::shared_store<char>(tw_shared + t, 1);\ntw::barrier();\n"
        "tw::shared_load_vec<16>(tw_shared);",
        KernelUninitialisedError,
        "byte 15",
    ),
    "past shared memory": Case(
        "tw::shared_store<int>(tw_shared + 1024 - 4 * 32 + 4 * t, t);",
        KernelBoundsError,
        "which has 1024 bytes",
    ),
    "before shared memory": Case("tw::shared_load<int>(tw_shared - 4);", KernelBoundsError, "-4"),
    "one past an array": Case(
        "tw::global_store(y + g, tw::global_load(x + t + (t == 63)));",
        KernelBoundsError,
        "byte 256 of global array 0, which has 256 bytes",
    ),
    "before an array": Case("tw::global_load(x + t - 1);", KernelBoundsError, "byte -4"),
    "a copy from outside": Case(
        "tw::copy_async<8>(tw_shared + 8 * t, x + 2 * t);", KernelBoundsError
    ),
    "a copy from outside that is switched off": Case(
        "tw::copy_async<8>(tw_shared + 8 * t, x + 2 * t, t < 32);"
    ),
    "an odd vector in shared memory": Case(
        "tw::shared_store_vec<8>(tw_shared + 12 * t, tw::Vec<8>{1, 2});", KernelAlignmentError
    ),
    "an odd vector in an array": Case(
        "tw::global_load_vec<8>(x + (t & 31));", KernelAlignmentError
    ),
    # ---- threads apart
    "a barrier that half a block passes by": Case(
        "if (t < 32) tw::barrier();", KernelDivergenceError, "barrier of the whole block"
    ),
    "two barriers": Case(
        "if (t < 32) tw::barrier();\nelse tw::barrier();", KernelDivergenceError, "another"
    ),
    "a lane that does not shuffle": Case(
        "if (t != 5) tw::shuffle_xor(t, 1);", KernelDivergenceError, "shuffle_xor"
    ),
    "lanes at different shuffles": Case(
        "if (t % 2) tw::shuffle_xor(t, 1);\nelse tw::shuffle_xor(t, 1);", KernelDivergenceError
    ),
    "a numbered barrier that waits for too many": Case(
        "if (t < 32) tw::barrier(3, 64);",
        KernelDeadlockError,
        "32 threads have ended): threads 0-31 at barrier in line 3",
    ),
    "barriers crossed": Case(
        "if (t < 32) { tw::barrier(1, 64);\n tw::barrier(2, 64); }\n"
        "else { tw::barrier(2, 64);\n tw::barrier(1, 64); }",
        KernelDeadlockError,
        "threads 0-31 at barrier in line 3; threads 32-63 at barrier in line 5",
    ),
    "a part of a warp at a numbered barrier": Case(
        "if (t % 2) tw::barrier(1, 32);", KernelDivergenceError, "16 of the 32 lanes of warp"
    ),
    "barrier 0 beside the block's": Case(
        "if (t < 32) tw::barrier(0, 64);\nelse tw::barrier();", KernelDivergenceError, "barrier"
    ),
    "a barrier for two numbers of threads": Case(
        "tw::barrier(1, t < 32 ? 32 : 64);", KernelFaultError
    ),
}


def kernel(name: str, body: str) -> str:
    return (
        f"#line 2\nTW_KERNEL({name}, 64, 1)(const int* x, int* y) {{ TW_SHARED(1024);"
        f" const int t = tw::thread(), g = tw::block() * 64 + t;\n{body}\n}}\n"
    )


INCLUDE = '#include "tilewright_kernel.h"\n'
# All cases in one text, compiled once; the body of each begins with line 3.
TEXT = INCLUDE + "".join(kernel(f"k{i}", case.body) for i, case in enumerate(CASES.values()))


def launch(text: str, name: str, seed: int) -> None:
    y = np.zeros(128, np.int32)
    run_on_host(text, name, 2, [np.arange(64, dtype=np.int32), y], 64, 1024, seed)


def run(body: str, seed: int) -> None:
    launch(INCLUDE + kernel("k", body).split("\n", 1)[1], "k", seed)


@pytest.mark.parametrize("name", CASES)
def test_what_is_refused_and_what_passes(name: str) -> None:
    case, symbol = CASES[name], f"k{list(CASES).index(name)}"
    for seed in SEEDS:
        if case.error is None:
            launch(TEXT, symbol, seed)
            continue
        with pytest.raises(case.error) as caught:
            launch(TEXT, symbol, seed)
        assert case.words in str(caught.value)
        assert f"kernel {symbol}, block" in str(caught.value)


def test_an_error_names_everything_and_quotes_both_lines() -> None:
    body = "if (t == 3) tw::shared_store<int>(tw_shared + 8, 1);\n"
    body += "if (t == 40) tw::shared_store<int>(tw_shared + 8, 2);"
    with pytest.raises(KernelRaceError) as caught:
        run(body, 0)
    words = str(caught.value)
    assert "byte 8 of shared memory" in words
    assert "thread 3" in words and "thread 40" in words
    assert "3: if (t == 3)" in words and "4: if (t == 40)" in words


def test_arrays_stay_as_they_were_after_a_fault_and_the_next_launch_is_clean() -> None:
    text = (
        '#include "tilewright_kernel.h"\nTW_KERNEL(k, 32, 1)(int* y, int n) {'
        " for (int i = 0; i < n; ++i) tw::global_store(y + 32 * i + tw::thread(), 7); }"
    )
    y = np.zeros(64, np.int32)
    with pytest.raises(KernelBoundsError):
        run_on_host(text, "k", 1, [y, 3], 32, 0)
    assert not y.any()
    run_on_host(text, "k", 1, [y, 2], 32, 0)
    assert (y == 7).all()


def test_one_seed_is_one_schedule() -> None:
    """Which of two racing threads is named depends on the seed only."""
    body = "tw::shared_store<int>(tw_shared, t);"

    def message(seed: int) -> str:
        with pytest.raises(KernelRaceError) as caught:
            run(body, seed)
        return str(caught.value)

    assert message(1) == message(1)
    assert len({message(seed) for seed in range(8)}) > 1


def test_arguments_that_do_not_fit() -> None:
    text = (
        '#include "tilewright_kernel.h"\nTW_KERNEL(k, 64, 1)(const int* x, int n, float f) {'
        " TW_SHARED(64); }"
    )
    x = np.zeros(4, np.int32)
    run_on_host(text, "k", 1, [x, 1, 2.0], 64, 64)
    for arguments, threads, shared, words in (
        ([x, 1], 64, 64, "3 parameters"),
        ([x, x, 2.0], 64, 64, "parameter 1 is 'i4', found an array"),
        ([1, 1, 2.0], 64, 64, "parameter 0 is 'p', found 1"),
        ([x, 1, 2.0], 32, 64, "made for 64 threads"),
        ([x, 1, 2.0], 64, 32, "asks for 64 bytes"),
        ([x, 1, 2.0], 64, 1 << 20, "at most"),
    ):
        with pytest.raises(BindError, match=words):
            run_on_host(text, "k", 1, arguments, threads, shared)  # type: ignore[arg-type]


def test_text_that_does_not_compile() -> None:
    with pytest.raises(KernelCompileError, match="no_such_thing"):
        run("tw::no_such_thing();", 0)


def test_a_copy_reads_at_a_moment_that_the_seed_draws() -> None:
    """Between its issue and the wait: what is written there meanwhile may come along or not."""
    text = INCLUDE + (
        "TW_KERNEL(k, 32, 1)(int* x, int* y) { TW_SHARED(128); const int t = tw::thread();\n"
        "tw::copy_async<4>(tw_shared + 4 * t, x + t); tw::commit();\n"
        "tw::global_store(x + t, 1); tw::wait<0>();\n"
        "tw::global_store(y + t, tw::shared_load<int>(tw_shared + 4 * t)); }"
    )
    y = np.zeros(32, np.int32)
    run_on_host(text, "k", 1, [np.zeros(32, np.int32), y], 32, 128)
    assert 0 < y.sum() < 32
