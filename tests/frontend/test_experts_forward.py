"""``experts_forward`` against its meaning in f64: any layout, width, function and routing."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.frontend.huggingface_experts import routed
from tilewright.ir.errors import BindError, SettingError
from tilewright.runtime.experts import (
    ALL,
    FUNCTIONS,
    HALVES,
    PAIRS,
    ExpertsForm,
    Gate,
    Product,
    by_expert,
    experts_forward,
)
from tilewright.runtime.lowbit.reference import rounded_to_int8
from tilewright.runtime.quantized.tensor import QuantizedTensor

KINDS = ("float", "transposed", "one", "apart", "each")
WIDTHS = ("u4", "i8", "nf4")


@dataclass
class Case:
    """A form, and what it is made of as f64: gate and up apart, [E, 2, I, H] or [E, 1, I, H]."""

    form: ExpertsForm
    first: torch.Tensor
    first_bias: torch.Tensor
    down: torch.Tensor
    down_bias: torch.Tensor


def columns_to(columns: str, halves: torch.Tensor) -> torch.Tensor:
    """[E, 2, I, …] as [E, 2I, …] with these columns."""
    return (halves.transpose(1, 2) if columns == PAIRS else halves).flatten(1, 2)


def product(kind: str, columns: str, halves: torch.Tensor, bias: Any) -> tuple[Product, Any]:
    """A product of that kind, and its values as [E, 2, I, H] in f64."""
    given_bias = None if bias is None else columns_to(columns, bias)
    if kind in ("float", "transposed"):
        weight = columns_to(columns, halves).contiguous()
        turned = kind == "transposed"
        made = Product(weight.mT.contiguous() if turned else weight, given_bias, turned)
        return made, halves.double()
    apart = halves if kind == "apart" and halves.shape[1] == 2 else columns_to(columns, halves)
    if kind == "each":
        each = tuple(
            QuantizedTensor.from_float(w, WIDTHS[e % len(WIDTHS)], 32) for e, w in enumerate(apart)
        )
        values = torch.stack([q.dequantize() for q in each])
        made = Product(each, given_bias)
    else:
        q = QuantizedTensor.from_float(apart, "u4", 32)
        values, made = q.dequantize(), Product(q, given_bias)
    if values.dim() == 3:
        shape = (-1, halves.shape[1]) if columns == PAIRS else (halves.shape[1], -1)
        values = values.unflatten(1, shape)
        values = values.transpose(1, 2) if columns == PAIRS else values
    return made, values.double()


def case(
    sizes: tuple[int, int, int],
    kinds: tuple[str, str],
    columns: str,
    gate: Gate,
    biased: bool = False,
    dtype: torch.dtype = torch.float32,
    separate: bool = False,
) -> Case:
    experts, inner, hidden = sizes
    parts = 1 if columns == ALL else 2
    halves = torch.randn(experts, parts, inner, hidden).to(dtype)
    down = torch.randn(experts, 1, hidden, inner).to(dtype)
    bias = torch.randn(experts, parts, inner).to(dtype) if biased else None
    down_bias = torch.randn(experts, 1, hidden).to(dtype) if biased else None
    if separate:
        both = []
        for at in (0, 1):
            beside = None if bias is None else bias[:, at : at + 1]
            both.append(product(kinds[0], ALL, halves[:, at : at + 1], beside))
        first = tuple(each[0] for each in both)
        values = torch.cat([each[1] for each in both], dim=1)
    else:
        made, values = product(kinds[0], columns, halves, bias)
        first = (made,)
    second, down_values = product(kinds[1], ALL, down, down_bias)
    form = ExpertsForm(first, second, gate, columns)
    zero = torch.zeros(experts, parts, inner), torch.zeros(experts, 1, hidden)
    return Case(
        form,
        values,
        (zero[0] if bias is None else bias).double(),
        down_values[:, 0],
        (zero[1] if down_bias is None else down_bias).double()[:, 0],
    )


def meaning(made: Case, x: torch.Tensor, ids: Any, weights: Any) -> tuple[Any, Any]:
    """What comes out in f64, and a size to which errors of rounding are proportional: the same with
    magnitudes instead of numbers (Higham, Accuracy and Stability, 3.1)."""
    gate, wide = made.form.gate, x.double()
    out, size = torch.zeros_like(wide), torch.zeros_like(wide)
    for t, j in torch.cartesian_prod(torch.arange(len(x)), torch.arange(ids.shape[1])).tolist():
        e, w = int(ids[t, j]), weights[t, j].double()
        z = made.first[e] @ wide[t] + made.first_bias[e]
        m = made.first[e].abs() @ wide[t].abs() + made.first_bias[e].abs() + 1e-3
        grown = m[0].square() if gate.function == "relu2" else m[0]
        if len(z) == 2:
            h = gate.apply(z[0], z[1])
            grown = 2 * grown * (gate.alpha + 1) * (m[1] + gate.shift)
        else:
            h, grown = FUNCTIONS[gate.function](z[0]), 2 * grown
        out[t] += w * (made.down[e] @ h + made.down_bias[e])
        size[t] += w.abs() * (made.down[e].abs() @ grown + made.down_bias[e].abs())
    return out, size


def check(made: Case, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> None:
    with torch.no_grad():
        result = experts_forward(made.form, x, ids, weights)
    assert result.dtype == x.dtype and result.shape == x.shape
    wanted, size = meaning(made, x, ids, weights)
    terms = made.form.hidden + made.form.intermediate + 8
    eps = max(torch.finfo(torch.float32).eps * terms, 4 * torch.finfo(x.dtype).eps)
    weights_of = [p.weight for p in (*made.form.first, made.form.down)]
    if all(isinstance(w, torch.Tensor) and w.dtype == x.dtype == torch.float64 for w in weights_of):
        eps = 1e-12
    assert ((result.double() - wanted).abs() <= eps * size + 1e-30).all()


COLUMNS = st.sampled_from([HALVES, PAIRS, ALL])
CHOSEN = st.sampled_from([1, 2, 5])
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@settings(max_examples=40)
@given(
    st.tuples(*map(st.sampled_from, [(1, 2, 5), (1, 7, 16), (1, 6, 33)])),
    st.tuples(*(st.sampled_from(["float", "transposed"]) for _ in range(2))),
    COLUMNS,
    st.sampled_from(sorted(FUNCTIONS)),
    st.sampled_from(FLOATS),
    st.tuples(st.booleans(), st.booleans()),
    st.sampled_from([0, 1, 9]),
    CHOSEN,
)
def test_floats(
    sizes: tuple[int, int, int],
    kinds: tuple[str, str],
    columns: str,
    function: str,
    dtype: torch.dtype,
    extra: tuple[bool, bool],
    tokens: int,
    chosen: int,
) -> None:
    biased, separate = extra
    apart = separate and columns == HALVES
    made = case(sizes, kinds, columns, Gate(function), biased, dtype, apart)
    check(made, torch.randn(tokens, sizes[2]).to(dtype), *routed(tokens, sizes[0], chosen))


@settings(max_examples=12)
@given(
    st.tuples(st.sampled_from(["one", "apart", "each"]), st.sampled_from(KINDS)),
    COLUMNS,
    st.sampled_from(["silu", "relu2"]),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.sampled_from([0, 1, 9]),
    CHOSEN,
)
def test_quantised_weights(
    kinds: tuple[str, str],
    columns: str,
    function: str,
    dtype: torch.dtype,
    biased: bool,
    tokens: int,
    chosen: int,
) -> None:
    made = case((5, 20, 33), kinds, columns, Gate(function), biased)
    check(made, torch.randn(tokens, 33).to(dtype), *routed(tokens, 5, chosen))


@pytest.mark.parametrize("columns", [HALVES, PAIRS])
@pytest.mark.parametrize("kind", KINDS)
def test_gates_with_numbers(kind: str, columns: str) -> None:
    gate = Gate("silu", alpha=1.702, limit=1.0, shift=1.0)
    made = case((3, 20, 33), (kind, kind), columns, gate, biased=True)
    check(made, torch.randn(4, 33) * 3, *routed(4, 3, 2))
    plain = case((3, 20, 33), (kind, kind), columns, Gate("silu"), biased=True)
    check(plain, torch.randn(4, 33) * 3, *routed(4, 3, 2))


@pytest.mark.parametrize("columns", [HALVES, PAIRS])
@pytest.mark.parametrize("kind", KINDS)
def test_an_own_gate_gets_the_columns_as_the_form_says(kind: str, columns: str) -> None:
    gate = Gate("silu", limit=1.0)
    made = case((3, 20, 33), (kind, "float"), columns, gate)
    own = Gate(call=lambda y: gate.between(y, columns))
    form = ExpertsForm(made.form.first, made.form.down, own, columns)
    x, routing = torch.randn(7, 33), routed(7, 3, 2)
    torch.testing.assert_close(
        experts_forward(form, x, *routing), experts_forward(made.form, x, *routing)
    )


@pytest.mark.parametrize("kind", ["one", "apart", "each"])
def test_int8_activations_round_as_a_linear_layer_does(kind: str) -> None:
    made = case((3, 32, 64), (kind, kind), HALVES, Gate("silu"))
    first = Product(made.form.first[0].weight, activation="int8")
    down = Product(made.form.down.weight, activation="int8")
    form = ExpertsForm((first,), down)
    x, (ids, weights) = torch.randn(9, 64), routed(9, 3, 2)
    result = experts_forward(form, x, ids, weights)
    wanted = torch.zeros_like(x)
    for t, j in torch.cartesian_prod(torch.arange(9), torch.arange(2)).tolist():
        e = int(ids[t, j])
        row = x[t : t + 1]
        floats = kind == "each" and WIDTHS[e] == "nf4"  # no bytes
        taken = row if floats else rounded_to_int8(row, first.each[e])
        g, u = taken @ made.first[e, 0].float().T, taken @ made.first[e, 1].float().T
        h = torch.nn.functional.silu(g) * u
        h = h if floats else rounded_to_int8(h, down.each[e])
        wanted[t] += weights[t, j] * (h @ made.down[e].float().T)[0]
    exact, _ = meaning(made, x, ids, weights)
    off = (result - wanted).norm() / wanted.norm()
    assert off < 1e-3 < (result - exact).norm() / exact.norm()  # rounded, and as it should be


def test_experts_without_tokens_and_all_tokens_with_one() -> None:
    for kind in KINDS:
        made = case((5, 16, 32), (kind, kind), HALVES, Gate())
        x = torch.randn(6, 32)
        ids = torch.full((6, 2), 3)  # the same expert twice in every row
        check(made, x, ids, torch.rand(6, 2))


def test_the_order_of_k_does_not_choose_the_expert() -> None:
    made = case((5, 16, 32), ("apart", "one"), HALVES, Gate())
    x, (ids, weights) = torch.randn(6, 32), routed(6, 5, 4)
    once = experts_forward(made.form, x, ids, weights)
    turned = experts_forward(made.form, x, ids.flip(1), weights.flip(1))
    torch.testing.assert_close(once, turned)
    assert torch.equal(once, experts_forward(made.form, x, ids, weights))
    alone = torch.cat(
        [
            experts_forward(made.form, x[t : t + 1], ids[t : t + 1], weights[t : t + 1])
            for t in (0, 5)
        ]
    )
    torch.testing.assert_close(once[[0, 5]], alone)


def test_what_is_skipped_adds_nothing() -> None:
    made = case((3, 16, 32), ("apart", "float"), HALVES, Gate(), biased=True)
    form = ExpertsForm(made.form.first, made.form.down, Gate(), HALVES, skip=True)
    x, (ids, weights) = torch.randn(6, 32), routed(6, 3, 2)
    lost = ids.clone()
    lost[:, 1] = 3
    lost[2, 0] = 3
    kept = weights * (lost < 3)
    torch.testing.assert_close(
        experts_forward(form, x, lost, weights),
        experts_forward(made.form, x, lost.clamp(max=2), kept),
    )
    assert not experts_forward(form, x, torch.full_like(ids, 3), weights).any()


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (torch.tensor([[0, 3]]), "no expert 3"),
        (torch.tensor([[-1, 0]]), "no expert -1"),
        (torch.tensor([[0.0, 1.0]]), "must be integers"),
        (torch.tensor([[0], [1]]), r"integers \[1, k\]"),
        (torch.tensor([[0, 1, 2]]), "weights must be floats"),
    ],
)
def test_routing_that_does_not_fit_is_refused_before_anything_is_read(
    ids: torch.Tensor, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = case((3, 16, 32), ("one", "float"), HALVES, Gate())
    monkeypatch.setattr(by_expert, "run", lambda *_: pytest.fail("it was run"))
    with pytest.raises(BindError, match=says):
        experts_forward(made.form, torch.randn(1, 32), ids, torch.rand(1, 2))


@pytest.mark.parametrize("x", [torch.zeros(1, 31), torch.zeros(32), torch.zeros(1, 32).int()])
def test_inputs_that_do_not_fit(x: torch.Tensor) -> None:
    made = case((3, 16, 32), ("one", "float"), HALVES, Gate())
    with pytest.raises(BindError, match=r"x must be floats \[T, 32\]"):
        experts_forward(made.form, x, torch.zeros(1, 2).long(), torch.rand(1, 2))


def test_forms_that_do_not_fit() -> None:
    w = torch.zeros
    down = Product(w(3, 32, 16))
    with pytest.raises(BindError, match=r"\[E, 2I, H\]"):
        ExpertsForm((Product(w(3, 30, 32)),), down)
    with pytest.raises(BindError, match=r"\[E, 2I, H\]"):
        ExpertsForm((Product(w(2, 32, 32)),), down)
    with pytest.raises(BindError, match=r"\[E, I, H\]"):
        ExpertsForm((Product(w(3, 32, 32)),), down, columns=ALL)
    with pytest.raises(BindError, match="biases"):
        Product(w(3, 32, 16), torch.zeros(3, 16))
    with pytest.raises(BindError, match="one shape"):
        Product(tuple(QuantizedTensor.from_float(w(n, 8), "u4", 8) for n in (3, 4)))
    with pytest.raises(BindError, match="transpose"):
        Product(QuantizedTensor.from_float(w(3, 4, 8), "u4", 8), transposed=True)
    with pytest.raises(SettingError, match="'swish'"):
        Gate("swish")
    with pytest.raises(SettingError, match="alpha"):
        Gate("relu", alpha=2.0)


def test_slices_of_stacked_weights_share_their_memory() -> None:
    q = QuantizedTensor.from_float(torch.randn(3, 2, 16, 32), "u5", 16)
    form = Product(q)
    assert form.halves[1][0].words.data_ptr() == q.words[1, 0].data_ptr()
    assert torch.equal(form.halves[2][1].dequantize(), q.dequantize()[2, 1])
    assert form.each is form.each and form.halves is form.halves
    with pytest.raises(IndexError):
        q[3]
    assert copy.deepcopy(form).rows == 32
