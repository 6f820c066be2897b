"""The adapters' demo: equal where it is, and a failure where it is not."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

pytest.importorskip("transformers")

from tilewright.bench import adapters_demo
from tilewright.bench.adapters_demo import ERROR_LIMIT, Row, run
from tilewright.bench.adapters_model import ADAPTERS, SMALL, build, merge, task_text, write_adapter
from tilewright.bench.adapters_output import show_adapters
from tilewright.bench.records import Record

pytestmark = pytest.mark.usefixtures("two_threads")
GOOD = Row("law", 2, 3, 1, 12, 48, 0.0, 1e-6, 1e-6, 8, 8, 5)


@pytest.fixture(scope="module")
def record() -> Record:
    return run(SMALL, steps=5, rounds=2)


def shown(record: Record) -> str:
    stream = io.StringIO()
    show_adapters(record, Console(file=stream))
    return stream.getvalue()


def test_every_sequence_is_its_merged_model_bit_for_bit(record: Record) -> None:
    details = json.loads(record.to_json())["details"]
    assert details["equal"]
    assert [row["name"] for row in details["rows"]] == ["base", *ADAPTERS]
    assert sum(row["sequences"] for row in details["rows"]) == len(details["batch"])
    for row in details["rows"]:
        assert row["difference"] == 0.0  # the same kernels on the same rows
        assert row["equal_tokens"] == row["tokens"] == 5 * row["sequences"]
        assert 0 < row["torch_error"] < 1e-4
        assert (row["experts"] > 0) == (row["name"] != "base") == (row["unlike_base"] > 0)
    assert details["mapped_bytes"] < details["merged_bytes"]
    assert details["experts_read"]["adapters"] >= details["experts_read"]["base"] > 0
    assert record.quantities[0].details.keys() == {"adapters", "base", "merged"}
    text = shown(record)
    assert "bit for bit" in text and "NOT EQUAL" not in text and "poems" in text


def test_another_merged_model_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any, path: Path) -> Any:
        merge(model, path)
        if path.stem == "math":
            model.model.layers[1].mlp.experts.down_proj.mul_(1.01)
        return model

    monkeypatch.setattr(adapters_demo, "merge", wrong)
    result = CliRunner().invoke(adapters_demo.app, ["--quick", "--steps", "2", "--rounds", "1"])
    assert result.exit_code == 1
    assert "NOT EQUAL to the merged model: math\n" in result.stdout


@pytest.mark.parametrize(
    "changes",
    [
        {"equal_tokens": 7},
        {"error": 1.01e-6 * ERROR_LIMIT},
        {"difference": 1.01e-6 * (1 + ERROR_LIMIT)},
        {"error": float("nan")},
        {"difference": float("nan")},
    ],
)
def test_what_is_not_equal(changes: dict[str, float]) -> None:
    assert GOOD.equal
    assert replace(GOOD, error=1e-6 * ERROR_LIMIT, difference=1e-6).equal
    assert not replace(GOOD, **changes).equal  # type: ignore[arg-type]


def test_only_rounding_is_not_said_to_be_the_same_bits(record: Record) -> None:
    rows = [dict(row) for row in record.details["rows"]]
    rows[1]["difference"] = 1e-7
    text = shown(replace(record, details={**record.details, "rows": rows}))
    assert "not bit for bit" in text and "1.0e-07" in text


def test_an_adapter_is_some_experts_of_some_layers(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model, path = build(SMALL), tmp_path / "law.safetensors"
    with torch.inference_mode():
        write_adapter(model, task_text(0), path, 1, SMALL)
    tensors = load_file(path)
    assert {key.split(".")[2] for key in tensors} == {"0"}  # one of two layers is left out
    experts = {key.split(".")[5] for key in tensors}
    assert 0 < len(experts) <= SMALL.per_slot and len(tensors) == 3 * len(experts)
    before = model.model.layers[0].mlp.experts
    for e in map(int, experts):
        data = tensors[f"model.layers.0.mlp.experts.{e}.up_proj.weight"]
        assert data.shape == (SMALL.intermediate, SMALL.hidden)
        old = before.gate_up_proj[e, SMALL.intermediate :]
        assert data.std() == pytest.approx(float(old.detach().std()), rel=0.2)
        assert not torch.allclose(data, old)
