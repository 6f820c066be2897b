"""Routing on a CUDA device beside separate torch operations: ``python -m
tilewright.bench.gpu_routing OUT``.

From scores to sorted choices with adapters' experts (softmax, top-8 of 128, renormalised weights,
the adapters' map, counts, permutation), checked against torch, then timed beside it and beside an
empty kernel. ``--dry`` runs it tiny under Triton's interpreter (set TRITON_INTERPRET=1 before).
"""

from __future__ import annotations

import sys

import torch

from tilewright.bench.gpu_timing import Call, Suite, run_suite
from tilewright.bench.routing_cases import Routing, Tensors

TOKENS = (4096, 1, 16, 256)


def main() -> int:
    """1 if a result is wrong."""
    return run_suite(__doc__, 30.0, work)


def work(suite: Suite) -> None:
    """Everything, the required figure first."""
    routing = Routing(8, 32, 16, 2, 3, 2) if suite.dry else Routing(128, 2816, 704, 8, 20, 8)
    for tokens in (40,) if suite.dry else TOKENS:
        if suite.left() < 5:
            suite.note(f"{tokens} tokens: no time left")
            return
        beside_torch(suite, routing, tokens)


def beside_torch(suite: Suite, routing: Routing, tokens: int) -> None:
    """One number of tokens: right, then timed."""
    program, peer = routing.program(False), routing.torch_side(False)
    given = tuple(x.to(suite.device) for x in routing.inputs(tokens, False))
    ours = (given[0], given[1].int(), given[2].int())
    key = f"routing {tokens} E{routing.experts} k{routing.top}"
    suite.check(key, lambda: _error(program(*ours), peer(*given)), 1e-5)
    calls: dict[str, Call] = {
        "ours": lambda: program(*ours),
        "torch separate operations": lambda: peer(*given),
    }
    if not suite.dry:
        small = torch.empty(1, device=suite.device)
        calls["an empty kernel"] = small.zero_
    suite.rounds(key, calls)


def _error(ours: Tensors, theirs: Tensors) -> float:
    """The largest difference of weights; 1 if experts, counts or places differ where no scores are
    nearly equal."""
    same = (ours[1] == theirs[1]).all(1)
    if float(same.float().mean()) < 0.99:
        return 1.0
    if bool(same.all()) and not all(torch.equal(ours[i].long(), theirs[i]) for i in (2, 3)):
        return 1.0
    return float((ours[0][same] - theirs[0][same]).abs().max())


if __name__ == "__main__":
    sys.exit(main())
