"""Levels of determinism: what is promised holds bit by bit, what cannot be kept is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright
from tilewright.ir.dtypes import F32
from tilewright.ir.errors import DeterminismError, SettingError
from tilewright.ir.packing import Packing
from tilewright.runtime.determinism import NAMES, in_force, level, using
from tilewright.runtime.lowbit.form import LinearBuilder, LinearForm
from tilewright.runtime.lowbit.linear import flat_parts, weight_form
from tilewright.runtime.program import Program
from tilewright.runtime.settings import settings as read_settings
from tilewright.runtime.tuned import TUNED

pytest.importorskip("llvmlite")

H, D, E, LONGEST = 4, 24, 20, 150


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit by bit (no NaN here)."""
    whole = torch.int32 if a.dtype == torch.float32 else torch.int16
    return a.shape == b.shape and torch.equal(a.view(whole), b.view(whole))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ---- levels by name


def test_levels_promise_the_ones_before() -> None:
    assert [level(n).rank for n in NAMES[:-1]] == [0, 1, 2, 3]
    fixed = level(None, reproducible=True)
    assert all(fixed.promises(n) for n in NAMES) and not level("run").promises("threads")
    for wrong in ("reproducible", "threads ", "all"):
        with pytest.raises(SettingError, match="'run', 'threads' and 'batch'"):
            level(wrong)


def test_what_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_force() == level("")
    with tilewright.deterministic("batch"):
        assert in_force() == level("batch") == level()
        with tilewright.deterministic("run"):
            assert in_force() == level("run")
        with pytest.raises(ZeroDivisionError), tilewright.deterministic(reproducible=True):
            raise ZeroDivisionError
        assert in_force() == level("batch")
    read_settings.cache_clear()
    try:
        monkeypatch.setenv("TILEWRIGHT_DETERMINISTIC", "threads")
        assert read_settings().deterministic == "threads"
        read_settings.cache_clear()
        monkeypatch.setenv("TILEWRIGHT_DETERMINISTIC", "thread")
        with pytest.raises(SettingError, match="run, threads, batch, reproducible"):
            read_settings()
    finally:
        monkeypatch.delenv("TILEWRIGHT_DETERMINISTIC")
        read_settings.cache_clear()


# ---- attention


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: int, **how: Any) -> Any:
    """Rows whose first is at position ``first``: each sees the keys up to its own, but 7."""

    def seen(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (j <= i + start) & (j != 7)

    start = torch.tensor(first)
    return tilewright.attention(q, k, v, mask_mod=seen, enable_gqa=True, return_lse=True, **how)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [{"deterministic": "batch"}, {"reproducible": True}])
