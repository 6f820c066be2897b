"""Offsets of ragged batches and block tables: checked before anything is read, and turned into the
index tensors that kernels take. All of it is linear in the lengths and done by torch."""

from __future__ import annotations

import torch

from tilewright.ir.errors import BindError

_INTEGERS = (torch.int32, torch.int64)


def checked_offsets(name: str, offsets: torch.Tensor, total: int) -> list[int]:
    """The numbers in it. BindError unless they start at 0, never fall and end at ``total``."""
    _check_integers(name, offsets, 1)
    if not offsets.numel():
        raise BindError(f"{name} is empty; it holds 0 and the end of every sequence")
    numbers: list[int] = offsets.tolist()
    if numbers[0] == 0 and numbers[-1] == total and numbers == sorted(numbers):
        return numbers
    if numbers[0] != 0:
        raise BindError(f"{name}[0] is {numbers[0]}; offsets start at 0")
    for at in range(1, len(numbers)):
        if numbers[at] < numbers[at - 1]:
            here, before = numbers[at], numbers[at - 1]
            raise BindError(f"{name}[{at}] is {here}, less than {name}[{at - 1}] = {before}")
    last, side = len(numbers) - 1, name[-1]
    raise BindError(f"{name}[{last}] is {numbers[-1]}; {side} has {total} rows")


def _check_integers(name: str, x: torch.Tensor, dims: int) -> None:
    if not isinstance(x, torch.Tensor) or x.dtype not in _INTEGERS:
        kind = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise BindError(f"{name} must be a tensor of int32 or int64, it is {kind}")
    if x.dim() != dims:
        raise BindError(f"{name} must have {dims} dimensions, it has shape {tuple(x.shape)}")
    if not x.is_cpu:
        raise BindError(f"{name} must be on the CPU, it is on {x.device}")


def ragged_rows(
    offsets_q: list[int], offsets_k: list[int], causal: bool, positions: bool
) -> dict[str, torch.Tensor]:
    """For each query row the range of its keys, and with ``positions`` its sequence and the first
    row of that.

    With ``causal`` the last query of a sequence sees its last key (as in FlashAttention 2.1 and
    later): row i of n sees keys j <= i + m - n of m; rows before the first key see none.
    """
    total = offsets_q[-1]
    spans = list(zip(offsets_q[:-1], offsets_q[1:], offsets_k[1:], strict=True))
    ends = [end_k - end_q + 1 if causal else end_k for _, end_q, end_k in spans]
    columns = {"first_key": offsets_k[:-1], "end_key": ends}
    if positions:
        columns |= {"sequence": list(range(len(spans))), "first_query": offsets_q[:-1]}
    counts = torch.tensor([end - start for start, end, _ in spans], dtype=torch.int64)
    table = torch.tensor(list(columns.values()), dtype=torch.int64)
    rows = table.repeat_interleave(counts, 1, output_size=total)
    found = dict(zip(columns, rows.unbind(), strict=True))
    if causal:
        last = found["end_key"] + torch.arange(total)
        found["end_key"] = torch.maximum(last, found["first_key"])
    return found


def check_used(used: torch.Tensor, batch: int, most: int) -> None:
    """BindError unless there is a length in [0, most] for every sequence."""
    _check_integers("seqused_k", used, 1)
    if used.shape[0] != batch:
        raise BindError(f"seqused_k has {used.shape[0]} lengths for a batch of {batch}")
    if not used.numel():
        return
    low, high = (int(x) for x in used.aminmax())
    if low < 0 or high > most:
        bad = ((used < 0) | (used > most)).nonzero()[0].item()
        raise BindError(f"seqused_k[{bad}] is {used[int(bad)].item()}; it must be in [0, {most}]")


def check_table(
    table: torch.Tensor, used: torch.Tensor | None, batch: int, pages: int, page: int
) -> None:
    """BindError unless every entry that is read names a page in [0, pages)."""
    _check_integers("block_table", table, 2)
    if table.shape[0] != batch:
        raise BindError(f"block_table has {table.shape[0]} rows for a batch of {batch}")
    wrong = (table < 0) | (table >= pages)
    if used is not None:  # entries past a sequence's last page may hold anything
        wrong &= torch.arange(table.shape[1]) * page < used[:, None]
    if wrong.any():
        b, at = wrong.nonzero()[0].tolist()
        number = table[b, at].item()
        raise BindError(f"block_table[{b}, {at}] is {number}; there are {pages} pages (from 0)")


def copied(pages: torch.Tensor, table: torch.Tensor, used: torch.Tensor | None) -> torch.Tensor:
    """Pages [P, page, K, D] in the order of the table as [B, K, T * page, D]; zeros behind the used
    ones, since memory that nobody wrote may hold NaN."""
    chosen = pages[table.long().clamp(0, max(len(pages) - 1, 0))].flatten(1, 2)
    if used is not None:
        unused = torch.arange(chosen.shape[1]) >= used[:, None]
        chosen = chosen.masked_fill(unused[..., None, None], 0)
    return chosen.transpose(1, 2)
