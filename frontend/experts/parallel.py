"""Expert-parallel layers: each rank of a process group holds its experts and computes for everyone.

Two ways, after ExFlow (arXiv 2401.08383):

``ExchangeExperts``, the usual one. A token has a home rank. One all-to-all takes its row to the
ranks of its experts, a second one brings their partial sums home.

``CoherentExperts``, context coherence. Every rank knows the context of every token, so a token may
go on wherever its expert is: one all-to-all, and the row stays. With k > 1 its experts may be on
several ranks; the row then stays with most of them, and the partial sums of the others follow it,
in a second and smaller all-to-all. What a rank needs besides, to run attention for whatever tokens
it holds, is the caller's: ``gather_tokens`` gives every rank all rows, as ExFlow does after each
forward pass.

Partial sums are added in the order of the ranks, in float32, so results depend neither on timing
nor on how tokens are spread, up to how a matrix product rounds for another number of rows. Forward
only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from tilewright.frontend.experts.wire import Received, Wire
from tilewright.ir.errors import DataError

# x [n, H], ids [n, k], weights [n, k] and the rank's own weights -> [n, H]: for each row the
# weighted sum over its choices. ids are local; an id equal to the number of local experts is on
# another rank and counts nothing, as in transformers.
Experts = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Any], torch.Tensor]
Prepare = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LocalExperts:
    """Some experts' weights: ``gate_up`` [n, 2I, H] (gate first), ``down`` [n, H, I]."""

    gate_up: torch.Tensor
    down: torch.Tensor
    activation: Prepare = F.silu

    def pick(self, experts: Sequence[int] | torch.Tensor) -> LocalExperts:
        """Those of a rank, copied, in the order given."""
        which = torch.as_tensor(experts, dtype=torch.int64, device=self.down.device)
        return LocalExperts(self.gate_up[which], self.down[which], self.activation)


def plain_experts(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, local: LocalExperts
) -> torch.Tensor:
    """One expert after the other, in torch: what layers call unless they are given another.

    Choices are added in their order, in float32.
    """
    found = torch.zeros(*ids.shape, x.shape[1], dtype=torch.float32, device=x.device)
    for expert in range(len(local.down)):
        rows, choices = torch.nonzero(ids == expert, as_tuple=True)
        if len(rows):
            gate, up = F.linear(x[rows], local.gate_up[expert]).chunk(2, dim=-1)
            found[rows, choices] = F.linear(local.activation(gate) * up, local.down[expert]).float()
    return (found * weights[:, :, None]).sum(dim=1).to(x.dtype)


