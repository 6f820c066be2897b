"""Rows of tensors from rank to rank, and the bytes that took. Knows nothing about experts.

All collectives are ``all_to_all_single`` of bytes, which gloo has on CPUs and NCCL on GPUs. A
dispatch needs to know how many rows come from whom, so 16 bytes for each rank go ahead of it: a
count and the bytes of a row. A count of -1 says that the sender refuses what it was given; every
rank then raises, where otherwise the others would wait for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from tilewright.ir.errors import DataError

_REFUSED = -1


@dataclass(frozen=True)
class Step:
    """What this rank sent to other ranks in one collective; what stays with it is not counted.

    ``payload``: bytes of the rows themselves; ``header``: of ids, weights and token numbers that go
    with them; ``counts``: of what goes ahead.
    """

    name: str
    rows: int
    payload: int
    header: int
    counts: int


@dataclass
class Traffic:
    """The steps of a rank, in order."""

    steps: list[Step] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(step.rows for step in self.steps)

    @property
    def payload(self) -> int:
        """Bytes."""
        return sum(step.payload for step in self.steps)

    @property
    def total(self) -> int:
        """Bytes, with headers and counts."""
        return sum(step.payload + step.header + step.counts for step in self.steps)

    def __str__(self) -> str:
        lines = [
            f"{step.name}: {step.rows:,} rows, {step.payload:,} bytes "
            f"(+ {step.header + step.counts:,})"
            for step in self.steps
        ]
        return "\n".join([*lines, f"all: {self.rows:,} rows, {self.total:,} bytes"])


@dataclass(frozen=True)
class Received:
    """Rows that came, ordered by sender: ``columns`` of what was sent, ``counts`` rows from each
    rank; ``sent`` says how many this rank had sent to each."""

    columns: tuple[torch.Tensor, ...]
    counts: tuple[int, ...]
    sent: tuple[int, ...]

    def senders(self) -> torch.Tensor:
        """int64 [rows]: who sent each."""
        counts = torch.tensor(self.counts, device=self.columns[0].device)
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


class Wire:
    """One process group, default the whole world, and what this rank sent through it."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise DataError(
                "no process group: call torch.distributed.init_process_group first, with 'gloo' on "
                "CPUs or 'nccl' on GPUs"
            )
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.traffic = Traffic()

    def send(
        self, name: str, columns: Sequence[torch.Tensor], to: torch.Tensor, refuse: str = ""
    ) -> Received:
        """Sends row r of every column [n, ...] to rank ``to[r]``; ``to`` int64 [n] has to rise.

        The first column counts as payload, the others as header. ``refuse``: why this rank cannot
        take part; raises DataError, as on all other ranks.
        """
        device = columns[0].device
        counts = torch.bincount(to, minlength=self.size)
        packed, widths = _pack(columns)
        ahead = torch.stack([counts, torch.full_like(counts, sum(widths))], dim=1)
        if refuse:
            ahead[:, 0] = _REFUSED
        heard = torch.empty_like(ahead)
        dist.all_to_all_single(heard, ahead, group=self.group)
        coming = heard.tolist()
        if refuse:
            raise DataError(refuse)
        for rank, (count, width) in enumerate(coming):
            if count == _REFUSED:
                raise DataError(f"rank {rank} refused its tokens; its own error says why")
            if width != sum(widths):
                raise DataError(
                    f"rank {rank} sends rows of {width} bytes, rank {self.rank} of {sum(widths)}: "
                    "hidden size, dtype and k have to be the same everywhere"
                )
        sent = tuple(counts.tolist())
        got = tuple(count for count, _ in coming)
        arrived = torch.empty(sum(got), sum(widths), dtype=torch.uint8, device=device)
        self._exchange(arrived, packed, got, sent)
        self._count(name, sent, widths, 16 * (self.size - 1))
        return Received(_unpack(arrived, columns, widths), got, sent)

    def send_back(self, name: str, rows: torch.Tensor, received: Received) -> torch.Tensor:
        """Returns a row for each received one to its sender: here come those for what was sent.

        Both sides know the counts, so nothing goes ahead.
        """
        packed, widths = _pack([rows])
        arrived = torch.empty(sum(received.sent), widths[0], dtype=torch.uint8, device=rows.device)
        self._exchange(arrived, packed, received.sent, received.counts)
        self._count(name, received.counts, widths, 0)
        return _unpack(arrived, [rows], widths)[0]

    def _exchange(
        self,
        arrived: torch.Tensor,
        packed: torch.Tensor,
        coming: Sequence[int],
        going: Sequence[int],
    ) -> None:
        dist.all_to_all_single(
            arrived, packed, output_split_sizes=list(coming), input_split_sizes=list(going),
            group=self.group,
        )  # fmt: skip

    def _count(self, name: str, sent: Sequence[int], widths: Sequence[int], counts: int) -> None:
        rows = sum(sent) - sent[self.rank]
        step = Step(name, rows, rows * widths[0], rows * sum(widths[1:]), counts)
        self.traffic.steps.append(step)


def _pack(columns: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Columns [n, ...] as the bytes of n rows, uint8 [n, bytes], and each column's share."""
    flat = [column.reshape(len(column), _row_size(column)) for column in columns]
    parts = [column.contiguous().view(torch.uint8) for column in flat]
    return torch.cat(parts, dim=1), [part.shape[1] for part in parts]


def _unpack(
    packed: torch.Tensor, like: Sequence[torch.Tensor], widths: Sequence[int]
) -> tuple[torch.Tensor, ...]:
    found = []
    for part, column in zip(torch.split(packed, list(widths), dim=1), like, strict=True):
        # A copy, since the bytes of a column need not lie where its dtype could be read.
        own = part.clone(memory_format=torch.contiguous_format).view(column.dtype)
        found.append(own.reshape(len(packed), *column.shape[1:]))
    return tuple(found)


def _row_size(column: torch.Tensor) -> int:
    size = 1
    for extent in column.shape[1:]:
        size *= extent
    return size
