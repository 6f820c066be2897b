"""A router of experts with adapters: its program, the same in separate torch operations, inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

import tilewright

Tensors = tuple[torch.Tensor, ...]
Side = Callable[..., Tensors]


@dataclass(frozen=True)
class Routing:
    """A router of E experts and its adapters, each with ``own`` experts of its own."""

    experts: int = 64
    hidden: int = 1024
    inter: int = 768
    top: int = 6
    adapters: int = 20
    own: int = 8

    @property
    def slots(self) -> int:
        """Experts of the base and of all adapters."""
        return self.experts + self.adapters * self.own

    @property
    def name(self) -> str:
        return f"E{self.experts} top-{self.top}, {self.adapters} adapters"

    def program(self, product: bool) -> tilewright.Program:
        """From scores, or with ``product`` from hidden states, to places: softmax, choice,
        renormalised weights, adapters' experts, counts, offsets, permutation."""
        e, h = self.experts, self.hidden
        given = f"%x: tensor<T x {h} x f32>, %gate: tensor<{e} x {h} x f32>"
        first = '%logits = tensor.contract %x, %gate {equation = "th,eh->te"}'
        if not product:
            given, first = f"%logits: tensor<T x {e} x f32>", ""
        text = f"""
            graph routing<T, A>({given}, %adapter: tensor<T x i32>, %map: tensor<A x {e} x i32>) {{
              {first}
              %p = tensor.softmax %logits {{axis = 1}}
              %best, %chosen = tensor.top_k %p {{k = {self.top}, ties = "torch"}}
              %total = tensor.reduce %best {{axis = 1, kind = "sum", keep = true}}
              %weights = math.div %best, %total
              %own = tensor.reshape %adapter {{shape = [size(T), 1]}}
              %mapped = tensor.gather %map, %own, %chosen
              %none = math.const {{value = 0, type = tensor<i32>}}
              %base = math.compare %own, %none {{relation = "lt"}}
              %experts = math.select %base, %chosen, %mapped
              %counts = tensor.segment_count %experts {{segments = size({self.slots})}}
              %offsets = tensor.prefix_sum %counts {{axis = 0, exclusive = true}}
              %places = tensor.segment_rank %experts, %offsets
              return %weights, %experts, %counts, %places
            }}"""
        return tilewright.Program(tilewright.parse(text))

    def torch_side(self, product: bool) -> Side:
        """The same in torch; its look-up takes i64."""

        def route(x: torch.Tensor, *rest: torch.Tensor) -> Tensors:
            *gate, adapter, table = rest
            logits = torch.nn.functional.linear(x, gate[0]) if product else x
            best, chosen = torch.topk(torch.softmax(logits, -1), self.top)
            weights = best / best.sum(-1, keepdim=True)
            own = adapter[:, None]
            experts = torch.where(own < 0, chosen, table[own, chosen])
            flat = experts.view(-1)
            counts = torch.bincount(flat, minlength=self.slots)
            order = torch.argsort(flat, stable=True)
            places = torch.empty_like(order)
            places[order] = torch.arange(len(order), device=order.device)
            return weights, experts, counts, places.view(experts.shape)

        return route

    def inputs(self, tokens: int, product: bool) -> Tensors:
        random = torch.Generator().manual_seed(tokens)
        x = torch.randn(tokens, self.hidden if product else self.experts, generator=random)
        gate = torch.randn(self.experts, self.hidden, generator=random) / self.hidden**0.5
        adapter = torch.randint(-1, self.adapters, (tokens,), generator=random)
        table = torch.arange(self.experts).repeat(self.adapters, 1)
        for row in range(self.adapters):
            own = torch.randperm(self.experts, generator=random)[: self.own]
            table[row, own] = self.experts + row * self.own + torch.arange(self.own)
        return (x, *((gate,) if product else ()), adapter, table)
