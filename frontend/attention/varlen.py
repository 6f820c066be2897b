"""Offsets of ragged batches and block tables: checked before anything is read, and turned into the
index tensors that kernels take. All of it is linear in the lengths and done by torch.

What lies on the CPU is checked number by number. What lies on a GPU is not, since that would wait
for the GPU: shapes and dtypes are checked, and whatever the numbers are, kernels read inside of the
tensors that they were given (every position that is read from memory is moved inside).
"""

from __future__ import annotations

import torch

from tilewright.ir.errors import BindError

_INTEGERS = (torch.int32, torch.int64)


def row_ranges(
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    causal: bool,
    positions: bool,
) -> dict[str, torch.Tensor]:
    """``ragged_rows`` of queries and keys [total, …] with offsets [S + 1] on the CPU, which are
    checked, or on the queries' device, which is not waited for. The result is on that device."""
    for name, x in (("cu_seqlens_q", cu_q), ("cu_seqlens_k", cu_k)):
        _check_integers(name, x, 1, queries.device)
        if not x.numel():
            raise BindError(f"{name} is empty; it holds 0 and the end of every sequence")
    if len(cu_q) != len(cu_k):
        numbers = f"{len(cu_q) - 1} and {len(cu_k) - 1} sequences"
        raise BindError(f"cu_seqlens_q and cu_seqlens_k have {numbers}")
    total_q, total_k = queries.shape[0], keys.shape[0]
    if not (cu_q.is_cpu and cu_k.is_cpu):
        cu_q, cu_k = cu_q.to(queries.device), cu_k.to(queries.device)
        return rows_on_device(cu_q, cu_k, total_q, total_k, causal, positions)
    offsets_q = checked_offsets("cu_seqlens_q", cu_q, total_q)
    offsets_k = checked_offsets("cu_seqlens_k", cu_k, total_k)
    found = ragged_rows(offsets_q, offsets_k, causal, positions)
    if queries.is_cpu:
        return found
    return {name: x.to(queries.device, non_blocking=True) for name, x in found.items()}


def checked_offsets(name: str, offsets: torch.Tensor, total: int) -> list[int]:
    """The numbers in it. BindError unless they start at 0, never fall and end at ``total``."""
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


def _check_integers(name: str, x: torch.Tensor, dims: int, device: torch.device) -> None:
    """BindError unless it is a tensor of integers on the CPU or on the other tensors' device."""
    if not isinstance(x, torch.Tensor) or x.dtype not in _INTEGERS:
        kind = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise BindError(f"{name} must be a tensor of int32 or int64, it is {kind}")
    if x.dim() != dims:
        raise BindError(f"{name} must have {dims} dimensions, it has shape {tuple(x.shape)}")
    if not x.is_cpu and x.device != device:
        there = "the CPU" if device.type == "cpu" else f"the CPU or on {device}, where q is"
        raise BindError(f"{name} must be on {there}; it is on {x.device}")


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


def rows_on_device(
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    total_q: int,
    total_k: int,
    causal: bool,
    positions: bool,
) -> dict[str, torch.Tensor]:
    """``ragged_rows`` by the device that the offsets are on: nothing waits for it, and a CUDA graph
    may hold it. Offsets that are no offsets give some ranges of keys within the ``total_k``."""
    if len(cu_q) < 2:
        raise BindError(f"cu_seqlens_q holds no sequence; q has {total_q} rows")
    row = torch.arange(total_q, dtype=cu_q.dtype, device=cu_q.device)
    sequence = torch.searchsorted(cu_q[1:], row, right=True).clamp_(max=len(cu_q) - 2)
    first, end = (cu_k[sequence + at].long() for at in (0, 1))
    if causal:  # row i of n sees keys up to i + m - n of m
        end = torch.maximum(row + (end - cu_q[sequence + 1] + 1), first)
    found = {"first_key": first.clamp(0, total_k), "end_key": end.clamp(0, total_k)}
    if positions:
        found |= {"sequence": sequence, "first_query": cu_q[sequence].long()}
    return found


def check_used(used: torch.Tensor, batch: int, most: int, device: torch.device) -> torch.Tensor:
    """The lengths on ``device``. BindError unless there is one for every sequence, in [0, most] if
    they are on the CPU."""
    _check_integers("seqused_k", used, 1, device)
    if used.shape[0] != batch:
        raise BindError(f"seqused_k has {used.shape[0]} lengths for a batch of {batch}")
    if not used.numel() or not used.is_cpu:
        return used.to(device)
    low, high = (int(x) for x in used.aminmax())
    if low < 0 or high > most:
        bad = ((used < 0) | (used > most)).nonzero()[0].item()
        raise BindError(f"seqused_k[{bad}] is {used[int(bad)].item()}; it must be in [0, {most}]")
    return used.to(device, non_blocking=True)


def check_table(
    table: torch.Tensor,
    used: torch.Tensor | None,
    q: torch.Tensor,
    pages: int,
    page: int,
) -> torch.Tensor:
    """The table on the device of ``q`` [batch, …]. BindError unless every entry that is read names
    a page in [0, pages), if all is on the CPU."""
    _check_integers("block_table", table, 2, q.device)
    if table.shape[0] != q.shape[0]:
        raise BindError(f"block_table has {table.shape[0]} rows for a batch of {q.shape[0]}")
    if not table.is_cpu or (used is not None and not used.is_cpu):
        return table.to(q.device)
    wrong = (table < 0) | (table >= pages)
    if used is not None:  # entries past a sequence's last page may hold anything
        wrong &= torch.arange(table.shape[1]) * page < used[:, None]
    if wrong.any():
        b, at = wrong.nonzero()[0].tolist()
        number = table[b, at].item()
        raise BindError(f"block_table[{b}, {at}] is {number}; there are {pages} pages (from 0)")
    return table.to(q.device, non_blocking=True)


def copied(pages: torch.Tensor, table: torch.Tensor, used: torch.Tensor | None) -> torch.Tensor:
    """Pages [P, page, K, D] in the order of the table as [B, K, T * page, D]; zeros behind the used
    ones, since memory that nobody wrote may hold NaN."""
    chosen = pages[table.long().clamp(0, max(len(pages) - 1, 0))].flatten(1, 2)
    if used is not None:
        unused = torch.arange(chosen.shape[1], device=used.device) >= used[:, None]
        chosen = chosen.masked_fill(unused[..., None, None], 0)
    return chosen.transpose(1, 2)
