"""Attention as anyone would write it, by PyTorch and through Tilewright, in turns."""

import statistics
import time

import torch

import tilewright


def attention(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / 8, dim=-1) @ v


compiled = tilewright.compile(attention)
q, k, v = (torch.randn(1, 8, 2048, 64) for _ in "qkv")
times = {attention: [], compiled: []}
with torch.no_grad():
    difference = (compiled(q, k, v) - attention(q, k, v)).abs().max()  # compiles
    for _ in range(10):
        for function, seconds in times.items():
            start = time.perf_counter()
            function(q, k, v)
            seconds.append(time.perf_counter() - start)
eager, ours = (statistics.median(x) * 1e3 for x in times.values())
print(f"PyTorch {eager:.0f} ms, Tilewright {ours:.0f} ms: {eager / ours:.1f} times as fast")
print(f"largest difference {difference:.1e}; the scores (128 MiB) were never stored")
