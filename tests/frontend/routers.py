"""Gates and routers as people write them, for capture and for kernels.

Every function takes scores (or hidden states and weights) and gives ids and weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[..., object]


def softmax_then_top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Mixtral before it renormalises; Qwen2-MoE."""
    return logits.softmax(-1).topk(k, dim=-1)


def renormalised(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    weights, ids = torch.topk(F.softmax(logits.float(), dim=-1), k, dim=-1)
    weights /= weights.sum(dim=-1, keepdim=True)
    return weights, ids


def top_then_softmax(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, ids = torch.topk(logits, k)
    return torch.softmax(values, dim=-1), ids


def grouped(
    logits: Tensor, bias: Tensor, k: int, groups: int, kept: int, width: int
) -> tuple[Tensor, Tensor]:
    """DeepSeek-V3: groups of ``width`` by the sum of their two best, k experts of the best."""
    scores = logits.sigmoid()
    biased = scores + bias
    apart = biased.view(-1, groups, width)
    best = apart.topk(min(2, width), dim=-1)[0].sum(dim=-1)
    chosen = torch.topk(best, k=kept, dim=-1, sorted=False)[1]
    mask = torch.zeros_like(best)
    mask.scatter_(1, chosen, 1)
    wide = mask.unsqueeze(-1).expand(-1, groups, width).reshape(-1, groups * width)
    allowed = biased.masked_fill(~wide.bool(), float("-inf"))
    ids = torch.topk(allowed, k=k, dim=-1, sorted=False)[1]
    weights = scores.gather(1, ids)
    weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * 2.5, ids


def sigmoid_of_one(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Llama 4 with the scores of all experts."""
    values, ids = torch.topk(logits, 1, dim=1)
    scores = torch.full_like(logits, float("-inf")).scatter_(1, ids, values)
    return torch.sigmoid(scores.float()).to(scores.dtype), ids


def noisy(logits: Tensor, spread: Tensor, noise: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Shazeer et al. 2017 with the noise given."""
    values, ids = (logits + noise * F.softplus(spread)).topk(k)
    return torch.full_like(logits, float("-inf")).scatter(1, ids, values).softmax(-1), ids


def switch(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The best expert and its probability."""
    probabilities = logits.softmax(-1)
    ids = probabilities.argmax(-1, keepdim=True)
    return probabilities.gather(-1, ids), ids


def best_of_both(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum with where it is."""
    values, ids = logits.max(dim=-1)
    return values, ids


def own_function(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A gate of nobody's: the least costs, squared and taken from their sum."""
    costs, ids = logits.abs().topk(k, dim=-1, largest=False)
    total = (costs * costs).sum(-1, keepdim=True)
    return torch.where(total > 0, 1 - costs / total, costs), ids


def rerouted(ids: Tensor, adapter: Tensor, table: Tensor) -> Tensor:
    """ids'[b, k] = ids[b, k] if aid[b] < 0 else table[aid[b], ids[b, k]]"""
    own = adapter[:, None]
    return torch.where(own < 0, ids, table[own, ids].to(ids.dtype))


def counted(ids: Tensor, experts: int) -> tuple[Tensor, ...]:
    """Four ways to count how many choices each expert got."""
    flat = ids.flatten()
    added = torch.zeros(experts, dtype=torch.int64).scatter_add_(0, flat, torch.ones_like(flat))
    histogram = torch.histc(ids.float(), bins=experts, min=0, max=experts - 1)
    hot = F.one_hot(ids, num_classes=experts)
    indexed = torch.zeros(experts).index_add(0, flat, torch.ones_like(flat, dtype=torch.float32))
    put = torch.zeros(experts).index_put((flat,), torch.ones(()), accumulate=True)
    return added, histogram, hot.sum((0, 1)), indexed, put


def by_expert(ids: Tensor, experts: int) -> tuple[Tensor, ...]:
    """The order by expert, ids in it, where each expert ends, and each choice's place."""
    flat = ids.view(-1)
    order = torch.argsort(flat, stable=True)
    ordered, again = torch.sort(flat, stable=True)
    counts = torch.histc(flat.float(), bins=experts, min=0, max=experts - 1)
    ends = counts.cumsum(0, dtype=torch.int32)
    place = torch.zeros_like(order).scatter_(0, order, torch.arange(flat.numel()))
    return order, ordered, again, flat[order], ends, place


def capacity(ids: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """GShard: the place of each token [T] in its expert's queue, by a running sum."""
    hot = F.one_hot(ids, experts)
    place = hot.cumsum(0) - 1
    return place.gather(1, ids[:, None]), place * hot
