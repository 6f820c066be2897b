"""Who may ask the server, what a request may look like, and that no request ends it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.playground.conftest import PATIENCE, ask, exchange, headers_of
from tests.playground.planted import misbehave
from tilewright.ir.errors import SettingError
from tilewright.playground.children import Children, Limits, Stopped
from tilewright.playground.serve import MOST_BODY, MOST_CONNECTIONS, Playground

FINE = json.dumps({"kind": "forms", "program": "fine"}).encode()


def test_it_listens_on_this_machine_only(planted: Playground) -> None:
    assert planted.server_address[0] == "127.0.0.1"
    assert planted.url.startswith(f"http://127.0.0.1:{planted.server_port}/?token=")


def test_a_taken_port_is_said(planted: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Playground, "allow_reuse_address", False)
    with pytest.raises(SettingError, match="--port 0 takes any free port"):
        Playground(planted.server_port)


@pytest.mark.parametrize("token", ["", "wrong", "é"])
def test_the_page_needs_the_token(planted: Playground, token: str) -> None:
    path = f"/?token={'%C3%A9' if token == 'é' else token}"
    answer = exchange(planted, "GET", path)
    assert answer.status == 403 and planted.token not in answer.text


def test_the_page_may_load_nothing(planted: Playground) -> None:
    answer = exchange(planted, "GET", f"/?token={planted.token}")
    assert answer.status == 200
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'nonce-")
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    again = exchange(planted, "GET", f"/?token={planted.token}")
    assert again.headers["Content-Security-Policy"] != policy, "a nonce is for one answer"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/etc/passwd", "/../README.md", "/page.css", "/ask", "//x/"])
def test_there_is_no_file(planted: Playground, path: str) -> None:
    assert exchange(planted, "GET", f"{path}?token={planted.token}").status == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"])
def test_other_methods_are_refused(planted: Playground, method: str) -> None:
    assert exchange(planted, method, f"/?token={planted.token}").status == 501


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("X_Tilewright_Token", None, 403),
        ("X_Tilewright_Token", "wrong", 403),
        ("Host", "evil.example", 421),
        ("Host", "127.0.0.1", 421),
        ("Host", "localhost:1", 421),
        ("Origin", "http://evil.example", 403),
        ("Origin", "null", 403),
        ("Origin", "http://127.0.0.1:1", 403),
        ("Sec_Fetch_Site", "cross-site", 403),
        ("Sec_Fetch_Site", "same-site", 403),
        ("Content_Type", "text/plain", 415),  # a form of another site could send it
        ("Content_Type", None, 415),
        ("Content_Length", "x", 411),
        ("Content_Length", "-1", 411),
        ("Content_Length", str(MOST_BODY + 1), 413),
        ("Content_Length", "9" * 40, 413),
        ("Transfer_Encoding", "chunked", 411),
    ],
)
def test_requests_of_others_are_refused(
    planted: Playground, header: str, value: str | None, status: int
) -> None:
    headers = headers_of(planted, **{header: value})
    answer = exchange(planted, "POST", "/ask", FINE, headers)
    assert answer.status == status, answer.text
    assert exchange(planted, "POST", "/ask", FINE, headers_of(planted)).status == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example"])
def test_a_name_that_was_rebound_gets_no_page(planted: Playground, host: str) -> None:
    headers = {"Host": f"{host}:{planted.server_port}"}
    answer = exchange(planted, "GET", f"/?token={planted.token}", headers=headers)
    assert answer.status == 421


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "an object with a kind"),
        (b'{"kind": "forms", "file": "/etc/passwd"}', "no field 'file'"),
        (b'{"kind": "shell"}', "an object with a kind"),
        (b'{"kind": "forms", "rows": -1}', "rows has to be a number"),
        (b'{"kind": "forms", "rows": true}', "rows has to be a number"),
        (b'{"kind": "forms", "sizes": {"N": 1e3}}', "sizes has to be an object of numbers"),
        (b'{"kind": "forms", "passes": "reorder"}', "passes has to be a list"),
        (b'{"kind": "forms", "program": 3}', "program has to be a text"),
        (b'{"kind": "forms", "program": "\\ud800"}', "program has to be a text"),
        (b'{"kind": "code", "backend": "\\ud800"}', "backend has to be a text"),
        (b'{"kind": "simulate", "depths": "q=\\udfff"}', "depths has to be a text"),
        (json.dumps({"kind": "forms", "program": "x" * 65537}).encode(), "at most 65536"),
    ],
)
def test_malformed_requests_are_refused(planted: Playground, body: bytes, says: str) -> None:
    answer = exchange(planted, "POST", "/ask", body, headers_of(planted))
    assert answer.status == 400 and says in answer.json["error"]["message"], answer.text


def test_what_is_no_utf8_is_refused(planted: Playground) -> None:
    assert exchange(planted, "POST", "/ask", b"\xff", headers_of(planted)).status == 400


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("crash", "crashed (SIGSEGV)"),
        ("quit", "exit code 3"),
        ("memory", "stopped at 1 GiB of memory"),
    ],
)
def test_a_child_that_fails_costs_one_answer(planted: Playground, program: str, says: str) -> None:
    answer = ask(planted, kind="forms", program=program)
    assert answer.status == 200 and answer.json["error"]["code"] == "stopped"
    assert says in answer.json["error"]["message"]
    assert ask(planted, kind="tile", program="fine").json == {"fine": True}


def test_a_hang_is_ended(hasty: Playground) -> None:
    answer = ask(hasty, kind="forms", program="hang")
    assert answer.status == 200 and answer.json["error"]["code"] == "stopped"
    assert "stopped after 1 s" in answer.json["error"]["message"]


def _is_gone(process: int) -> bool:
    """True once a process has ended (a zombie that nobody waits for has)."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2]
    except OSError:
        return True
    return state.split()[0] == "Z"


