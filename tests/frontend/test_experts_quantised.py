"""``quantize`` packs the 3-D parameters of experts: results, plans, reports, state, refusals."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.frontend.huggingface_experts import dequantised, experts_module, routed, run
from tilewright import quantize
from tilewright.frontend.experts.weights import ExpertWeight, ExpertWeights
from tilewright.frontend.quantize.report import QuantizeReport
from tilewright.ir.errors import SettingError, UnsupportedError
from tilewright.runtime.quantized.tensor import QuantizedTensor

pytest.importorskip("transformers")

PLAN = {
    "*.experts.1.down_proj": "u8",
    "*.experts.down_proj": "u6",
    "*.experts.gate_up_proj": {"dtype": "u4", "group": 32},
}


class Holder(nn.Module):
    """Experts of any flags, with a layer that chooses them and one that does not."""

    def __init__(self, **flags: Any) -> None:
        super().__init__()
        self.experts = experts_module(sizes=(4, 24, 40), **flags)
        self.router = nn.Linear(40, 4)
        self.shared = nn.Linear(40, 40)

    def forward(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.experts(x, ids, weights)
        return result


def inputs(tokens: int = 9) -> tuple[torch.Tensor, ...]:
    made = torch.Generator().manual_seed(1)
    return torch.randn(tokens, 40, generator=made), *routed(tokens, 4, 3)


def reasons(report: QuantizeReport) -> dict[str, str]:
    return {row.name: row.reason for row in report.left_alone}


@pytest.mark.parametrize(("dtype", "error"), [("u8", 0.02), ("i6", 0.1), ("u4", 0.5)])
@pytest.mark.parametrize("activation", ["float", "int8"])
def test_results_stay_near(dtype: str, error: float, activation: str) -> None:
    model = Holder()
    wanted = run(model.experts, "batched_mm", *inputs())
    quantize(model, dtype, group=16, activation=activation)
    off = (model(*inputs()) - wanted).norm() / wanted.norm()
    assert off < error + 0.02


FLAGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no gate, transposed": {"has_gate": False, "is_transposed": True, "has_bias": True},
    "as gpt-oss": {
        "is_concatenated": False,
        "is_transposed": True,
        "has_bias": True,
        "gate": lambda self, y: (y[..., 1::2] + 1) * y[..., ::2] * torch.sigmoid(y[..., ::2]),
    },
    "strange": {"gate": lambda self, y: torch.sin(y[..., :24]) * y[..., 24:].square()},
}


@pytest.mark.parametrize("plan", [{}, {"*.2.down_proj": "i5", "re:.*[01].gate_up_proj": "nf4"}])
@pytest.mark.parametrize("flags", FLAGS.values(), ids=list(FLAGS))
def test_any_layout_eager_compiled_and_with_gradients(flags: Any, plan: Any) -> None:
    model = Holder(**flags)
    original = copy.deepcopy(model)
    quantize(model, "u4", group=32, plan=plan)
    several = isinstance(model.experts.down_proj_packed, ExpertWeights)
    assert several == bool(plan)
    reference = dequantised(model, original)
    x, ids, weights = inputs()
    wanted = run(reference.experts, "batched_mm", x, ids, weights).detach()
    with torch.no_grad():
        torch.testing.assert_close(model(x, ids, weights), wanted, rtol=1e-4, atol=1e-4)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, ids, weights), wanted, rtol=1e-4, atol=1e-4)
    grads = []
    for module in (model, reference):
        given, routing = x.clone().requires_grad_(), weights.clone().requires_grad_()
        module(given, ids, routing).square().sum().backward()
        biases = [p.grad for n, p in module.named_parameters() if n.endswith("proj_bias")]
        grads.append([given.grad, routing.grad, *biases])
    for ours, theirs in zip(grads[0], grads[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)


def test_packed_parameters_hold_what_from_float_gives() -> None:
    model = Holder(is_transposed=True)
    down = model.experts.down_proj.detach().mT.clone()
    gate_up = model.experts.gate_up_proj.detach().mT.clone()
    quantize(model, "u4", group=16, plan={"*.down_proj": {"dtype": "i5", "method": "mse"}})
    assert not dict(model.experts.named_parameters())
    holder = model.experts.down_proj_packed
    assert isinstance(holder, ExpertWeight) and holder.tensor.shape == (4, 40, 24)
    wanted = QuantizedTensor.from_float(down, "i5", 16, method="mse")
    assert torch.equal(holder.tensor.codes(), wanted.codes())
    packed = model.experts.gate_up_proj_packed.tensor
    assert packed.shape == (4, 2, 24, 40)
    wanted = QuantizedTensor.from_float(gate_up, "u4", 16)
    assert torch.equal(packed.codes().flatten(1, 2), wanted.codes())
    one = packed[2]
    assert one.words.data_ptr() == packed.words[2].data_ptr()
    assert torch.equal(one.dequantize(), packed.dequantize()[2])


def test_the_report_counts_every_byte_and_names_what_stays() -> None:
    model = Holder(has_bias=True)
    before = model.experts.gate_up_proj.nbytes + model.experts.down_proj.nbytes
    report = quantize(model, None, plan={**PLAN, "*.experts.9.down_proj": "u2", "none.*": "u2"})
    kept = [b for n, b in model.experts.named_buffers() if "_packed" in n]
    assert report.bytes_before == before
    assert report.bytes_after == sum(b.nbytes for b in kept)
    assert report.bytes_saved > 0.5 * before
    assert report.unused_patterns == ["*.experts.9.down_proj", "none.*"]
    first, second = report.quantized
    assert (first.name, first.shape) == ("experts.gate_up_proj", (4, 48, 40))
    assert first.settings == "u4 group 32"
    assert second.settings == "3 x u6, 1 x u8, group 64"
    found = reasons(report)
    assert found["experts.gate_up_proj_bias"] == found["experts.down_proj_bias"]
    assert "no weight of a product" in found["experts.down_proj_bias"]
    assert found["router"] == found["shared"] == "the default leaves it"
    assert "experts.gate_up_proj" in str(report)
    again = quantize(model, "u4")
    assert reasons(again)["experts.down_proj"] == "already quantised"


def test_what_chooses_experts_stays_unless_it_is_named() -> None:
    model = Holder()
    report = quantize(model, "u8", group=8)
    assert type(model.router) is nn.Linear and "chooses experts" in reasons(report)["router"]
    assert type(model.shared) is not nn.Linear
    model = Holder()
    quantize(model, "u8", group=8, plan={"router": "u8"})
    assert type(model.router) is not nn.Linear


@pytest.mark.parametrize("plan", [{}, {"*.3.down_proj": "u8"}])
def test_gptq_becomes_mse_and_is_told(plan: dict[str, Any]) -> None:
    model, other = Holder(), Holder()
    other.load_state_dict(model.state_dict())
    report = quantize(
        model, None, plan={**plan, "*_proj": {"method": "gptq"}}, calibration=[inputs()]
    )
    assert any("'mse' where 'gptq'" in note for note in report.notes)
    assert "'mse' where 'gptq'" in str(report)
    quantize(other, None, plan={**plan, "*_proj": {"method": "mse"}})
    assert torch.equal(model(*inputs()), other(*inputs()))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"dtype": "u4", "method": "gptq"}, "calibration"),
        ({"dtype": None, "plan": {"experts.1.down_proj": "u4"}}, "but not expert 0"),
        ({"dtype": "u4", "plan": {"experts.3.down_proj": None}}, "but not expert 3"),
        ({"dtype": "u4", "plan": {"*.3.down_proj": {"activation": "int8"}}}, "one activation"),
        ({"dtype": "u4", "plan": {"*.experts.down_proj": "q4"}}, "q4"),
    ],
)
def test_a_refused_call_changes_nothing(arguments: dict[str, Any], says: str) -> None:
    model = Holder()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SettingError, match=says):
        quantize(model, **arguments)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[name], part) for name, part in before.items())
    assert model.experts.config._experts_implementation == "batched_mm"


class Fused(nn.Module):
    """3-D parameters that only the module's own forward knows."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(2, 4, 4))


