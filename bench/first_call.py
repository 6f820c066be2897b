"""One attention kernel in a new process: prints what its parts take, as JSON. Run by ``costs``.

``python -m tilewright.bench.first_call`` measures from torch imported and its threads awake.
"""

from __future__ import annotations

import itertools
import json
import time

import torch


def main() -> None:
    torch.set_num_threads(2)
    q, k, v = (torch.randn(1, 8, 64, 64) for _ in range(3))
    q @ k  # torch's own first call
    marks = [("start", time.perf_counter())]

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter()))

    import tilewright
    from tilewright.bench.programs import attention_text

    text = attention_text(64)
    mark("import_tilewright")
    module = tilewright.parse(text)
    mark("parse")
    program = tilewright.Program(module)
    mark("make_program")
    program(q, k, v)
    mark("first_call")
    program(q, k, v)
    mark("second_call")
    parts = {name: at - before for (_, before), (name, at) in itertools.pairwise(marks)}
    parts["from_torch_imported"] = marks[-2][1] - marks[0][1]
    variant = program.explain().kernels[0].variants[0]
    print(json.dumps(parts | {"from_cache": variant.from_cache, "kernel": variant.seconds}))


if __name__ == "__main__":
    main()
