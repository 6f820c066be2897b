"""The page: one HTML text with its style, scripts and data inside. Nothing else is ever loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tilewright
from tilewright.passes.pipeline import TO_KERNELS
from tilewright.playground.answers.code import LANGUAGES
from tilewright.playground.answers.program import about
from tilewright.playground.answers.tiles import target_names
from tilewright.playground.request import MOST_PROGRAM

_FOLDER = Path(__file__).parent
# in the order in which they are put together
SCRIPTS = ("base", "highlight", "editor", "state", "forms", "layouts", "plot", "panels", "main")
FIRST = "attention"
# examples as the page lists them; those not named here follow by name
_TITLES = {
    "attention": "Attention, as written down",
    "causal_attention": "Causal attention",
    "differential_attention": "Differential attention",
    "sigmoid_attention": "Sigmoid attention",
    "cross_entropy": "Cross entropy of logits",
    "entropy": "Entropy of attention",
    "log_sum_exp": "Log-sum-exp",
    "variance": "Variance",
    "layer_norm_product": "LayerNorm and a product",
    "low_bit_product": "Product with 6-bit weights",
    "routing": "Routing tokens to experts",
    "naive": "Streams: naive attention",
    "safe_softmax": "Streams: safe softmax",
    "reordered_division": "Streams: division moved",
    "memory_free": "Streams: memory free",
}


def examples() -> list[dict[str, str]]:
    """The programs of the menu: name, title, text."""
    found = {p.stem: p for p in sorted((_FOLDER / "programs").glob("*.tw"))}
    names = [n for n in _TITLES if n in found] + [n for n in found if n not in _TITLES]
    return [
        {
            "name": name,
            "title": _TITLES.get(name, name.replace("_", " ")),
            "text": found[name].read_text(encoding="utf-8"),
        }
        for name in names
    ]


def page(token: str, nonce: str, opened: dict[str, Any] | None = None) -> str:
    """The page for one answer of the server: ``nonce`` marks what may run, ``token`` is sent with
    every request, ``opened`` is a state to begin with (such as a program from a file)."""
    data = {
        "token": token,
        "version": tilewright.__version__,
        "examples": examples(),
        "first": FIRST,
        "opened": opened,
        "targets": target_names(),
        "languages": [{"key": key, "title": title} for key, title in LANGUAGES.items()],
        "passes": [{"name": p.name, "about": about(p)} for p in TO_KERNELS],
        "mostProgram": MOST_PROGRAM,
    }
    # "</script>" and "<!--" in a program must not end the element
    text = json.dumps(data).replace("<", "\\u003c")
    parts = {
        "NONCE": nonce,
        "STYLE": _file("page.css"),
        "DATA": text,
        "SCRIPT": "\n".join(_file(f"{name}.js") for name in SCRIPTS),
    }
    # in one go: what is put in is not searched for marks
    return re.sub(r"@(NONCE|STYLE|DATA|SCRIPT)@", lambda m: parts[m[1]], _file("page.html"))


def _file(name: str) -> str:
    return (_FOLDER / "page" / name).read_text(encoding="utf-8")


REFUSED = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Tilewright playground</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"></head><body>
<h1>This address lacks its token</h1>
<p>Open the address that <code>tilewright playground</code> printed. A link from somebody else:
<code>tilewright playground --link 'LINK'</code>, or paste its part from # on behind that
address.</p>
</body></html>
"""
