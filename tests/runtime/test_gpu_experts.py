"""What calls of a layer of experts on a GPU keep for those like them, with a driver that only says
that it ran."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

from tests.runtime.fake_gpu import FakeDriver, fake_gpu
from tilewright.runtime.experts import ExpertsForm, Product, Rerouting, experts_forward
from tilewright.runtime.experts.gpu_grouped import Layer, layer_for
from tilewright.runtime.quantized.tensor import QuantizedTensor

pytest.importorskip("triton")
EXPERTS, HIDDEN, INNER = 16, 32, 16


@pytest.fixture(scope="module")
def driver() -> Iterator[FakeDriver]:
    with fake_gpu() as found:
        found.runs = False
        yield found


def weights() -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    shapes = (EXPERTS, 2 * INNER, HIDDEN), (EXPERTS, HIDDEN, INNER)
    first, down = (torch.randn(*shape, generator=made).bfloat16() for shape in shapes)
    return first, down


def form_of(packed: bool) -> ExpertsForm:
    first, down = weights()
    if packed:
        both = (QuantizedTensor.from_float(w.float(), "u4", 16) for w in (first, down))
        return ExpertsForm((Product(next(both)),), Product(next(both)))
    return ExpertsForm((Product(first),), Product(down))


def rows(tokens: int, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, ...]:
    ids = torch.arange(2 * tokens).view(tokens, 2) % EXPERTS
    return torch.ones(tokens, HIDDEN).to(dtype), ids, torch.ones(tokens, 2)


def layer(form: ExpertsForm, *given: torch.Tensor) -> Layer:
    x, ids, chosen = given
    found = layer_for(form, x, ids, chosen)
    assert found is not None
    return found


@pytest.mark.parametrize("packed", [False, True])
def test_calls_that_are_alike_look_nothing_up(driver: FakeDriver, packed: bool) -> None:
    """Neither the number of tokens nor values decide; dtypes, and what blocks depend on, do."""
    form = form_of(packed)
    one = layer(form, *rows(1))
    assert layer(form, *rows(3)) is one and len(form.prepared) == 1
    x, ids, chosen = rows(1)
    others = [
        rows(1, torch.float32),
        (x, ids.int(), chosen),
        (x, ids, chosen.bfloat16()),
        rows(40),  # more choices than one work item sorts
        rows(400),  # larger blocks
        (x, ids[:, :1], chosen[:, :1]),
    ]
    found = [one, *(layer(form, *other) for other in others)]
    assert len({id(each) for each in found}) == len(found) == len(form.prepared)
    assert layer(form, *rows(400)).planner.rows > one.planner.rows
    adapters = Rerouting(torch.zeros(1).int(), torch.zeros(1, 4).int())
    assert layer_for(form, *rows(1), adapters) is not one


def test_a_call_is_four_launches(driver: FakeDriver) -> None:
    for packed in (False, True):
        form, given = form_of(packed), rows(2)
        experts_forward(form, *given)
        before = len(driver.launches)
        assert experts_forward(form, *given).shape == (2, HIDDEN)
        assert len(driver.launches) == before + 4


def test_weights_that_move_are_looked_up_again(driver: FakeDriver) -> None:
    form, given = form_of(False), rows(1)
    layer(form, *rows(40))
    one = layer(form, *given)
    first = form.first[0].weight
    assert isinstance(first, torch.Tensor)
    first.add_(1)
    assert layer(form, *given) is one  # values are read where they lie
    first.data = first.data.clone()
    other = layer(form, *given)
    assert other is not one and len(form.prepared) == 1  # nothing keeps the old ones
    experts_forward(form, *given)
    addresses = {value for launch in driver.launches[-4:] for value in launch.values}
    assert first.data_ptr() in addresses
    form.down.weight.data = form.down.weight.data.float()  # type: ignore[union-attr]
    assert layer(form, *given) is not other


def test_what_is_kept_goes_with_the_form(driver: FakeDriver) -> None:
    """At once: weights are most of a GPU's memory."""
    for packed in (False, True):
        form = form_of(packed)
        experts_forward(form, *rows(1))
        gone = weakref.ref(form)
        gc.disable()
        try:
            del form
            assert gone() is None
        finally:
            gc.enable()