def _wait_for(holds: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are looked up in /proc")
@pytest.mark.parametrize("program", ["hang", "hang-with-a-child"])
def test_a_request_that_is_given_up_ends_its_work(
    planted: Playground, tmp_path: Path, program: str
) -> None:
    """As a browser gives one up: by closing the connection. What the child started ends, too."""
    path = tmp_path / "processes"
    body = json.dumps({"kind": "forms", "program": f"{program} {path}"}).encode()
    lines = [f"POST /ask HTTP/1.1\r\nHost: 127.0.0.1:{planted.server_port}"]
    lines += [f"{name}: {value}" for name, value in headers_of(planted).items()]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
    with socket.create_connection(("127.0.0.1", planted.server_port)) as connection:
        connection.sendall(head.encode() + body)
        _wait_for(lambda: path.exists() and path.read_text(encoding="utf-8").endswith("\n"))
    for process in map(int, path.read_text(encoding="utf-8").split()):
        _wait_for(partial(_is_gone, process))


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are looked up in /proc")
def test_what_a_crashed_child_started_ends(planted: Playground, tmp_path: Path) -> None:
    path = tmp_path / "processes"
    answer = ask(planted, kind="forms", program=f"crash-with-a-child {path}")
    assert "crashed (SIGSEGV)" in answer.json["error"]["message"]
    _wait_for(partial(_is_gone, int(path.read_text(encoding="utf-8"))))


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are looked up in /proc")
def test_the_end_of_the_server_ends_its_work(planted: Playground, tmp_path: Path) -> None:
    path = tmp_path / "processes"
    server = Playground(children=Children(misbehave, Limits(PATIENCE)))
    said: list[str] = []

    def wait() -> None:
        with pytest.raises(Stopped) as caught:
            request = json.dumps({"program": f"hang-with-a-child {path}"})
            server.children.answer(request)
        said.append(str(caught.value))

    thread = threading.Thread(target=wait)
    thread.start()
    _wait_for(lambda: path.exists() and path.read_text(encoding="utf-8").endswith("\n"))
    server.server_close()
    thread.join(PATIENCE)
    assert "SIGKILL" in said[0]
    for process in map(int, path.read_text(encoding="utf-8").split()):
        _wait_for(partial(_is_gone, process))


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="Unix has alarms")
def test_children_end_without_their_server(planted: Playground) -> None:
    answer = ask(planted, kind="forms", program="alarm").json
    assert answer["default"] and 0 < answer["left"] <= PATIENCE + 5


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="signals are looked up in /proc")
def test_the_fork_server_never_hears_ctrl_c() -> None:
    code = (
        "from multiprocessing import forkserver\n"
        "from tilewright.playground.children import Children\n"
        "Children(len, preload=()).begin()\n"
        "print(open(f'/proc/{forkserver._forkserver._forkserver_pid}/status').read())\n"
    )
    command = [sys.executable, "-c", code]
    status = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    masks = dict(line.split(":") for line in status.splitlines() if line.startswith("Sig"))
    unheard = int(masks["SigBlk"], 16) | int(masks["SigIgn"], 16)
    assert unheard >> (signal.SIGINT - 1) & 1


def test_a_thread_that_cannot_start_leaves_its_place(
    planted: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Playground(children=planted.children) as server, monkeypatch.context() as patch:
        monkeypatch.setattr(server.children, "end", lambda: None)

        def fail(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", fail)
        for _ in range(MOST_CONNECTIONS + 1):
            with socket.socket() as connection, pytest.raises(RuntimeError):
                server.process_request(connection, ("127.0.0.1", 0))  # a full server closes it


@pytest.mark.parametrize(("code", "tries"), [("TW014", 2), ("TW025", 2), ("bug", 2), ("TW001", 1)])
def test_errors_that_may_pass_are_not_kept(
    planted: Playground, tmp_path: Path, code: str, tries: int
) -> None:
    path = tmp_path / "counted"
    for _ in range(2):
        answer = ask(planted, kind="forms", program=f"error {code} {path}")
        assert answer.json["error"]["code"] == code
    assert path.read_text(encoding="utf-8") == "x" * tries


def test_answers_are_kept(planted: Playground, tmp_path: Path) -> None:
    path = tmp_path / "counted"
    path.write_text("", encoding="utf-8")
    for _ in range(2):
        assert ask(planted, kind="forms", program=f"count {path}").json == {"fine": True}
    assert path.read_text(encoding="utf-8") == "x"
    for _ in range(2):  # its times are not those of before
        ask(planted, kind="run", program=f"count {path}")
    assert path.read_text(encoding="utf-8") == "xxx"


def test_long_answers_come_whole(planted: Playground) -> None:
    assert len(ask(planted, kind="forms", program="much").text) == (8 << 20) + 2
