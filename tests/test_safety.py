"""No file that others may have written can run code: what the product must not call."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("ir", "passes", "backends", "runtime", "frontend", "bench", "tilewright")
UNSAFE_MODULES = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
# A keyword that has to have a value: otherwise these unpickle.
UNSAFE_UNLESS = {"torch.load": ("weights_only", True)}
UNSAFE_IF = {
    "np.load": ("allow_pickle", True),
    "numpy.load": ("allow_pickle", True),
    "subprocess.run": ("shell", True),
    "subprocess.Popen": ("shell", True),
    "jinja2.Environment": ("autoescape", False),
}
NEVER = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "np.fromfile"}

# file:call -> why it may be there. An entry that nothing needs any more fails.
ALLOWED = {
    "backends/numba/build.py:exec": "Python that our emitter writes from a verified program",
    "backends/numba/build.py:compile": "the same, given its file name for tracebacks",
    "backends/triton/build.py:exec": "Python that our emitter writes from a verified program",
    "backends/triton/build.py:compile": "the same",
    "runtime/calls.py:exec": "calls and their checks; names in them are size_ and an identifier",
    "runtime/calls.py:compile": "the same",
    "bench/own_process.py:pickle": "pipes between a run and a process that it started; no file",
    "runtime/cuda/repeat.py:eval": "a lambda over a number of tensors; no name comes from outside",
}


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an expression; "" for what is no name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := dotted(node.value)):
        return f"{inner}.{node.attr}"
    return ""


def given(call: ast.Call, name: str) -> object:
    """The constant that a keyword is given; None if it is not given, or not a constant."""
    for keyword in call.keywords:
        if keyword.arg == name and isinstance(keyword.value, ast.Constant):
            return keyword.value.value
    return None


def unsafe_call(call: ast.Call) -> str:
    """What is called, if it may run what a file holds; else ""."""
    name = dotted(call.func)
    if name in UNSAFE_CALLS or name in NEVER:
        return name
    if name in UNSAFE_UNLESS:
        keyword, value = UNSAFE_UNLESS[name]
        return "" if given(call, keyword) is value else name
    if name in UNSAFE_IF:
        keyword, value = UNSAFE_IF[name]
        return name if given(call, keyword) is value else ""
    return ""


def unsafe(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of each unsafe import or call in a module's text."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if not node.level else []
        elif isinstance(node, ast.Call):
            if name := unsafe_call(node):
                yield node.lineno, name
            continue
        else:
            continue
        yield from ((node.lineno, n) for n in names if n.split(".")[0] in UNSAFE_MODULES)


# What a text has to contain for its syntax to be worth looking at.
WORDS = re.compile(
    rf"(?<![\w.])({'|'.join(UNSAFE_CALLS)})\(|\b({'|'.join(UNSAFE_MODULES)})\b|"
    + "|".join(re.escape(f".{name.partition('.')[2]}(") for name in (*UNSAFE_UNLESS, *NEVER))
    + r"|allow_pickle|shell\s*=|autoescape"
)


def files() -> list[Path]:
    return sorted(
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if not any(parent.is_symlink() for parent in path.relative_to(ROOT).parents)
    )


def test_no_module_runs_what_a_file_holds() -> None:
    found = {
        f"{path.relative_to(ROOT).as_posix()}:{name}": line
        for path in files()
        if WORDS.search(text := path.read_text(encoding="utf-8"))
        for line, name in unsafe(text)
    }
    wrong = [f"{place} (line {line})" for place, line in found.items() if place not in ALLOWED]
    assert not wrong, f"these may run code from a file: {wrong}; see docs/safety.md"
    assert not set(ALLOWED) - set(found), "entries of ALLOWED that nothing needs any more"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import pickle", "pickle"),
        ("def f():\n    from marshal import loads", "marshal"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "np.load"),
        ("torch.load('x')", "torch.load"),
        ("torch.load('x', weights_only=False)", "torch.load"),
        ("eval(text)", "eval"),
        ("subprocess.run('ls', shell=True)", "subprocess.run"),
        ("yaml.load(file)", "yaml.load"),
        ("torch.load('x', weights_only=True)", None),
        ("np.load('x')\nmodel.eval()\nre.compile('x')\ntilewright.compile(f)", None),
        ("from .pickle import x", None),
    ],
)
def test_the_rule_itself(text: str, name: str | None) -> None:
    assert [found for _, found in unsafe(text)] == ([name] if name else [])
    assert WORDS.search(text) or not name, "the syntax of this text would not be looked at"
