"""The figures of expert layers, as a command: ``python -m tilewright.bench.experts``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import typer

import tilewright
from tilewright.bench.command import add_command, begin, note
from tilewright.bench.records import Comparison, Goal, Record
from tilewright.bench.timing import Effort, interleaved, timed
from tilewright.experts import register_experts

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
OURS = "our f32"
IMPLEMENTATIONS = ("grouped_mm", "eager", "batched_mm")  # transformers' own
COPIES = 64  # rows from which on batched_mm, which copies a row's weights, is never best
# tokens, and the goals beside transformers' best, by dtype, and of u4 beside our f32
LAYERS = {
    torch.float32: ((1, Goal(1.8)), (16, Goal(1.8)), (256, Goal(1.2)), (2048, Goal(1.1))),
    torch.bfloat16: ((1, Goal()), (16, Goal()), (256, Goal(1.0, 1.2)), (2048, Goal(1.0, 1.2))),
}
PACKED = ((1, Goal(3.0)), (16, Goal(3.0)))


@dataclass(frozen=True)
class Layer:
    """A layer of experts as Hugging Face's Qwen3-MoE has it."""

    experts: int = 64
    hidden: int = 1024
    inter: int = 768
    top: int = 6
    family = ""

    @property
    def name(self) -> str:
        return f"{self.family}E{self.experts} H{self.hidden} I{self.inter} top-{self.top}"

    def module(self, dtype: torch.dtype, device: str = "cpu") -> Any:
        """Its experts, the same in every run, as transformers' own class."""
        with torch.device(device):
            made = self.empty()
        random = torch.Generator(device).manual_seed(0)
        for weight in made.parameters():
            drawn = torch.randn(weight.shape, generator=random, device=device)
            weight.data = drawn.mul_(0.03).to(dtype)
        return made.requires_grad_(False)

    def empty(self) -> Any:
        """Its class."""
        from transformers import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

        config = Qwen3MoeConfig(
            hidden_size=self.hidden,
            moe_intermediate_size=self.inter,
            num_experts=self.experts,
            num_experts_per_tok=self.top,
        )
        return Qwen3MoeExperts(config)  # type: ignore[no-untyped-call]

    def expert(self, module: Any, e: int, x: torch.Tensor) -> torch.Tensor:
        """Expert e of a row x [H], in x's dtype."""
        gate, up = (module.gate_up_proj[e].to(x) @ x).chunk(2)
        found: torch.Tensor = module.down_proj[e].to(x) @ (torch.nn.functional.silu(gate) * up)
        return found

    def inputs(
        self, tokens: int, dtype: torch.dtype, device: str = "cpu"
    ) -> tuple[torch.Tensor, ...]:
        """x [T, H], ids and weights [T, k]."""
        random = torch.Generator().manual_seed(tokens)
        x = torch.randn(tokens, self.hidden, generator=random).to(dtype)
        ids = torch.rand(tokens, self.experts, generator=random).topk(self.top).indices
        weights = torch.rand(tokens, self.top, generator=random).to(dtype)
        return x.to(device), ids.to(device), weights.to(device)

    def work(self, tokens: int) -> float:
        """10⁹ floating-point operations."""
        return 6e-9 * tokens * self.top * self.hidden * self.inter


@dataclass(frozen=True)
class GptOss(Layer):
    """Weights transposed, columns of gate and up in turns, biases, and a gate of its own."""

    experts: int = 32
    top: int = 4
    family = "gpt-oss "

    def empty(self) -> Any:
        from transformers import GptOssConfig
        from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

        config = GptOssConfig(
            hidden_size=self.hidden,
            intermediate_size=self.inter,
            num_local_experts=self.experts,
            num_experts_per_tok=self.top,
        )
        return GptOssExperts(config)  # type: ignore[no-untyped-call]

    def expert(self, module: Any, e: int, x: torch.Tensor) -> torch.Tensor:
        both = x @ module.gate_up_proj[e].to(x) + module.gate_up_proj_bias[e].to(x)
        inner = module._apply_gate(both)
        found: torch.Tensor = inner @ module.down_proj[e].to(x) + module.down_proj_bias[e].to(x)
        return found


