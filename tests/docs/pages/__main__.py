"""``python -m tests.docs.pages [NAME …]``: writes the generated pages whose path has a NAME."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.docs.pages import WRITERS

ROOT = Path(__file__).resolve().parents[3]

if __name__ == "__main__":
    for page, write in WRITERS.items():
        if len(sys.argv) > 1 and not any(name in page for name in sys.argv[1:]):
            continue
        for name, text in write().items():
            (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / name).write_text(text, encoding="utf-8")
            print(name)
