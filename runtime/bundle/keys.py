"""What code in a bundle is known by: a hash of the program, and of the form that it is compiled in.

Not of the compiler's version, as the kernel cache's keys are: code that was compiled from a program
stays right for it. Nor of the processor: a bundle as a whole is for one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from tilewright.ir.core import Graph
from tilewright.ir.printer import print_graph
from tilewright.runtime.graph_text import anonymous, table_text


def stream_key(graph: Graph, rows: int, units: tuple[int, ...]) -> tuple[str, str]:
    """Hashes of a stream graph's form, and of the graph alone."""
    text = print_graph(anonymous(graph)) + table_text(graph)
    return _digest("stream", text, f"rows {rows}, units {units}"), _digest("stream", text)


def choice_key(form: str, choice: Mapping[str, object]) -> str:
    """The hash of a form compiled with some fields of its schedule chosen."""
    return _digest("choice", form, *(f"{k}={v}" for k, v in sorted(choice.items())))


def tile_key(program: Graph) -> str:
    """The hash of a tile program."""
    return _digest("tile", print_graph(program))


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
