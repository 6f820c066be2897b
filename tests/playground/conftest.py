"""A server for all tests of the page, one whose children misbehave, and how to ask them."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.playground.planted import misbehave
from tilewright.playground.children import GIB, Children, Limits
from tilewright.playground.serve import Playground

PATIENCE = 300.0  # seconds: of a machine that does much else
PROGRAMS = Path(__file__).parents[2] / "examples"


@contextmanager
def serving(server: Playground) -> Iterator[Playground]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    """The playground as users have it, with kernels in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:  # children inherit it
        patch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        with serving(Playground(0, Limits(PATIENCE))) as found:
            yield found


@pytest.fixture(scope="session")
def planted(server: Playground) -> Iterator[Playground]:
    """Children that hang, crash and so on, with little memory. (After ``server``, whose preloading
    the fork server of this process has.)"""
    limits = Limits(PATIENCE, memory=GIB)
    with serving(Playground(children=Children(misbehave, limits))) as found:
        yield found


@pytest.fixture
def hasty(planted: Playground, monkeypatch: pytest.MonkeyPatch) -> Playground:
    """The same with a second for each request: only for those that would never end."""
    monkeypatch.setattr(planted.children, "limits", Limits(1.0, memory=GIB))
    return planted


class Answer:
    """Status, headers and JSON (or text) of a response."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers = response.status, response.headers
        self.text = response.read().decode()
        self.json: Any = None
        if "json" in response.headers.get("Content-Type", ""):
            self.json = json.loads(self.text)


def exchange(
    server: Playground,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=PATIENCE)
    try:
        connection.request(method, path, body, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def headers_of(server: Playground, **changes: str | None) -> dict[str, str]:
    """What the page sends; ``changes`` replace headers, None leaves one out."""
    usual: dict[str, str | None] = {
        "Content-Type": "application/json",
        "X-Tilewright-Token": server.token,
        "Origin": server.address,
    }
    usual |= {name.replace("_", "-"): value for name, value in changes.items()}
    return {name: value for name, value in usual.items() if value is not None}


def ask(server: Playground, **request: Any) -> Answer:
    return exchange(server, "POST", "/ask", json.dumps(request).encode(), headers_of(server))


@pytest.fixture(scope="session")
def example() -> Callable[[str], str]:
    """The text of a program in examples/ by its name."""
    return lambda name: (PROGRAMS / f"{name}.tw").read_text(encoding="utf-8")
