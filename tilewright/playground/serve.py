"""The server of the page: this machine only, one token, small JSON requests, nothing from files.

A page of another site can reach 127.0.0.1, too. So every request needs the token; the Host header
has to be ours (a name that somebody rebinds to 127.0.0.1 is not), and so has the Origin.
"""

from __future__ import annotations

import hmac
import os
import secrets
import select
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tilewright.ir.errors import KernelCompileError, MemoryLimitError, SettingError
from tilewright.playground.children import Children, Limits, Stopped, Unwanted, as_json
from tilewright.playground.page import REFUSED, page
from tilewright.playground.request import MOST_PROGRAM, Request
from tilewright.playground.work import error_facts, work

HOST = "127.0.0.1"
MOST_BODY = 6 * MOST_PROGRAM + 16384  # JSON may write a character as six
MOST_CONNECTIONS = 32
NEVER_KEPT = ("run",)  # its times are not those of before
# errors that another try may not have: memory was short, or a compiler was killed
_PASSING = tuple(
    f'"error":{{"code":"{code}"'.encode()
    for code in (MemoryLimitError.code, KernelCompileError.code, "bug")
)
_READ_SECONDS = 10.0
_DRAIN_SECONDS = 0.5

_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Playground(ThreadingHTTPServer):
    """The server. Binds 127.0.0.1 and ``port`` (0: any that is free); raises SettingError if that
    port is taken. ``opened`` is what the page begins with."""

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # Windows would let another program take the port over

    def __init__(
        self,
        port: int = 0,
        limits: Limits | None = None,
        opened: dict[str, Any] | None = None,
        children: Children | None = None,
    ) -> None:
        self.token = secrets.token_urlsafe(24)
        self.opened = opened
        self.children = children or Children(work, limits or Limits())
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise SettingError(
                f"cannot listen on {HOST}:{port}: {error.strerror}; --port 0 takes any free port"
            ) from None

    @property
    def address(self) -> str:
        """Without the token, as Origin headers have it."""
        return f"http://{HOST}:{self.server_port}"

    @property
    def url(self) -> str:
        """What to open."""
        return f"{self.address}/?token={self.token}"

    def hosts(self) -> tuple[str, ...]:
        """What a Host header may say."""
        return tuple(f"{name}:{self.server_port}" for name in (HOST, "localhost"))

    def is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        self.children.begin()
        super().serve_forever(poll_interval)

    def server_close(self) -> None:
        """Ends the work on requests, too."""
        super().server_close()
        self.children.end()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection; closes it where there are too many."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread that would release it
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is no news; the thread ends."""


def _lasts(answer: bytes) -> bool:
    """Whether an answer would be the same again. (Quotes within a text of JSON are escaped: what is
    searched for is never part of a program.)"""
    return not any(error in answer for error in _PASSING)


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class _Handler(BaseHTTPRequestHandler):
    """One request of one connection."""

    server: Playground
    server_version, sys_version = "tilewright", ""
    timeout = _READ_SECONDS

    def do_GET(self) -> None:
        try:
            self._check_place()
            path = urlsplit(self.path)
            if path.path != "/":
                raise _Refused(HTTPStatus.NOT_FOUND, "there is only the page")
            given = parse_qs(path.query).get("token", [""])[0]
            if not self.server.is_token(given):
                self._send(HTTPStatus.FORBIDDEN, "text/html", REFUSED.encode(), "none")
                return
            nonce = secrets.token_urlsafe(16)
            text = page(self.server.token, nonce, self.server.opened)
            self._send(HTTPStatus.OK, "text/html", text.encode(), nonce)
        except _Refused as refused:
            self._refuse(refused)

    def do_POST(self) -> None:
        try:
            self._check_place()
            if urlsplit(self.path).path != "/ask":
                raise _Refused(HTTPStatus.NOT_FOUND, "requests go to /ask")
            if not self.server.is_token(self.headers.get("X-Tilewright-Token", "")):
                raise _Refused(HTTPStatus.FORBIDDEN, "the token is missing or wrong")
            self._answer(self._body())
        except _Refused as refused:
            self._refuse(refused)
        except Unwanted:
            self.close_connection = True

    def _check_place(self) -> None:
        """Refuses a Host that is not ours, and another site's page."""
        if self.headers.get("Host", "") not in self.server.hosts():
            raise _Refused(HTTPStatus.MISDIRECTED_REQUEST, "this is not the server of that host")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in [f"http://{h}" for h in self.server.hosts()]:
            raise _Refused(HTTPStatus.FORBIDDEN, "pages of other sites may not ask")
        site = self.headers.get("Sec-Fetch-Site", "none")
        if self.command == "POST" and site not in ("none", "same-origin"):
            raise _Refused(HTTPStatus.FORBIDDEN, "pages of other sites may not ask")

    def _body(self) -> str:
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "requests are application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or self.headers.get("Transfer-Encoding"):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "requests have a Content-Length")
        if len(length) > 9 or int(length) > MOST_BODY:
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {MOST_BODY} bytes"
            )
        try:
            return self.rfile.read(int(length)).decode("utf-8")
        except UnicodeDecodeError:
            raise _Refused(HTTPStatus.BAD_REQUEST, "the request is not UTF-8") from None
        except TimeoutError:
            raise _Refused(HTTPStatus.REQUEST_TIMEOUT, "the request did not come") from None

    def _answer(self, text: str) -> None:
        try:
            kind = Request.from_json(text).kind
        except SettingError as error:
            body = as_json({"error": error_facts(error)})
            self._send(HTTPStatus.BAD_REQUEST, "application/json", body)
            return
        try:
            body, _ = self.server.children.answer(
                text, self._wanted, lambda answer: kind not in NEVER_KEPT and _lasts(answer)
            )
        except Stopped as stopped:
            body = as_json({"error": {"code": "stopped", "message": str(stopped)}})
        self._send(HTTPStatus.OK, "application/json", body)

    def _wanted(self) -> bool:
        """Whether the browser still waits: a request that it gave up has its connection closed."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        if not readable:
            return True
        try:
            return bool(self.connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _send(self, status: HTTPStatus, kind: str, body: bytes, nonce: str = "none") -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", _POLICY.format(nonce=nonce))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, refused: _Refused) -> None:
        self.close_connection = True
        body = as_json({"error": {"code": str(refused.status.value), "message": refused.reason}})
        self._send(refused.status, "application/json", body)
        self._drain()

    def _drain(self) -> None:
        """Reads what was not read of a refused request: closing before would lose the answer."""
        left = MOST_BODY
        try:
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_DRAIN_SECONDS)
            while left > 0 and (got := self.connection.recv(1 << 16)):
                left -= len(got)
        except OSError:
            pass

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the user's, and addresses hold the token."""