class _Spread:
    """A layer's experts on the ranks of a group: who holds which, and the checks of what comes."""

    def __init__(
        self, devices: Sequence[int], local: Any, wire: Wire, experts: Experts = plain_experts
    ) -> None:
        """``devices`` [E]: the rank of each expert; ``local``: the weights of those of this rank,
        in rising order of their ids, for ``experts``. Raises DataError."""
        place = torch.as_tensor(devices, dtype=torch.int64)
        if place.ndim != 1 or not len(place) or place.min() < 0 or place.max() >= wire.size:
            raise DataError(
                f"experts are placed on devices {sorted(set(place.flatten().tolist()))}, "
                f"but the group has ranks 0 to {wire.size - 1}"
            )
        self.wire = wire
        self.local = local
        self.experts = experts
        self._place = place
        here = place == wire.rank
        self.count = int(here.sum())
        self._local_id = torch.where(here, here.cumsum(0) - 1, self.count)

    def _problem(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> str:
        """What is wrong with a rank's tokens; nothing if they can be sent."""
        if torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad):
            return "expert-parallel layers have no gradients: call them under torch.no_grad()"
        if x.ndim != 2 or ids.ndim != 2 or 0 in ids.shape[1:] or len(ids) != len(x):
            return (
                "tokens are x [T, H] with ids and weights [T, k], k at least 1, not "
                f"{list(x.shape)} and {list(ids.shape)}"
            )
        if ids.shape != weights.shape:
            return f"ids {list(ids.shape)} and weights {list(weights.shape)} differ in shape"
        if ids.dtype not in (torch.int32, torch.int64) or not x.is_floating_point():
            return f"x has to be floats and ids int32 or int64, not {x.dtype} and {ids.dtype}"
        count = len(self._place)
        wrong = ids[(ids < 0) | (ids >= count)]
        if len(wrong):
            return f"expert id {int(wrong[0])} is out of range: this layer has 0 to {count - 1}"
        return ""

    def _dispatch(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, *more: torch.Tensor
    ) -> tuple[Received, torch.Tensor]:
        """Each token's row to every rank with one of its experts, once; whose each row was."""
        problem = self._problem(x, ids, weights)
        if problem:
            ids = ids.new_zeros(0, 1)
            x, weights = x.new_zeros(0, 1), weights.new_zeros(0, 1)
            more = tuple(column[:0] for column in more)
        used = self._counts(ids) > 0
        to, token = used.T.nonzero(as_tuple=True)
        columns = (x[token], ids[token].int(), weights[token].float(), *(m[token] for m in more))
        return self.wire.send("dispatch", columns, to, problem), token

    def _counts(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [T, ranks]: how many of a token's experts each rank holds."""
        on = self._place.to(ids.device)[ids.long()]
        counts = on.new_zeros(len(ids), self.wire.size)
        return counts.scatter_add_(1, on, torch.ones_like(on))

    def _compute(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """This rank's share of each row's sum."""
        own = self._local_id.to(ids.device)[ids.long()]
        if not len(x):
            return x
        return self.experts(x, own, weights.masked_fill(own == self.count, 0.0), self.local)


class ExchangeExperts(_Spread):
    """The usual expert parallelism: two all-to-alls, tokens come home after every layer."""

    def __call__(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """x [T, H] of this rank's tokens, ids and weights [T, k] -> [T, H] in x's dtype.

        T may differ between ranks and be 0; every rank has to call. Raises DataError, on all ranks
        if one of them was given wrong ids.
        """
        got, token = self._dispatch(x, ids, weights)
        back = self.wire.send_back("combine", self._compute(*got.columns), got)
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        sent = list(got.sent)
        for rows, part in zip(torch.split(token, sent), torch.split(back, sent), strict=True):
            total[rows] += part  # no token twice from one rank
        return total.to(x.dtype)


@dataclass(frozen=True)
class Held:
    """Rows [n, H] that are on this rank now, and the numbers of their tokens int64 [n], rising."""

    rows: torch.Tensor
    tokens: torch.Tensor

    def with_rows(self, rows: torch.Tensor) -> Held:
        return Held(rows, self.tokens)


class CoherentExperts(_Spread):
    """Context coherence: tokens move to their experts and stay there."""

    def enter(self, x: torch.Tensor, ids: torch.Tensor) -> Held:
        """This rank's tokens of x [T, H], which all ranks hold, with this layer's ids [T, k].

        Nothing is sent: every rank takes those of which it has most experts.
        """
        problem = self._problem(x, ids, ids.float())
        if problem:
            raise DataError(problem)
        tokens = torch.nonzero(next_home(self._counts(ids)) == self.wire.rank)[:, 0]
        return Held(x[tokens], tokens)

    def __call__(
        self,
        held: Held,
        ids: torch.Tensor,
        weights: torch.Tensor,
        prepare: Prepare | None = None,
    ) -> tuple[Held, torch.Tensor]:
        """Moves the rows [n, H] of this rank, with ids and weights [n, k], and applies the experts.

        Gives what is on this rank then and the layer's output [n', H] for it. The rows that move
        are the residual stream; ``prepare`` (a norm) is what the experts see of it, applied where
        they are, so that one row is sent and not two. Raises DataError.
        """
        got, _ = self._dispatch(held.rows, ids, weights, held.tokens)
        rows, ids, weights, tokens = got.columns
        seen = rows if prepare is None or not len(rows) else prepare(rows)
        part = self._compute(seen, ids, weights)
        home = next_home(self._counts(ids), got.senders())
        mine = home == self.wire.rank
        tokens, order = tokens.sort()
        rows, part, home, mine = rows[order], part[order], home[order], mine[order]
        stays = Held(rows[mine], tokens[mine])
        if ids.shape[1] == 1:
            return stays, part
        return stays, self._combine(stays, part, tokens, home)

    def _combine(
        self, stays: Held, part: torch.Tensor, tokens: torch.Tensor, home: torch.Tensor
    ) -> torch.Tensor:
        """Partial sums to where their tokens are now; added by rank, this one's in its turn."""
        rank = self.wire.rank
        home, order = home.sort(stable=True)
        away = order[home != rank]
        columns = (part[away], tokens[away])
        got = self.wire.send("combine", columns, home[home != rank])
        values, numbers = (torch.split(column, list(got.counts)) for column in got.columns)
        total = torch.zeros(stays.rows.shape, dtype=torch.float32, device=part.device)
        for sender, (value, number) in enumerate(zip(values, numbers, strict=True)):
            if sender == rank:
                total += part[order[home == rank]]
            else:
                total[torch.searchsorted(stays.tokens, number)] += value
        return total.to(part.dtype)


def next_home(counts: torch.Tensor, home: torch.Tensor | None = None) -> torch.Tensor:
    """The rank with most of a token's experts; of equals where it is, then the lowest.

    ``counts`` int64 [T, ranks], ``home`` int64 [T]; the same rule as ``runtime.placement.traffic``.
    """
    score = 2 * counts
    if home is not None:
        score = score.scatter_add(1, home[:, None], torch.ones_like(home)[:, None])
    # max gives any of several equal ones; the lowest is wanted, everywhere the same.
    ranks = torch.arange(counts.shape[1], device=counts.device)
    best = score.amax(dim=1, keepdim=True)
    return torch.where(score == best, ranks, counts.shape[1]).amin(dim=1)


def gather_tokens(held: Held, total: int, wire: Wire) -> torch.Tensor:
    """All rows [total, H] on every rank, by their tokens' numbers: the context is coherent again.

    Raises DataError if the ranks do not hold each of the tokens 0 to total - 1 once.
    """
    count = len(held.tokens)
    to = torch.arange(wire.size, device=held.rows.device).repeat_interleave(count)
    columns = (held.rows.repeat(wire.size, 1), held.tokens.repeat(wire.size))
    rows, tokens = wire.send("gather", columns, to).columns
    tokens, order = tokens.sort()
    wanted = torch.arange(total, device=tokens.device)
    if not torch.equal(tokens, wanted):
        raise DataError(
            f"the ranks hold {len(tokens)} rows, which are not the {total} tokens once each"
        )
    return rows[order]
