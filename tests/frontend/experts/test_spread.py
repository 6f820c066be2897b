"""Hugging Face models: their routing recorded, their experts spread over ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from tests.frontend.experts.ranks import run_ranks
from tests.frontend.experts.spread_ranks import EXPERTS, LAYERS, make_model, prompt, run_spread
from tilewright.frontend.experts.trace import record_routing
from tilewright.ir.errors import DataError, UnsupportedError


def test_a_model_spread_over_two_ranks_gives_what_it_gave(tmp_path: Path) -> None:
    found = run_ranks(tmp_path, 2, run_spread)
    whole = sum(p.numel() for p in make_model().parameters() if p.ndim == 3)
    for rank in found:
        torch.testing.assert_close(rank["logits"], rank["before"], atol=2e-5, rtol=0)
        assert "a placement of 2 layers on 2 devices, but the model has 3" in rank["refused"]
        assert rank["held"] == whole / 2


def test_what_the_routers_choose_is_recorded() -> None:
    model = make_model()
    wanted: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _, __, out: wanted.append(out[2]))
    with torch.no_grad(), record_routing(model) as recorder:
        model(prompt(0))
        model(prompt(1))
    model(prompt(2))  # no longer
    trace = recorder.trace()
    assert (trace.tokens, trace.layers, trace.choices, trace.experts) == (14, LAYERS, 2, EXPERTS)
    for layer in range(LAYERS):
        expected = torch.cat([wanted[layer], wanted[LAYERS + layer]]).numpy()
        assert np.array_equal(trace.ids[:, layer], expected)


@pytest.mark.parametrize("name", ["Mixtral", "Olmoe", "GptOss"])
def test_other_models_are_recorded(name: str) -> None:
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_experts_per_tok": 2,
        "pad_token_id": 0,
        "head_dim": 8,
        ("num_experts" if name == "Olmoe" else "num_local_experts"): 4,
    }
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad(), record_routing(model) as recorder:
        model(torch.arange(6)[None])
    trace = recorder.trace()
    assert (trace.tokens, trace.layers, trace.choices, trace.experts) == (6, 2, 2, 4)
    assert all(len(set(choices)) == 2 for choices in trace.ids.reshape(-1, 2).tolist())


def test_what_cannot_be_recorded() -> None:
    with (
        pytest.raises(UnsupportedError, match="has 0 such layers"),
        record_routing(nn.Linear(2, 2)),
    ):
        pass
    with record_routing(make_model()) as recorder:
        pass
    with pytest.raises(DataError, match="nothing was recorded"):
        recorder.trace()
