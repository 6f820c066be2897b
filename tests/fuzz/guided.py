"""The parser under atheris (libFuzzer): texts that reach lines which none before them reached.

``python -m tests.fuzz.guided --seconds 600 --out FOLDER`` writes them to a folder; needs atheris.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

INSTRUMENTED = ["tilewright.ir", "lark"]


def _dictionary(folder: Path) -> Path:
    """The language's words, which random bytes would not find."""
    from tests.fuzz import texts
    from tilewright.ir.core import REGISTRY

    words = {*texts.WORDS, *texts.MARKS, *texts.STRINGS, *texts.NUMBERS, *REGISTRY, "%a", "%b"}
    words |= {name for op in REGISTRY.values() for name in op.attribute_specs}
    lines = []
    for word in sorted(words - {""}):
        coded = "".join(f"\\x{byte:02x}" for byte in word.encode("utf-8"))
        lines.append(f'"{coded}"')
    path = folder / "dictionary"
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    return path


def main() -> None:
    """Runs until the time is over; libFuzzer prints what it does, and stops at a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.parser_target import take_text
        from tests.fuzz.texts import corpus
        from tilewright.ir.errors import TilewrightError

    folder: Path = given.out
    (folder / "found").mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(corpus()):
        data = text.encode("utf-8", "surrogatepass")
        (folder / "found" / f"start-{number:04}").write_bytes(data)
    options = [
        f"-dict={_dictionary(folder)}",
        f"-max_total_time={given.seconds}",
        f"-seed={given.seed}",
        "-max_len=800",
        "-timeout=10",
        "-rss_limit_mb=4096",
        f"-artifact_prefix={folder}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder / "found")], _once(take_text, TilewrightError))
    atheris.Fuzz()


def _once(take: Callable[[str], str], error: type[Exception]) -> Callable[[bytes], None]:
    def once(data: bytes) -> None:
        with suppress(error):
            take(data.decode("utf-8", "replace"))

    return once


if __name__ == "__main__":
    main()
