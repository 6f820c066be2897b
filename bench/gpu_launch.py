"""What a call costs the host: ``python -m tilewright.bench.gpu_launch OUT``.

Calls of small attention, of caches and of a product in few bits one after another, without waiting
for the device, beside torch's scaled_dot_product_attention, in interleaved rounds: microseconds of
host time a call. Then attention inside a CUDA graph, whose replays must give the same numbers.
``--dry`` runs on the CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import tilewright

SHAPE = (1, 8, 64, 64)
LAYERS = 32  # calls with one length, before a length that was never seen
Call = Callable[[], Any]


def calls(device: torch.device) -> dict[str, Call]:
    """What is called, by name."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v = (torch.randn(SHAPE, device=device).to(dtype) for _ in range(3))
    slopes = torch.exp2(-torch.arange(SHAPE[1], device=device, dtype=torch.float32))
    several = [torch.randn(1, 8, n, 64, device=device).to(dtype) for n in range(64, 320)]
    lengths, fresh = several[:128], several[128:]
    state = {"at": 0, "layer": 0}
    row, token = (torch.randn(1, 8, 1, 128, device=device).to(dtype) for _ in range(2))
    cache = tilewright.KVCache(1, 8, 128, k="u8", v="u4", capacity=4096, device=device)
    cache.append(*torch.randn(2, 1, 8, 1000, 128, device=device).to(dtype))
    weight = tilewright.QuantizedTensor.from_float(torch.randn(512, 512), "u4").to(device)
    x = torch.randn(1, 512, device=device).to(dtype)

    def alibi(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return score + slopes[h] * (j - i)

    def growing() -> Any:
        state["at"] = (state["at"] + 1) % len(lengths)
        keys = lengths[state["at"]]
        return tilewright.attention(q, keys, keys)

    def layers() -> Any:
        state["layer"] += 1
        keys = fresh[state["layer"] // LAYERS % len(fresh)]
        return tilewright.attention(q, keys, keys)

    return {
        "tilewright, causal": lambda: tilewright.attention(q, k, v, is_causal=True),
        "tilewright, score_mod": lambda: tilewright.attention(q, k, v, score_mod=alibi),
        "tilewright, another length each time": growing,
        f"tilewright, {LAYERS} layers of a new length": layers,
        "tilewright, a cache of u8 keys and u4 values": lambda: tilewright.attention(row, cache),
        "tilewright, a token for that cache": lambda: cache.append(token, token),
        "tilewright, a product with u4 weights": lambda: tilewright.linear(x, weight),
        "torch, causal": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    }


def host_times(found: dict[str, Any], device: torch.device, dry: bool) -> None:
    """Medians over rounds of short bursts, after which the device is waited for."""
    given = calls(device)
    for call in given.values():
        for _ in range(3 if dry else 300):  # the first of a length is not what is asked for
            call()
    times: dict[str, list[float]] = {name: [] for name in given}
    for _ in range(3 if dry else 60):
        for name, call in given.items():
            _wait(device)
            began = time.perf_counter()
            for _ in range(20):
                call()
            times[name].append((time.perf_counter() - began) / 20 * 1e6)
    _wait(device)
    found["microseconds"] = {n: round(statistics.median(t), 2) for n, t in times.items()}
    for name, value in found["microseconds"].items():
        print(f"{name:40} {value:8.2f} us a call")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def graphs(found: dict[str, Any], device: torch.device) -> None:
    """A captured call, replayed on other numbers, against the call itself."""
    q, k, v = (torch.randn(SHAPE, device=device).bfloat16() for _ in range(3))
    tilewright.attention(q, k, v, is_causal=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = tilewright.attention(q, k, v, is_causal=True)
    q.copy_(torch.randn(SHAPE, device=device))
    graph.replay()
    want = tilewright.attention(q, k, v, is_causal=True)
    assert isinstance(out, torch.Tensor) and isinstance(want, torch.Tensor)
    found["graph_is_right"] = bool((out == want).all())


def main() -> int:
    """Measures, writes the JSON: 1 if a graph's numbers are wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="JSON to write")
    parser.add_argument("--seconds", type=float, default=20.0, help="(as other suites)")
    parser.add_argument("--dry", action="store_true", help="on the CPU")
    options = parser.parse_args()
    device = torch.device("cpu" if options.dry else "cuda")
    found: dict[str, Any] = {"ok": True}
    with torch.no_grad():
        try:
            host_times(found, device, options.dry)
            if device.type == "cuda":
                graphs(found, device)
                found["ok"] = found["graph_is_right"]
        except BaseException:
            found |= {"ok": False, "error": traceback.format_exc()}
            print(found["error"])
    path = Path(options.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
