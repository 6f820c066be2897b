"""The text of docs/masks.md and its pictures, from the files of the gallery. Writes nothing."""

from __future__ import annotations

import importlib
import inspect

from examples.masks import NAMES
from examples.masks.drawing import as_svg
from examples.masks.entry import Entry

_HEAD = """\
# Masks and scores

<!-- Written by `python -m examples.masks` from the files in examples/masks/; a test compares. -->

A mask function says whether a query sees a key, a score function changes a score; both are
written for one position, as for torch's FlexAttention, and become part of the kernel. Nothing is
matched by name: a function of your own is treated like these. What a mask cannot let through is
found from its text, block by block: such blocks are neither computed nor read, and blocks without
a hidden pair run without the mask.

Pictures: queries from top to bottom, keys from left to right; what is seen is dark, what is not
is grey. Each file runs by itself: `python -m examples.masks.causal` computes an example, compares
it with the definition in float64 and draws it, as text or into the SVG file named after it.

In all calls q is [B, H, N, D], k and v are [B, H, M, D] (pages and ragged batches as the section
says; fewer key heads than query heads with `enable_gqa=True`). `return_lse=True` and
`return_max=True` add the logarithm of the sum of exponentials and the largest score of each row.
A row that sees no key gives zeros, -inf and -inf.

Numbers that change from call to call (lengths, offsets, numbers of documents) are tensors: those
are read in every call, while a Python number is part of the function, which is compiled for each
of its values.
"""


def entry_of(name: str) -> Entry:
    """The ENTRY of a module of this package."""
    entry = importlib.import_module(f"examples.masks.{name}").ENTRY
    assert isinstance(entry, Entry)
    return entry


def files() -> dict[str, str]:
    """The page and its pictures, by their paths from the root of the repository."""
    pictures = {f"docs/masks/{name}.svg": as_svg(entry_of(name).draw()) for name in NAMES}
    return {"docs/masks.md": "\n".join([_HEAD, *map(_section, NAMES)]), **pictures}


def _section(name: str) -> str:
    """The file's docstring, its picture and its call."""
    entry = entry_of(name)
    text = inspect.getdoc(importlib.import_module(f"examples.masks.{name}")) or ""
    text = text.replace("``", "`")
    return f"""\
## {entry.title}

![{entry.title}](masks/{name}.svg)

{text}

```python
{entry.call}
```

The function: [examples/masks/{name}.py](../examples/masks/{name}.py)
"""
