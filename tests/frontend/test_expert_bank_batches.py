"""Adapter ids belong to whole sequences: ids that do not fit the batch are refused."""

from __future__ import annotations

import pytest
import torch

from tests.frontend.expert_models import VOCABULARY, adapter, layers_of, logits, make
from tilewright.frontend.experts.bank import ExpertBank
from tilewright.frontend.experts.routing import AdapterIds
from tilewright.ir.errors import ExpertError

pytest.importorskip("transformers")
NAMES = ("a", "b", None)


@pytest.fixture(scope="module")
def bank() -> tuple[ExpertBank, torch.nn.Module]:
    model = make("Qwen3Moe")
    made = ExpertBank(model, slots=2, experts_per_slot=8)
    for seed, name in enumerate(("a", "b")):
        made.load(name, adapter(model, seed + 1, {0: 8, 1: 8}), share=1.0)
    return made, model


def _with(
    bank: ExpertBank, model: torch.nn.Module, ids: torch.Tensor, adapters: AdapterIds
) -> torch.Tensor:
    with bank.adapters(adapters):
        return logits(model, ids)


def _tokens(sequences: int, length: int) -> torch.Tensor:
    count = sequences * length
    return (torch.arange(count) * 7 % VOCABULARY).reshape(sequences, length)


@pytest.mark.parametrize("sequences", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("length", [1, 2, 6])
def test_a_sequence_is_never_split(
    bank: tuple[ExpertBank, torch.nn.Module], sequences: int, length: int
) -> None:
    made, model = bank
    ids = _tokens(sequences, length)
    alone = {name: _with(made, model, ids, name) for name in NAMES}
    for count in range(1, sequences * length + 1):
        names = [NAMES[i % 3] for i in range(count)]
        if count not in (1, sequences * length) and sequences % count:
            with pytest.raises(ExpertError, match=f"{count} adapter ids for {sequences} seq"):
                _with(made, model, ids, names)
            continue
        out = _with(made, model, ids, names)
        if count <= sequences:  # else ids of tokens: what a token sees is of other adapters
            for row, found in enumerate(out):
                right = alone[names[row * count // sequences]][row]
                torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)


def test_nor_in_a_compiled_model(bank: tuple[ExpertBank, torch.nn.Module]) -> None:
    made, model = bank
    ids, compiled = _tokens(3, 4), torch.compile(model, backend="eager")
    out = _with(made, compiled, ids, NAMES)
    right = _with(made, model, ids, NAMES)
    torch.testing.assert_close(out, right, atol=1e-5, rtol=1e-5)
    with pytest.raises(ExpertError, match="6 adapter ids for 3 sequences, 12 tokens"):
        _with(made, compiled, ids, NAMES * 2)


def test_beams_have_the_adapter_of_their_prompt(
    bank: tuple[ExpertBank, torch.nn.Module],
) -> None:
    made, model = bank
    ids = _tokens(3, 4)
    settings = {"num_beams": 2, "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        with made.adapters(["a", "b", None]):
            together = model.generate(ids, **settings)  # type: ignore[operator]
        for row, name in enumerate(NAMES):
            with made.adapters(name):
                one = model.generate(ids[row : row + 1], **settings)  # type: ignore[operator]
            assert together[row].tolist() == one[0].tolist()


def test_a_part_called_alone_has_no_batch(bank: tuple[ExpertBank, torch.nn.Module]) -> None:
    """The batch of a call is forgotten after it, also when it failed."""
    made, model = bank
    layer = layers_of(model)[0]
    x, ids, weights = torch.randn(12, 32), torch.zeros(12, 2).long(), torch.rand(12, 2)
    with torch.no_grad(), made.adapters(["a", "b", None]):
        logits(model, _tokens(3, 2))
        layer(x, ids, weights)  # 3 ids for 12 tokens
        with pytest.raises(ExpertError):
            logits(model, _tokens(4, 3))
        layer(x, ids, weights)
