"""The figures of expert memory, as a command: ``python -m tilewright.bench.expert_memory``."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import typer

from tilewright.bench.command import add_command, begin
from tilewright.bench.expert_adapters import ADAPTERS, LAYERS, MOST, draw_counts, draw_experts
from tilewright.bench.expert_pauses import details, windows
from tilewright.bench.records import Goal, Quantity, Record
from tilewright.bench.timing import Effort, timed
from tilewright.experts import (
    ExpertBank,
    ExpertMemory,
    fragmentation,
    mapped_bytes,
    register_experts,
    sparsity,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
MUST_MAPPED, MUST_PAUSE = 1.02, 1.5
PAGES = {"4 KiB": 4096, "2 MiB": 2 << 20}
DEPTH = 4  # layers of experts in a decode step
SHARES = (0.1, 0.25, 1.0)
WINDOWS, FEW_WINDOWS = 20, 1  # with the default share, and with others


@dataclass(frozen=True)
class Layer:
    """One layer of experts as Hugging Face's Qwen3-MoE stores them, f32."""

    experts: int = 64
    hidden: int = 1024
    inter: int = 768
    top: int = 6
    layers: int = LAYERS

    @property
    def name(self) -> str:
        return f"E{self.experts} H{self.hidden} I{self.inter}"

    def shapes(self) -> dict[str, tuple[int, int]]:
        return {
            "gate_up_proj": (2 * self.inter, self.hidden),
            "down_proj": (self.hidden, self.inter),
        }


WHOLE, SMALL = Layer(), Layer(16, 64, 48, 2, 3)
ODD = Layer(64, 1000, 700)  # experts that are no multiple of a page


def run(effort: Effort, *, quick: bool = False, only: str = "") -> Record:
    """All figures with ``only`` in their names. ``quick`` holds nothing to its goals."""
    date, here, effort = begin(effort, quick)
    layer = SMALL if quick else WHOLE
    rows: list[Quantity] = []
    with torch.inference_mode():
        for measure in (memory_rows, load_rows, pause_rows):
            rows.extend(row for row in measure(layer, effort) if only in row.name)
    details = {
        "adapters": {shape.name: draw_counts(shape, layer.layers) for shape in ADAPTERS},
        "how drawn": "bench/expert_adapters.py: the table's largest and mean, seeded",
    }
    record = Record("expert_memory", date, here, (), tuple(rows), details)
    return record.without_goals() if quick else record


def memory_rows(layer: Layer, effort: Effort) -> Iterator[Quantity]:
    """Mapped bytes over existing bytes, counted for a whole model and held by one layer of it."""
    for shape, element in ((layer, 4), (layer, 2), (ODD, 2)):
        for page, size in PAGES.items():
            yield counted(shape, element, page, size, held=shape is layer and page == "4 KiB")
    yield really_held(layer)


def counted(layer: Layer, element: int, page: str, size: int, held: bool) -> Quantity:
    """Ten adapters on a model's worth of layers, by the bookkeeping that mapping uses."""
    counts = [draw_counts(shape, layer.layers) for shape in ADAPTERS]
    mapped = existing = padded = 0
    for rows, columns in layer.shapes().values():
        one = rows * columns * element
        for at in range(layer.layers):
            here = [_fitting(each[at], layer) for each in counts]
            mapped += mapped_bytes(one, layer.experts, MOST, here, size)
            existing += one * (layer.experts + sum(here))
            padded += one * (layer.experts + len(here) * MOST)
    base = [layer.experts] * layer.layers
    return Quantity(
        f"10 adapters, {layer.name}, {8 * element} bits, {page}: mapped / existing",
        mapped / existing,
        "",
        Goal(MUST_MAPPED, 1.0) if held else Goal(),
        {
            "mapped bytes": mapped,
            "existing bytes": existing,
            "padded bytes": padded,
            "padded / mapped": padded / mapped,
            "F_mem": fragmentation(base, len(ADAPTERS), MOST, counts),
            "sparsity": {s.name: sparsity(c) for s, c in zip(ADAPTERS, counts, strict=True)},
        },
    )


def really_held(layer: Layer) -> Quantity:
    """The same for one layer that is really there; bytes as the memory says."""
    memory = _memory(layer, len(ADAPTERS))
    for shape in ADAPTERS:
        memory.load(shape.name, _adapter(layer, shape.name))
    figures = memory.figures()
    return Quantity(
        f"10 adapters, {layer.name}, one layer in memory: mapped / existing",
        figures.overhead,
        "",
        Goal(MUST_MAPPED, 1.0),
        {
            "mapped bytes": figures.mapped_bytes,
            "existing bytes": figures.existing_bytes,
            "padded bytes": figures.padded_bytes,
        },
    )


