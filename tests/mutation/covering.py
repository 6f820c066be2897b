"""Which tests run which lines, from a run of them under coverage.py with a context for each test
function."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.mutation.sample import ROOT, Mutant

NEAR = 12  # lines above, where a statement may have begun
CONFIG = """
[run]
source =
    {root}/passes
    {root}/ir
data_file = {data}
"""


# Part of a file's path -> test modules that compile and run what comes of it, for tests that were
# not run under coverage; the first that fits.
COMPILED = {
    "to_tile/experts": (
        "test_expert_kernels",
        "test_expert_kernels_lowbit",
        "test_grouped_products",
    ),
    "to_tile/routing": ("test_routing_kernels", "test_routing_choices"),
    "to_tile/lowbit": ("test_lowbit_kernels", "test_linear_kernels", "test_lowbit_activations"),
    "to_tile/cached": ("test_cached_kernels", "test_kv_cache_attention"),
    "to_tile/made": ("test_remade_kernels", "test_layer_input"),
    "remat": ("test_remade_kernels",),
    "whole_blocks/experts": ("backends.test_gpu_corpus",),
    "whole_blocks": ("backends.test_gpu_corpus",),
    "to_threads": ("backends.cuda.test_emit", "backends.cuda.test_forms"),
    "reorder": ("test_crossed_sums", "test_fused_programs"),
    "inner_products": ("test_inner_products",),
    "shared_operand": ("test_inner_products", "test_crossed_sums", "test_masked_kernels"),
    "to_tile": ("test_masked_kernels", "test_attention_kernels", "test_fused_programs"),
}


def compiling(file: str) -> set[str]:
    """The test modules that compile and run what comes of a file."""
    hinted = next((some for part, some in COMPILED.items() if part in file), ())
    return {f"tests.{x}" for x in hinted}


def configuration(folder: Path) -> Path:
    """What coverage.py is to be told, as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "coveragerc"
    text = CONFIG.format(root=ROOT, data=folder.resolve() / "data")
    config.write_text(text, encoding="utf-8")
    return config


def function_of(test: str) -> str:
    """A test's function as coverage.py names it: ``tests/ir/test_a.py::test_b[c]`` is
    ``tests.ir.test_a.test_b``."""
    file, _, name = test.partition("::")
    return f"{file.removesuffix('.py').replace('/', '.')}.{name.partition('[')[0]}"


def words_in_common(file: str, test: str) -> int:
    """How many words of a file's path a test's module has in its name."""
    module = function_of(test).rpartition(".")[0]
    return len(
        set(re.findall("[a-z]+", file)) & set(re.findall("[a-z]+", module)) - {"passes", "to"}
    )


class Covering:
    """Test functions by line. ``data``: files of coverage.py, of one or more runs."""

    def __init__(self, data: Sequence[Path]) -> None:
        from coverage import CoverageData

        self.lines: dict[str, dict[int, set[str]]] = {}
        self.sizes: dict[str, int] = {}  # lines that a test runs
        for file in data:
            known = CoverageData(str(file))
            known.read()
            for path in known.measured_files():
                self._take(path, known.contexts_by_lineno(path))
        self.modules = {name.rpartition(".")[0] for name in self.sizes}

    def _take(self, path: str, contexts: dict[int, list[str]]) -> None:
        parts = Path(path).parts
        start = max(parts.index(x) for x in ("ir", "passes") if x in parts)
        lines = self.lines.setdefault("/".join(parts[start:]), {})
        for line, names in contexts.items():
            tests = {name for name in names if name.startswith("tests.")}
            lines.setdefault(line, set()).update(tests)
            for test in tests:
                self.sizes[test] = self.sizes.get(test, 0) + 1

    def functions(self, mutant: Mutant) -> set[str]:
        """The test functions that run a mutant's line, or of what runs at import its file."""
        lines = self.lines.get(mutant.file, {})
        for line in range(mutant.line, max(0, mutant.line - NEAR), -1):
            if line in lines:
                return lines[line] or set().union(*lines.values())
        return set()

    def may_run(self, mutant: Mutant, test: str) -> bool:
        """Whether a test of which coverage says nothing may run a mutant's line: those of passes,
        and what compiles and runs kernels of its kind."""
        module = function_of(test).rpartition(".")[0]
        if module in self.modules:
            return False
        return module.startswith("tests.passes.") or module in compiling(mutant.file)