def test_no_parameter_is_left_in_silence() -> None:
    model = nn.ModuleDict(
        {
            name: Holder()
            for name in (
                "broken",
                "filtered",
                "planned",
                "whole",
                "replaced",
                "shared",
                "meta",
                "banked",
            )
        }
    )
    model["own"] = Fused()
    with torch.no_grad():
        model["broken"].experts.down_proj[1, 2, 3] = float("nan")
    model["replaced"].experts.forward = lambda *_: None
    model["shared"].experts.down_proj = model["whole"].experts.down_proj
    model["meta"].experts.to("meta")
    model["banked"].experts._tilewright_bank = object()
    report = quantize(
        model,
        "u4",
        plan={"planned.experts.*": None},
        filter=lambda module, name: not name.startswith("filtered"),
    )
    found = reasons(report)
    for name, says in {
        "broken.experts.down_proj": "must be finite",
        "filtered.experts.down_proj": "the filter leaves it",
        "planned.experts.gate_up_proj": "the plan's 'planned.experts.*' leaves it",
        "replaced.experts.down_proj": "forward was replaced",
        "shared.experts.down_proj": "another module",
        "whole.experts.down_proj": "another module",
        "meta.experts.gate_up_proj": "meta device",
        "banked.experts.down_proj": "ExpertBank",
        "own": "not those of transformers' experts interface",
    }.items():
        assert says in found[name], name
    packed = {row.name for row in report.quantized if "experts" in row.name}
    assert packed == {f"{n}.experts.gate_up_proj" for n in ("broken", "whole", "shared")}
    x, ids, weights = inputs()
    mixed = model["whole"](x, ids, weights)  # gate and up packed, down as it was
    assert mixed.isfinite().all()


