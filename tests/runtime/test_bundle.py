"""Bundles: what they compute is what compiled programs compute, to the bit, with no compiler there;
calls that they have no code for are refused, and the key that differs is named."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import bundle_programs as programs
from tests.bundle_programs import numbers
from tilewright.ir.errors import BindError, BundleError
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.runtime import threads
from tilewright.runtime.bundle import export
from tilewright.runtime.bundle.arrays import block_extremes
from tilewright.runtime.bundle.bundle import Bundle
from tilewright.runtime.bundle.export import Exporter
from tilewright.runtime.program import Program
from tilewright.runtime.tables import block_extremes as torch_extremes

TEXTS = {
    "scaled": programs.ELEMENTWISE,
    "sums": programs.ROW_SUMS,
    "attention": programs.ATTENTION,
    "attention_2": programs.CAUSAL,
    "documents": programs.DOCUMENTS,
}
LENGTHS = st.integers(1, 70)


def classes(name: str) -> tuple[int, ...]:
    """Rows of the calls that are bundled: of every row class that is."""
    return (1, 40) if name.startswith("attention") else (40,)


CALLS = st.sampled_from(sorted(TEXTS)).flatmap(
    lambda name: st.tuples(
        st.just(name), (st.just(1) if 1 in classes(name) else st.nothing()) | st.integers(17, 70)
    )
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Every program of ``TEXTS`` for one row and for many, ``twice``, and products of few bits."""
    calls: list[tuple[Any, Any]] = []
    for name, text in TEXTS.items():
        calls += [(text, inputs_of(name, rows, 40, 0)) for rows in classes(name)]
    calls.append((programs.TWO_KERNELS, (numbers(8, 16), numbers(16, 16))))
    for form, rows in ((programs.LOW_BIT, 1), (programs.LOW_BIT, 5), (programs.LOW_BIT_FLOAT, 3)):
        calls.append(programs.low_bit(form, rows, 2))
    return programs.make(tmp_path_factory.mktemp("bundles") / "b", calls)


@pytest.fixture(scope="module")
def compiled() -> dict[str, Program]:
    return {name: Program(parse(text)) for name, text in TEXTS.items()}