@settings(max_examples=8)
@given(seed=st.integers(0, 1 << 30), data=st.data())
def test_rows_of_attention_are_by_themselves(
    dtype: torch.dtype, how: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    """Some rows of some sequences, with longer keys behind: decoding gives what a prefill gave."""
    draw = torch.Generator().manual_seed(seed)
    keys = data.draw(st.integers(9, LONGEST), "keys")
    q = torch.randn(3, H, keys, D, generator=draw).to(dtype)
    k = torch.randn(3, 2, LONGEST, D, generator=draw).to(dtype)
    v = torch.randn(3, 2, LONGEST, E, generator=draw).to(dtype)
    whole = attend(q, k[:, :, :keys].contiguous(), v[:, :, :keys].contiguous(), 0, **how)
    first = data.draw(st.integers(0, keys - 1), "first")
    count = data.draw(st.integers(1, min(19, keys - first)), "count")
    order = data.draw(st.permutations(range(3)), "order")[: data.draw(st.integers(1, 3), "batch")]
    part = q[order][:, :, first : first + count]
    found = attend(part, k[order], v[order], first, **how)
    for a, b in zip(found, whole, strict=True):
        assert same(a, b[order][:, :, first : first + count]), (keys, first, count, order)


@pytest.mark.parametrize("how", [{"deterministic": "threads"}, {}, {"reproducible": True}])
def test_threads_change_no_bits_of_attention(
    how: dict[str, Any], threads: Callable[[int], None]
) -> None:
    draw = torch.Generator().manual_seed(1)
    q, k = (torch.randn(2, n, 77, D, generator=draw) for n in (H, 2))
    found = []
    for count in (1, 2, 3, 1):
        threads(count)
        found.append(attend(q, k, k, 0, **how)[0])
    assert all(same(x, found[0]) for x in found)


def test_sequences_one_after_the_other_are_refused() -> None:
    x, at = torch.randn(9, H, D), torch.tensor([0, 4, 9], dtype=torch.int32)
    given = {"cu_seqlens_q": at, "cu_seqlens_k": at}
    with pytest.raises(DeterminismError, match="seqused_k"):
        tilewright.attention(x, x, x, deterministic="batch", **given)
    y = tilewright.attention(x, x, x, deterministic="threads", **given)
    assert torch.isfinite(y).all()


# ---- products with quantised weights


@cache
def weight(dtype: str) -> tilewright.QuantizedTensor:
    draw = torch.Generator().manual_seed(2)
    return tilewright.QuantizedTensor.from_float(
        torch.randn(37, 96, generator=draw), dtype, group=32
    )


@pytest.mark.parametrize(("dtype", "activation"), [("u4", "int8"), ("f6e3m2", "float")])
@settings(max_examples=5)
@given(seed=st.integers(0, 1 << 30), rows=st.integers(2, 40), kept=st.integers(1, 5))
def test_rows_of_low_bit_products_are_by_themselves(
    dtype: str, activation: str, seed: int, rows: int, kept: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 96, generator=draw)
    order = torch.randperm(rows, generator=draw)[:kept]

    def times(x: torch.Tensor, **how: Any) -> torch.Tensor:
        return tilewright.linear(x, weight(dtype), activation=activation, epilogue="silu", **how)

    for how in ({"deterministic": "batch"}, {"reproducible": True}):
        assert same(times(x[order], **how), times(x, **how)[order])


def test_low_bit_products_by_all_back_ends() -> None:
    """MLIR for vectors of two widths, and the program for one lane: packed each their way."""
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(3))
    found = []
    for lanes, backend, target in (
        (16, "mlir", "host:16"),
        (8, "mlir", "host:8"),
        (1, "interpreter", "scalar"),
    ):
        packing = weight("u4").layout
        packed = Packing(packing.order, packing.planes, lanes, packing.group)
        w = weight("u4").with_layout(packed)
        form = LinearForm((weight_form(w, None),), 96, False, F32, None, "")
        module = LinearBuilder(form).module()
        program = Program(module, backend=backend, target=target, reproducible=True)
        found.append(program(x, *flat_parts(w))[0][:, :37].contiguous())
    assert all(same(y, found[0]) for y in found)


# ---- compiled functions


class Block(torch.nn.Module):
    """What is left of a layer without attention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.scale = torch.nn.Parameter(torch.randn(48))
        self.enter = torch.nn.Linear(48, 48)
        self.up, self.down = torch.nn.Linear(48, 70), torch.nn.Linear(70, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)  # from here on rows have a width that is known
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.scale
        y = self.up(normed)
        return x + self.down(torch.nn.functional.silu(y))


@pytest.mark.parametrize("how", [{"deterministic": "batch"}, {"reproducible": True}])
def test_rows_of_a_compiled_module_are_by_themselves(
    how: dict[str, Any], threads: Callable[[int], None]
) -> None:
    model = tilewright.compile(Block(), **how)
    limit = torch._dynamo.config.patch(recompile_limit=64)  # threads and sizes of 1 have graphs
    x = torch.randn(3, 29, 48, generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), limit:
        whole = model(x)
        assert same(model(x[1:2]), whole[1:2])
        assert same(model(x[2:, 5:19].contiguous()), whole[2:, 5:19])
        assert same(model(x.flip(0)), whole.flip(0))
        for count in (1, 3):
            threads(count)
            assert same(model(x), whole)


def test_a_model_of_hugging_face_decodes_as_it_prefills() -> None:
    """Rotations by cosines that torch computes, norms, caches, a mask: one token after another
    gives the logits of all tokens at once, beside whatever sequences."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=160,  # heads of 80 numbers: halves of 40 change places
        intermediate_size=72,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=50,
    )
    torch.manual_seed(3)
    plain = transformers.LlamaForCausalLM(config).eval()
    model = tilewright.compile(plain, deterministic="batch")
    ids = torch.randint(0, 50, (3, 7))
    with torch.no_grad():
        made = model.generate(
            ids[1:2],
            max_new_tokens=4,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        beside = torch.cat([made.sequences, made.sequences.flip(1)])
        whole = model(beside, use_cache=False).logits
    torch.testing.assert_close(whole, plain(beside).logits, rtol=1e-4, atol=1e-5)
    for at, logits in enumerate(made.logits, 6):
        assert same(logits[0], whole[0, at])


def test_what_torch_computes_of_single_numbers_and_integers_keeps_levels() -> None:
    layer = torch.nn.Linear(8, 37)

    def function(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = layer(x) * at.cumsum(0).unsqueeze(1)
        out = torch.nn.functional.dropout(torch.nn.functional.gelu(out), 0.3, training=False)
        return torch.nn.functional.layer_norm(out.cos(), (37,))

    x, at = torch.randn(9, 8), torch.ones(9, dtype=torch.int64)
    with torch.no_grad():
        kept = tilewright.compile(function, deterministic="batch")
        whole = kept(x, at)
        torch.testing.assert_close(whole, function(x, at))
        for rows in range(1, 9):
            assert same(kept(x[:rows], at[:rows]), whole[:rows])
        with pytest.raises(DeterminismError, match="gelu"):
            tilewright.compile(function, reproducible=True)(x, at)


REFUSED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], torch.dtype]] = {
    "inplace, by place": (lambda x: x + torch.nn.functional.hardswish(x * 2, True), torch.bfloat16),
    "inplace, by name": (lambda x: x + torch.nn.functional.silu(x, inplace=True), torch.float32),
    "two tensors": (lambda x: torch.pow(x, x), torch.float32),
    "two rounded at once": (lambda x: torch.sub(x, x * 3.3, alpha=0.3), torch.bfloat16),
    "in place, two at once": (lambda x: (x * 1.7).add_(x, alpha=0.3), torch.bfloat16),
    "complex products": (lambda x: x * (x + 1.3), torch.complex64),
    "a number to the power of a tensor": (lambda x: 2.0**x, torch.float32),
}


