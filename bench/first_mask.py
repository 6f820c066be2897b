"""A mask and a score function called for the first time in a new process: prints what it takes, as
JSON. Run by ``masks``, with an empty cache: ``python -m tilewright.bench.first_mask ours``.

Order of the calls: the process's very first (a mask; the compiler's own imports are in it), a new
mask function, a new score function; then, of the mask, lengths that were not seen before.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tilewright.bench import mask_workloads as w
from tilewright.bench.timing import timed

LENGTH, LENGTHS = 512, (300, 420, 555, 640, 777)
HEADS = 8  # alibi has eight slopes
STEADY = 5  # further calls at a length, of which the median counts

Attend = Callable[..., Any]


def main() -> None:
    """``ours`` or ``flex``; ours also takes the cache's folder, to count the kernels in it."""
    torch.set_num_threads(2)
    side, *folder = sys.argv[1:]
    with torch.inference_mode():
        x = torch.randn(1, HEADS, LENGTH, w.HEAD)
        x @ x.mT  # torch's own first call, and its threads
        found = first_calls(_ours if side == "ours" else _flex)
        if side == "ours":
            found |= second_lengths(Path(folder[0]))
    print(json.dumps(found))


def first_calls(attend: Attend) -> dict[str, Any]:
    """Seconds of the first calls."""
    q, k, v = _inputs(LENGTH)
    mask, score = {"mask_mod": w.window(LENGTH)}, {"score_mod": w.alibi(LENGTH)}
    return {
        "first_in_the_process": timed(lambda: attend(q, k, v, mask_mod=w.causal(LENGTH))),
        "new_mask": timed(lambda: attend(q, k, v, **mask)),
        "new_score": timed(lambda: attend(q, k, v, **score)),
    }


def second_lengths(folder: Path) -> dict[str, Any]:
    """Seconds by which the first call at a new length is longer than the next ones there, and how
    many kernels the cache's folder got by all of them."""
    before, beyond = _files(folder), {}
    mask = w.window(LENGTH)
    for length in LENGTHS:
        call = partial(_ours, *_inputs(length, 1), mask_mod=mask)  # one head: what else it takes
        first = timed(call)
        beyond[length] = first - statistics.median(timed(call) for _ in range(STEADY))
    return {
        "second_length": max(0.0, statistics.median(beyond.values())),
        "beyond_steady": beyond,
        "kernels_before": before,
        "kernels_more": _files(folder) - before,
    }


def _inputs(length: int, heads: int = HEADS) -> list[torch.Tensor]:
    return [torch.randn(1, heads, length, w.HEAD) for _ in range(3)]


def _ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> Any:
    import tilewright

    return tilewright.attention(q, k, v, **options)


def _flex(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask_mod: Any = None, **options: Any
) -> Any:
    """As its users call it: the blocks of the mask are part of what a new mask costs."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if mask_mod is not None:
        n, m = q.shape[2], k.shape[2]
        options["block_mask"] = create_block_mask(mask_mod, None, None, n, m, device="cpu")
    return torch.compile(flex_attention)(q, k, v, **options)


def _files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


if __name__ == "__main__":
    main()