def inputs_of(name: str, rows: int, length: int, seed: int) -> list[torch.Tensor]:
    """Inputs of one of ``TEXTS``."""
    if name == "scaled":
        x = numbers(rows, length, seed=seed)
        return [x, numbers(rows, length, dtype=torch.bfloat16, seed=seed + 1)]
    if name == "sums":
        return [numbers(rows, length, seed=seed)]
    if name == "documents":
        q, k = numbers(2, rows, 32, seed=seed), numbers(2, length, 32, seed=seed + 1)
        return [q, k, torch.arange(rows) // 9, torch.arange(length) // 7]
    if name == "attention":
        q, k = numbers(1, 4, rows, 64, seed=seed), numbers(1, 2, length, 64, seed=seed + 1)
        return [q, k, numbers(1, 2, length, 32, seed=seed + 2)]
    kind = torch.bfloat16
    q, k, v = (numbers(1, 2, n, 32, dtype=kind, seed=seed) for n in (rows, length, length))
    return [q, k, v, numbers(1, 1, 1, 1, length, seed=seed) > -1]


@settings(max_examples=25)
@given(CALLS, LENGTHS, st.integers(0, 9))
def test_results_have_the_bits_of_compiled_ones(
    bundle: Bundle, compiled: dict[str, Program], call: tuple[str, int], length: int, seed: int
) -> None:
    name, rows = call
    given = inputs_of(name, rows, length, seed)
    found, want = bundle[name](*given), compiled[name](*given)
    assert len(found) == len(want)
    for mine, other in zip(found, want, strict=True):
        assert mine.dtype == other.dtype and mine.is_contiguous()
        assert torch.equal(mine.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("rows", [1, 5])
def test_products_of_few_bits(bundle: Bundle, rows: int) -> None:
    text, given = programs.low_bit(programs.LOW_BIT, rows, 2, seed=4)
    assert torch.equal(bundle["product"](*given)[0], Program(parse(text))(*given)[0])
    text, given = programs.low_bit(programs.LOW_BIT_FLOAT, 3, 2, seed=rows)
    assert torch.equal(bundle["product_2"](*given)[0], Program(parse(text))(*given)[0])


def test_programs_of_several_kernels(bundle: Bundle) -> None:
    given = numbers(8, 16), numbers(16, 16)
    want = Program(parse(programs.TWO_KERNELS))(*given)
    found = bundle["twice"](*given)
    assert [torch.equal(a, b) for a, b in zip(found, want, strict=True)] == [True, True]
    with pytest.raises(BundleError, match=r"sizes M = 24\); .* has 16"):
        bundle["twice"](numbers(8, 24), numbers(24, 24))


def test_numpy_arrays_give_numpy_arrays(bundle: Bundle) -> None:
    x, y = inputs_of("scaled", 29, 33, 0)
    want = bundle["scaled"](x, y)
    found = bundle["scaled"](x.numpy(), y.view(torch.uint16).numpy())
    assert found[0].dtype == np.uint16 and found[1].dtype == np.float32
    assert np.array_equal(found[0], want[0].view(torch.uint16).numpy())
    assert np.array_equal(found[1], want[1].numpy())
    ml_dtypes = pytest.importorskip("ml_dtypes")
    named = bundle["scaled"](x.numpy(), y.view(torch.uint16).numpy().view(ml_dtypes.bfloat16))
    assert named[0].dtype == ml_dtypes.bfloat16
    given = inputs_of("documents", 40, 65, 1)
    found = bundle["documents"](*(t.numpy() for t in given))
    assert np.array_equal(found[0], bundle["documents"](*given)[0].numpy())


def test_strides_of_inputs(bundle: Bundle, compiled: dict[str, Program]) -> None:
    q, k, v = inputs_of("attention", 30, 20, 0)
    apart = q.transpose(1, 2).contiguous().transpose(1, 2), torch.cat([k, k], 2)[:, :, :20], v
    assert torch.equal(bundle["attention"](*apart)[0], compiled["attention"](*apart)[0])
    turned = q.transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(BundleError, match=r"stride one of %q: dimension 2.* has dimension 3; make"):
        bundle["attention"](turned, k, v)
    with pytest.raises(BindError, match="lies in memory as no kernel reads it"):
        bundle["sums"](numbers(4, 8).numpy()[:, ::-1])


def test_what_does_not_fit_is_refused_by_name(bundle: Bundle) -> None:
    q, k, v = inputs_of("attention", 3, 5, 0)
    attention = bundle["attention"]
    with pytest.raises(BindError, match="attention takes %q, %k, %v; 2 inputs given"):
        attention(q, k)
    with pytest.raises(BindError, match="%k must have dtype f32, the input has f64"):
        attention(q, k.double(), v)
    with pytest.raises(BindError, match=r"dimension 3 of %v: .* must be 32"):
        attention(q, k, k)
    with pytest.raises(BindError, match="%q must be a NumPy array or a torch tensor, it is a list"):
        attention([1], k.numpy(), v.numpy())
    with pytest.raises(BindError, match="%v must be a torch tensor as others are"):
        attention(q, k, v.numpy())
    with pytest.raises(BindError, match="%q must be on the CPU, the input is on meta"):
        attention(q.to("meta"), k, v)
    with pytest.raises(BindError, match="must be dense"):
        bundle["sums"](torch.eye(3).to_sparse())
    with pytest.raises(BindError, match="byte order"):
        bundle["sums"](np.ones((2, 3), ">f4"))
    with pytest.raises(BundleError, match=r"nothing to sum over \(M = 0\)"):
        attention(q, k[:, :, :0], v[:, :, :0])
    with pytest.raises(BundleError, match="has no program 'atention'; it has: "):
        bundle["atention"]


def test_no_rows_give_no_rows(bundle: Bundle) -> None:
    q, *others = inputs_of("attention_2", 3, 5, 0)
    assert bundle["attention_2"](q[:, :, :0], *others)[0].shape == (1, 2, 0, 32)


def test_calls_from_threads_do_not_meet(bundle: Bundle) -> None:
    given = [inputs_of("attention", n, n + 3, n) for n in (1, 20, 30, 64)]
    want = [bundle["attention"](*x)[0] for x in given]
    wrong: list[int] = []

    def work(at: int) -> None:
        for turn in range(40):
            which = (at + turn) % len(given)
            if not torch.equal(bundle["attention"](*given[which])[0], want[which]):
                wrong.append(which)

    helpers = [threading.Thread(target=work, args=(at,)) for at in range(4)]
    for helper in helpers:
        helper.start()
    for helper in helpers:
        helper.join()
    assert not wrong


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_do_not_change_results(bundle: Bundle, count: int) -> None:
    given = inputs_of("attention_2", 37, 50, 0)
    want = bundle["attention_2"](*given)[0]
    threads.set_num_threads(count)
    assert torch.equal(bundle["attention_2"](*given)[0], want)


@given(st.lists(st.integers(1, 5), max_size=2), st.integers(1, 200), st.integers(1, 9))
def test_tables_are_those_of_the_runtime(outer: list[int], length: int, top: int) -> None:
    x = torch.randint(0, top, (*outer, length))
    turned = x.transpose(0, -2).contiguous().transpose(0, -2) if len(outer) > 1 else x
    for mine, other in zip(block_extremes(turned.numpy(), 64), torch_extremes(x), strict=True):
        assert np.array_equal(mine, other.numpy())
        assert mine.flags.c_contiguous, "kernels are told that tables lie so"


ALONE = """
import sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Forbidden())
import numpy as np
import tilewright
bundle = tilewright.load_bundle(sys.argv[1])
given = [np.load(path) for path in sys.argv[3:]]
np.save(sys.argv[2], bundle["attention"](*given)[0])
assert not {refused!r} & {{name.split(".")[0] for name in sys.modules}}
"""


def test_a_process_without_compiler_parser_and_torch(bundle: Bundle, tmp_path: Path) -> None:
    given = inputs_of("attention", 20, 33, 5)
    paths = [tmp_path / f"{at}.npy" for at in range(3)]
    for path, x in zip(paths, given, strict=True):
        np.save(path, x.numpy())
    refused = {"mlir", "torch_mlir", "numba", "llvmlite", "lark", "triton", "torch"}
    code = ALONE.format(refused=refused)
    out = tmp_path / "out.npy"
    arguments = [sys.executable, "-c", code, str(bundle.path), str(out), *map(str, paths)]
    subprocess.run(arguments, check=True)
    assert np.array_equal(np.load(out), bundle["attention"](*given)[0].numpy())


def test_other_kinds_of_machines_make_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="made on such a machine"):
        Exporter(named_target("aarch64"), "1")
    monkeypatch.setattr(export.platform, "machine", lambda: "aarch64")
    Exporter(named_target("aarch64"), "1")
