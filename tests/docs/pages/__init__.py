"""The generated pages of docs/: what they say comes from the code, so it cannot grow old.

``python -m tests.docs.pages`` writes them; a test compares.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.docs.pages import api, cli, errors, gallery, ir, torch_operations

# path from the root -> what makes its text, or several files' (a page with its pictures)
WRITERS: dict[str, Callable[[], dict[str, str]]] = {
    "docs/reference/ir.md": lambda: {"docs/reference/ir.md": ir.page()},
    "docs/reference/torch.md": lambda: {"docs/reference/torch.md": torch_operations.page()},
    "docs/reference/errors.md": lambda: {"docs/reference/errors.md": errors.page()},
    "docs/reference/cli.md": lambda: {"docs/reference/cli.md": cli.page()},
    "docs/reference/api.md": lambda: {"docs/reference/api.md": api.page()},
    "docs/gallery.md": gallery.files,
}