def load_rows(layer: Layer, effort: Effort) -> Iterator[Quantity]:
    """Seconds to load and to unload one adapter of a layer, alone."""
    memory, name = _memory(layer, 2), ADAPTERS[0].name
    weights = _adapter(layer, name)
    for share in SHARES:
        loads, unloads = [], []
        for _ in range(effort.fewest):
            loads.append(timed(partial(memory.load, name, weights, share)))
            nbytes = memory.figures().adapters[name].nbytes
            unloads.append(timed(partial(memory.unload, name, share)))
        seconds = statistics.median(loads)
        yield Quantity(
            f"loading an adapter's {len(weights[0])} experts of a layer, share {share}",
            seconds * 1e3,
            "ms",
            Goal(),
            {
                "bytes": nbytes,
                "GB/s": nbytes / seconds / 1e9,
                "unloading ms": statistics.median(unloads) * 1e3,
            },
        )


def pause_rows(layer: Layer, effort: Effort) -> Iterator[Quantity]:
    """The longest decode step while another adapter is loaded and unloaded: of all steps, and as a
    median over windows, each beside as many steps without loading."""
    step, bank, weights = _decode(layer)
    for share in SHARES:
        default = share == 0.25
        found = windows(
            step,
            partial(_load, bank, weights, share),
            min(effort.most, WINDOWS if default else FEW_WINDOWS),
        )
        more = details(found)
        name = f"decode step of {DEPTH} layers {layer.name} top-{layer.top} while loading, "
        yield Quantity(
            f"{name}share {share}: longest / median",
            more["longest of all ms"] / more["median ms"],
            "",
            Goal(MUST_PAUSE) if default else Goal(),
            more,
        )
        if default:  # the same steps, so that chance is told from loading
            for key in (
                "longest / median, median of windows",
                "the same without loading",
                "longest / longest without, median of windows",
            ):
                yield Quantity(f"{name}share {share}: {key}", more[key], "", Goal())


def _load(bank: Any, weights: Any, share: float) -> None:
    """One adapter comes and goes."""
    bank.load("new", weights, share=share)
    bank.unload("new", share=share)


def _decode(layer: Layer) -> tuple[Callable[[], object], Any, Any]:
    """One token's step through the experts of a model's layers (of the first ``DEPTH``; real models
    have more), with an adapter: the experts differ each time."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    register_experts()
    config = Qwen3MoeConfig(
        vocab_size=8,
        hidden_size=layer.hidden,
        intermediate_size=8,
        moe_intermediate_size=layer.inter,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=layer.experts,
        num_experts_per_tok=layer.top,
    )
    model: Any = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation("tilewright")
    bank = ExpertBank(model, slots=2, experts_per_slot=MOST)
    bank.load("mine", _adapter(layer, ADAPTERS[0].name, DEPTH), share=1.0)
    blocks, x = [block.mlp.experts for block in model.model.layers], torch.randn(1, layer.hidden)
    generator = torch.Generator().manual_seed(0)
    chosen = itertools.cycle(
        torch.randperm(layer.experts, generator=generator)[: layer.top][None] for _ in range(64)
    )
    weights = torch.full((1, layer.top), 1 / layer.top)

    def step() -> object:
        with bank.adapters("mine"):
            return [experts(x, next(chosen), weights) for experts in blocks]

    return step, bank, _adapter(layer, ADAPTERS[2].name, DEPTH)


def _memory(layer: Layer, slots: int) -> Any:
    memory = ExpertMemory(slots, MOST)
    memory.add_layer(0, {k: torch.randn(layer.experts, *s) for k, s in layer.shapes().items()})
    return memory


def _adapter(layer: Layer, name: str, depth: int = 1) -> dict[int | str, Any]:
    """The experts of an adapter in the first layers."""
    shape = next(shape for shape in ADAPTERS if shape.name == name)
    generator, found = random.Random(name), dict[int | str, Any]()
    for at, count in enumerate(draw_counts(shape)[:depth]):
        chosen = draw_experts(_fitting(count, layer), layer.experts, generator)
        found[at] = {e: {k: torch.randn(s) for k, s in layer.shapes().items()} for e in chosen}
    return found


def _fitting(count: int, layer: Layer) -> int:
    return min(count, layer.experts)


add_command(
    app,
    run,
    "Measures what adapters take of memory, how long they load, and what decoding feels of it.",
    6.0,
)

if __name__ == "__main__":
    app()
