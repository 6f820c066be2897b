"""A fault in what runs at import: a process of its own that reads the changed text."""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from tests.mutation.sample import ROOT, Mutant

STARTING = 60.0  # seconds of processor time for importing and collecting
MOST_TESTS = 40  # on a command line


def try_alone(mutant: Mutant, tests: Sequence[str], share: float) -> tuple[str, str, float]:
    """State, the test that found it, and seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder) / "changed.py"
        changed.write_text(mutant.source, encoding="utf-8")
        command = [sys.executable, "-m", __name__, mutant.file, str(changed), *tests[:MOST_TESTS]]
        limit = int(STARTING + share)

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))

        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limited, check=False
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode == -signal.SIGXCPU:
        return "timeout", "", seconds
    if done.returncode == 0:
        return ("survived" if len(tests) <= MOST_TESTS else "cut"), "", seconds
    failed = [x for x in done.stdout.splitlines() if x.startswith(("FAILED", "ERROR"))]
    return "killed", failed[0].split(" - ")[0].split(" ", 1)[1] if failed else "at import", seconds


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, with another text."""

    def __init__(self, name: str, file: Path, changed: Path) -> None:
        self.name, self.file, self.changed = name, file, changed

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        loader = _Loader(name, str(self.file))
        loader.text = self.changed.read_text(encoding="utf-8")
        places = [str(self.file.parent)] if self.file.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            name, self.file, loader=loader, submodule_search_locations=places
        )


class _Loader(SourceFileLoader):
    text = ""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.text, self.path, "exec")


def module_of(file: str) -> str:
    """The name that a file is imported by."""
    parts = Path("tilewright", file).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def main(file: str, changed: str, *tests: str) -> int:
    """Runs tests in this process, where one file has another text."""
    import pytest

    sys.meta_path.insert(0, _Finder(module_of(file), ROOT / "tilewright" / file, Path(changed)))
    for each in [x for x in sys.modules if x.startswith("tilewright")]:
        del sys.modules[each]  # nothing of it is imported before
    code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", *tests]))
    return 0 if code == int(pytest.ExitCode.OK) else 1


if __name__ == "__main__":
    result = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(result)