def run(effort: Effort, *, quick: bool = False, only: str = "") -> Record:
    """All figures with ``only`` in their names. ``quick`` holds nothing to its goals."""
    date, here, effort = begin(effort, quick)
    layer = Layer(8, 64, 48, 2) if quick else Layer()
    turned = GptOss(8, 64, 48, 2) if quick else GptOss()
    register_experts()
    with torch.inference_mode():
        found = (
            *_floats(layer, effort, only, quick),
            *_floats(turned, effort, only, quick),
            *_few_bits(layer, effort, only),
        )
    facts = {"layer": vars(layer), "gpt-oss": vars(turned)}
    record = Record("experts", date, here, found, (), facts)
    return record.without_goals() if quick else record


def _floats(layer: Layer, effort: Effort, only: str, quick: bool) -> Iterator[Comparison]:
    for dtype, goals in LAYERS.items():
        module = layer.module(dtype)
        for tokens, goal in goals[: 2 if quick else None]:
            name = f"{layer.name}, {_short(dtype)}, {tokens} tokens"
            if only in name:
                note(name)
                best = _best(module, layer.inputs(tokens, dtype))
                sides = _call(module, "tilewright"), _call(module, best)
                peer = f"transformers {best}"
                held = Goal() if layer.family else goal
                yield _compare(name, peer, sides, layer, (tokens, dtype), held, effort)


def _best(module: Any, inputs: tuple[torch.Tensor, ...]) -> str:
    """The fastest of transformers' own implementations."""
    names = IMPLEMENTATIONS[: None if inputs[1].numel() < COPIES else -1]
    calls = {name: partial(_call(module, name), *inputs) for name in names}
    rounds = [{name: timed(call) for name, call in calls.items()} for _ in range(6)][1:]
    return min(names, key=lambda name: min(seconds[name] for seconds in rounds))


def _few_bits(layer: Layer, effort: Effort, only: str) -> Iterator[Comparison]:
    wide, packed = layer.module(torch.float32), _packed(layer)
    for tokens, goal in PACKED:
        name = f"{layer.name}, u4 group 32, int8 activations, {tokens} tokens"
        if only in name:
            note(name)
            sides = _call(packed, "tilewright"), _call(wide, "tilewright")
            yield _compare(name, OURS, sides, layer, (tokens, torch.float32), goal, effort)


def _packed(layer: Layer) -> Any:
    """The same experts in four bits."""
    holder = torch.nn.Module()
    holder.experts = layer.module(torch.float32)
    tilewright.quantize(holder, "u4", group=32, activation="int8")
    return holder.experts


def _compare(
    name: str,
    peer: str,
    sides: tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]],
    layer: Layer,
    given: tuple[int, torch.dtype],
    goal: Goal,
    effort: Effort,
) -> Comparison:
    """Both sides with the same inputs; errors against the sum over a token's experts in f64."""
    inputs = layer.inputs(*given)
    exact = _exact(layer, layer.module(given[1]), *(part[:16] for part in inputs))
    errors = [float((side(*inputs)[:16].double() - exact).abs().max()) for side in sides]
    times = interleaved(lambda: sides[0](*inputs), lambda: sides[1](*inputs), effort)
    return Comparison(name, peer, *times, goal, layer.work(given[0]), "GFLOP/s", *errors)


def _call(module: Any, implementation: str) -> Callable[..., torch.Tensor]:
    def call(*inputs: torch.Tensor) -> torch.Tensor:
        module.config._experts_implementation = implementation
        return module(*inputs)  # type: ignore[no-any-return]

    return call


def _exact(
    layer: Layer, module: Any, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    found = []
    for row, chosen, scale in zip(x.double(), ids.tolist(), weights.double(), strict=True):
        each = torch.stack([layer.expert(module, expert, row) for expert in chosen])
        found.append(scale @ each)
    return torch.stack(found)


def _short(dtype: torch.dtype) -> str:
    return "f32" if dtype == torch.float32 else "bf16"


add_command(
    app,
    run,
    "Measures layers of experts against transformers' best, and few bits against f32.",
    6.0,
)

if __name__ == "__main__":
    app()
