"""A bundle's first call in a new process, with no compiler there: prints what its parts take, as
JSON. Run by ``bundles``.

``python -m tilewright.bench.bundle_call FOLDER torch|numpy`` measures from torch (or NumPy alone)
imported on.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import time
from typing import Any

REFUSED = ("mlir", "torch_mlir", "llvmlite", "numba", "lark", "triton")


class _Missing:
    """Packages as if they were not installed."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> None:
        if name.split(".", maxsplit=1)[0] in self.names:
            raise ModuleNotFoundError(name)


def main(folder: str, kind: str) -> None:
    sys.meta_path.insert(0, _Missing(REFUSED if kind == "torch" else (*REFUSED, "torch")))
    import numpy as np

    inputs: list[Any] = [np.ones((1, 8, 64, 64), np.float32) for _ in range(3)]
    if kind == "torch":
        torch = importlib.import_module("torch")
        torch.set_num_threads(2)
        inputs = [torch.from_numpy(x) for x in inputs]
        inputs[0] @ inputs[1]  # torch's own first call
    marks = [("start", time.perf_counter())]

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter()))

    import tilewright

    load = tilewright.load_bundle
    mark("import_tilewright")
    bundle = load(folder)
    mark("load_bundle")
    attention = bundle["attention"]
    attention(*inputs)
    mark("first_call")
    attention(*inputs)
    mark("second_call")
    parts: dict[str, Any] = {
        name: at - before for (_, before), (name, at) in itertools.pairwise(marks)
    }
    small = [x[:, :, :1] for x in inputs]
    attention(*small)
    calls = 2000
    start = time.perf_counter()
    for _ in range(calls):
        attention(*small)
    parts["whole_call"] = (time.perf_counter() - start) / calls
    parts["loaded"] = sorted(n for n in REFUSED if n in sys.modules)
    print(json.dumps(parts))


if __name__ == "__main__":
    main(*sys.argv[1:])
