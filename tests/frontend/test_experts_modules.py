"""Single modules of transformers' interface: every flag, function and gate; the ops behind them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.frontend.huggingface_experts import experts_module, routed, run
from tilewright.ir.errors import BindError
from tilewright.runtime.experts import Gate, Rerouting

pytest.importorskip("transformers")
from transformers.activations import ACT2FN

from tilewright.frontend.experts import huggingface
from tilewright.frontend.experts.gates import gate_of
from tilewright.frontend.experts.grouped import (
    experts_op,
    gradients_op,
    grouped_linear_op,
    route_op,
)
from tilewright.frontend.experts.parts import stack_of

huggingface.register_experts()


def clipped(self: Any, y: torch.Tensor) -> torch.Tensor:
    """A gate of our own kind: with a limit."""
    gate, up = y[..., ::2].clamp(max=self.limit), y[..., 1::2].clamp(-self.limit, self.limit)
    result: torch.Tensor = self.act_fn(gate) * up
    return result


def strange(self: Any, y: torch.Tensor) -> torch.Tensor:
    gate, up = y.chunk(2, dim=-1)
    return torch.sin(gate) * up.square()


class Scale(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


FLAGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "transposed": {"is_transposed": True},
    "bias": {"has_bias": True},
    "no gate": {"has_gate": False},
    "no gate, transposed, bias": {"has_gate": False, "is_transposed": True, "has_bias": True},
    "interleaved": {"is_concatenated": False, "gate": clipped},
    "interleaved, all": {
        "is_concatenated": False,
        "is_transposed": True,
        "has_bias": True,
        "gate": clipped,
    },
    "flag without a gate of its own": {"is_concatenated": False},
    "strange": {"gate": strange},
    "norm": {"after": Scale(20), "has_bias": True},
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=list(FLAGS))
def test_every_flag_matches_batched_mm(flags: dict[str, Any]) -> None:
    module = experts_module(**flags)
    module.limit = 1.25
    x, (ids, weights) = torch.randn(9, 20), routed(9, 4, 3)
    with torch.no_grad():
        wanted = run(module, "batched_mm", x, ids, weights)
        torch.testing.assert_close(run(module, "tilewright", x, ids, weights), wanted)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, ids, weights), wanted)
    grads = []
    for implementation in ("batched_mm", "tilewright"):
        module.zero_grad()
        given, routing = x.clone().requires_grad_(), weights.clone().requires_grad_()
        run(module, implementation, given, ids, routing).square().sum().backward()
        grads.append([given.grad, routing.grad, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "act", ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "mish", "quick_gelu"]
)
@pytest.mark.parametrize("has_gate", [True, False])
def test_activation_functions(act: str, has_gate: bool) -> None:
    module = experts_module(ACT2FN[act], has_gate=has_gate)
    assert (gate_of(module).call is None) == (act not in ("mish", "quick_gelu"))
    x, routing = torch.randn(9, 20), routed(9, 4, 3)
    with torch.no_grad():
        wanted = run(module, "batched_mm", x, *routing)
        torch.testing.assert_close(run(module, "tilewright", x, *routing), wanted)


def test_gates_are_told_by_what_they_do() -> None:
    module = experts_module(gate=clipped, is_concatenated=False)
    module.limit = 1.25
    assert gate_of(module) == Gate("silu", limit=1.25)
    assert gate_of(experts_module(gate=strange)).call is not None
    x, routing = torch.randn(9, 20) * 3, routed(9, 4, 3)
    with torch.no_grad():
        before = run(module, "tilewright", x, *routing)
        module.limit = 0.5  # what is kept for a module follows its settings
        after = run(module, "tilewright", x, *routing)
        torch.testing.assert_close(after, run(module, "batched_mm", x, *routing))
    assert not torch.allclose(before, after)


def test_what_is_kept_follows_the_weights() -> None:
    module = experts_module(has_bias=True)
    x, routing = torch.randn(9, 20), routed(9, 4, 3)
    with torch.no_grad():
        for change in (
            lambda: module.down_proj.mul_(2),
            lambda: setattr(module, "down_proj", nn.Parameter(torch.randn(4, 20, 12))),
            lambda: setattr(module.down_proj, "data", torch.randn(4, 20, 12)),
            lambda: setattr(module.down_proj_bias, "data", torch.randn(4, 20)),
            lambda: module.to(torch.float64).to(torch.float32),
        ):
            run(module, "tilewright", x, *routing)
            change()
            wanted = run(module, "batched_mm", x, *routing)
            torch.testing.assert_close(run(module, "tilewright", x, *routing), wanted)


def test_what_an_op_keeps_follows_the_weights() -> None:
    tensors, text = stack_of(experts_module(), "down_proj", None)
    (weight,) = tensors
    x, counts = torch.randn(3, 12), torch.tensor([0, 3, 0, 0])
    with torch.no_grad():
        for change in (
            lambda: weight.mul_(2),
            lambda: setattr(weight, "data", torch.randn(4, 20, 12)),
        ):
            grouped_linear_op(x, counts, tensors, text, "all")
            change()
            result = grouped_linear_op(x, counts, tensors, text, "all")
            torch.testing.assert_close(result, x @ weight[1].T)


@pytest.mark.parametrize("norm", [None, nn.LayerNorm(20)])
def test_experts_on_other_devices_add_nothing(norm: nn.Module | None) -> None:
    if norm is not None:
        nn.init.ones_(norm.bias)  # type: ignore[arg-type]
    module = experts_module(has_bias=True, after=norm)
    module._is_expert_parallel = True
    x, (ids, weights) = torch.randn(9, 20), routed(9, 4, 3)
    ids[:, 1] = 4
    with torch.no_grad():
        wanted = run(module, "batched_mm", x, ids, weights)
        torch.testing.assert_close(run(module, "tilewright", x, ids, weights), wanted)
    with_gradients = run(module, "tilewright", x, ids, weights)
    torch.testing.assert_close(with_gradients.detach(), wanted)


@pytest.mark.parametrize("gradients", [False, True])
def test_an_expert_that_is_not_there(gradients: bool) -> None:
    module = experts_module()
    x, weights = torch.randn(2, 20), torch.rand(2, 2)
    with torch.set_grad_enabled(gradients), pytest.raises(BindError, match="no expert 4"):
        run(module, "tilewright", x, torch.tensor([[0, 1], [4, 0]]), weights)


class Bank:
    """An adapter's experts behind the module's own: 4 and up are those of 0 and up."""

    def __init__(self, module: Any) -> None:
        self.weights = {
            name: torch.cat((p.detach(), p.detach() * 0.5)) for name, p in module.named_parameters()
        }

    def rerouting(self, ids: torch.Tensor) -> Rerouting:
        return Rerouting(
            torch.zeros(len(ids), dtype=torch.int32), torch.tensor([[0, 5, 2, 3]]).int()
        )


def test_a_bank_says_which_weights_count() -> None:
    module = experts_module()
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter[1] *= 0.5
        module._tilewright_bank = Bank(module)
        x, routing = torch.randn(9, 20), routed(9, 4, 3)
        wanted = run(other, "batched_mm", x, *routing)
        torch.testing.assert_close(run(module, "tilewright", x, *routing), wanted)


@pytest.mark.parametrize("flags", [{}, FLAGS["interleaved, all"]], ids=["plain", "all"])
def test_opcheck(flags: dict[str, Any]) -> None:
    module = experts_module(**flags)
    first, down = (stack_of(module, name, None) for name in ("gate_up_proj", "down_proj"))
    x, (ids, weights) = torch.randn(9, 20, requires_grad=True), routed(9, 4, 3)
    order, counts = route_op(ids, 4, False)
    rows = x[order // 3].detach().requires_grad_()
    torch.library.opcheck(route_op, (ids, 4, False))
    torch.library.opcheck(grouped_linear_op, (rows, counts, *first, "pairs"))
    plain = [[t.detach() for t in tensors] for tensors in (first[0], down[0])]
    grad, wanted = torch.randn(27, 24), [True, bool(flags), True]
    beside = rows.detach(), counts, plain[0], first[1], "pairs", wanted
    torch.library.opcheck(gradients_op, (grad, *beside))
    whole = plain[0], first[1], plain[1], down[1], "silu", "halves", False
    torch.library.opcheck(experts_op, (x.detach(), ids, weights, *whole))
