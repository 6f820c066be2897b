"""The first call of a new mask or score function: in a new process, with nothing in the cache.

What it takes is measured by ``tilewright bench figures masks``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import json, sys
import torch, tilewright
bias, document = torch.rand(4), torch.arange(40) // 7
def score(s, b, h, q, k):
    return torch.tanh(s / 20) * 20 + bias[h] * (k - q).abs().clamp(0, document.shape[0])
def mask(b, h, q, k):
    return (q >= k) & (document[q] == document[k]) | (k % 4 == 0)
q, k, v = (torch.randn(1, 4, 40, 16) for _ in range(3))
for options in ({"mask_mod": mask}, {"score_mod": score}):
    tilewright.attention(q, k, v, **options)
print(json.dumps([n for n in sys.argv[1:] if n in sys.modules]))
"""
SLOW = ("torch._dynamo", "torch._inductor", "sympy")


def imported_by_first_calls(cache: Path) -> list[str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *SLOW],
        env=os.environ
        | {"PYTHONPATH": path, "TILEWRIGHT_CACHE_DIR": str(cache), "TILEWRIGHT_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: list[str] = json.loads(done.stdout.splitlines()[-1])
    return seen


def test_tracing_imports_neither_dynamo_nor_sympy(tmp_path: Path) -> None:
    assert imported_by_first_calls(tmp_path) == []
