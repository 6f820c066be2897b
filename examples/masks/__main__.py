"""docs/masks.md and its pictures, as a command: ``python -m examples.masks``."""

from __future__ import annotations

from pathlib import Path

from examples.masks.page import files

ROOT = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    for name, text in files().items():
        path = ROOT / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(name)