def test_other_implementations_say_what_is_wrong() -> None:
    model = Holder()
    quantize(model, "u4")
    for other in ("batched_mm", "grouped_mm"):
        with pytest.raises(UnsupportedError, match="set_experts_implementation"):
            run(model.experts, other, *inputs())


@pytest.mark.parametrize("plan", [{}, PLAN], ids=["one", "several"])
def test_state_copies_and_files_are_exact(plan: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    model, other = Holder(has_bias=True), Holder(has_bias=True)
    for each in (model, other):
        quantize(each, "u5", group=32, plan=plan)
    wanted = model(*inputs())
    assert not torch.equal(other(*inputs()), wanted)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(*inputs()), wanted)
    assert torch.equal(copy.deepcopy(model)(*inputs()), wanted)
    with torch.no_grad():
        for buffer in copy.deepcopy(model).buffers():
            buffer.zero_()
    assert torch.equal(model(*inputs()), wanted)
    third = Holder(has_bias=True)
    quantize(third, "u4", group=32)
    with pytest.raises(RuntimeError, match="dtype"):
        third.load_state_dict(model.state_dict(), strict=False)
    holder = model.experts.down_proj_packed
    again = pickle.loads(pickle.dumps(holder))
    assert [h.text for h in again.holders] == [h.text for h in holder.holders]


def test_converting_a_model_keeps_codes_and_scales() -> None:
    model = Holder(has_bias=True)
    quantize(model, "u8", group=16)
    wanted = model(*inputs())
    before = {name: part.clone() for name, part in model.experts.named_buffers()}
    model.to(torch.bfloat16)
    for name, part in model.experts.named_buffers():
        assert part.dtype == before[name].dtype and torch.equal(part, before[name])
    x, ids, weights = inputs()
    result = model(x.bfloat16(), ids, weights.bfloat16())
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), wanted, rtol=0.05, atol=0.5)