@pytest.mark.parametrize("case", REFUSED)
def test_functions_of_more_than_one_number_are_refused(case: str) -> None:
    function, dtype = REFUSED[case]
    with torch.no_grad(), pytest.raises(DeterminismError, match="would stay with torch"):
        tilewright.compile(function, deterministic="batch")(torch.ones(3, 700).to(dtype))


def test_functions_of_what_requires_gradients_are_refused() -> None:
    x = torch.ones(3, 70, requires_grad=True)
    with pytest.raises(DeterminismError, match="gradients"):
        tilewright.compile(lambda x: torch.exp(x) + x, deterministic="batch")(x)


def test_what_torch_would_compute_is_refused() -> None:
    def narrow(x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x.bfloat16(), 1).float() * 2

    x = torch.randn(5, 8)
    with torch.no_grad():
        with pytest.raises(DeterminismError, match=r"cumsum at .*test_determinism\.py"):
            tilewright.compile(narrow, deterministic="threads")(x)
        torch._dynamo.reset()
        assert torch.equal(tilewright.compile(narrow, deterministic="run")(x), narrow(x))
        torch._dynamo.reset()
        moved = tilewright.compile(lambda x: torch.cat([x, -x])[1:] + 1, deterministic="batch")
        assert torch.equal(moved(x), torch.cat([x, -x])[1:] + 1)


def test_calls_that_dynamo_does_not_capture_are_refused(threads: Callable[[int], None]) -> None:
    """Past its limit Dynamo would run the function as torch does, without a word."""

    def broken(x: torch.Tensor) -> torch.Tensor:
        print("a graph break")
        return x + 1

    model, x = (
        tilewright.compile(torch.nn.Linear(16, 8), deterministic="threads"),
        torch.ones(3, 16),
    )
    with torch.no_grad():
        with pytest.raises(DeterminismError, match="one graph"):
            tilewright.compile(broken, deterministic="batch")(x)
        with torch._dynamo.config.patch(recompile_limit=1):
            model(x)
            threads(torch.get_num_threads() + 1)
            with pytest.raises(DeterminismError, match="recompile_limit"):
                model(x)


def test_inputs_that_would_stay_with_torch_are_refused() -> None:
    model = tilewright.compile(torch.nn.Linear(16, 8), deterministic="threads")
    with pytest.raises(DeterminismError, match="gradients"):
        model(torch.randn(3, 16, requires_grad=True))


# ---- programs


SUM = """
graph f<N>(%x: tensor<N x 8 x f32>) {
  %y = tensor.reduce %x {kind = "sum", axis = 1}
  return %y
}
"""


def test_tuned_schedules_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database changes while programs run: what keeps a level does not look."""

    class Database:
        any = True

        def __getattr__(self, name: str) -> Any:
            return getattr(TUNED, name)

        def of(self, key: str, gpu: bool) -> Any:
            raise LookupError(key)

    monkeypatch.setattr("tilewright.runtime.family.TUNED", Database())
    module, x = tilewright.parse(SUM), torch.randn(3, 8)
    with pytest.raises(LookupError):
        tilewright.Program(module)(x)
    for name in ("run", "threads", "batch"):
        tilewright.Program(module, deterministic=name)(x)


def test_a_report_says_the_level() -> None:
    module = tilewright.parse(SUM)
    with using(level("batch")):
        program = tilewright.Program(module)
    assert "deterministic: batch: a row has the same bits" in str(program.explain())
    assert "deterministic" not in str(tilewright.Program(module).explain())
