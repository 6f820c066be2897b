"""Our own files, damaged: bundles' manifests, entries of the kernel cache, tuning databases and
their exports, traces, placements, and reports of benchmarks."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tests.fuzz.campaign import Target
from tests.fuzz.damage import damaged_bytes, damaged_json, json_bytes
from tilewright.runtime import entry_file
from tilewright.runtime.bundle.folder import Folder
from tilewright.runtime.bundle.manifest import MANIFEST, digest_of
from tilewright.runtime.bundle.manifest_reading import read_manifest
from tilewright.runtime.cache import Cache, CacheWarning
from tilewright.runtime.native import undefined_symbols
from tilewright.runtime.placement.file import read_placement
from tilewright.runtime.placement.trace import read_trace as read_routing
from tilewright.runtime.tracing.file import read_trace
from tilewright.runtime.tuning.database import Database, Trial, Winner
from tilewright.runtime.tuning.exchange import take_file

CORPUS = Path(__file__).parent / "corpus" / "files"
Draw = Callable[[random.Random], Callable[[], Any]]


@cache
def sample(name: str) -> Any:
    """A JSON file of the corpus."""
    return json.loads((CORPUS / name).read_text(encoding="utf-8"))


def _json(name: str, repaired: Callable[[Any], Any] = lambda value: value) -> Draw:
    """Draws damaged copies of a JSON file, their hashes made right again by ``repaired``."""

    def inputs(source: random.Random) -> Callable[[], bytes]:
        def make() -> bytes:
            value = damaged_json(source, sample(name))
            if source.random() < 0.9:
                value = repaired(value)
            return json_bytes(source, value)

        return make

    return inputs


def _in_file(suffix: str, do: Callable[[Path], object]) -> Callable[[bytes], str]:
    """Takes bytes as a file."""

    def take(data: bytes) -> str:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            path = Path(folder) / f"file{suffix}"
            path.write_bytes(data)
            do(path)
        return "read"

    return take


def _sealed(head: Any) -> Any:
    """A manifest under a hash that is right."""
    if isinstance(head, dict) and isinstance(head.get("bundle"), dict):
        head["sha256"] = digest_of(head["bundle"])
    return head


def _take_bundle(data: bytes) -> str:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        (Path(folder) / MANIFEST).write_bytes(data)
        opened = Folder(folder)
        again = read_manifest(opened.manifest.to_bytes(), "again")
        assert again == opened.manifest, "a manifest that is read is not written as it was"
    return "read"


def _hashed(trace: Any) -> Any:
    """A trace whose texts lie under their hashes: its first text was changed, too."""
    programs = trace.get("programs") if isinstance(trace, dict) else None
    if isinstance(programs, dict):
        for name, text in list(programs.items()):
            if isinstance(text, str):
                data = text.encode("utf-8", "surrogatepass")
                programs[hashlib.sha256(data).hexdigest()] = programs.pop(name)
    return trace


def _entries(source: random.Random) -> Callable[[], bytes]:
    facts = {"kernel": "f", "grid": [["N", 4]], "outputs": [["N", "4"]], "scratch_bytes": 64}

    def make() -> bytes:
        whole = entry_file.pack("ab12", facts, b"\x7fELF" + bytes(60))
        if source.random() < 0.6:
            return damaged_bytes(source, whole)
        text = json_bytes(source, damaged_json(source, facts))
        payload = source.randbytes(source.choice((0, 1, 64)))
        digest = hashlib.sha256(b"ab12" + text + payload).digest()
        sizes = len(text).to_bytes(4, "little") + len(payload).to_bytes(8, "little")
        head = entry_file.MAGIC + entry_file.VERSION.to_bytes(4, "little")
        return head + sizes + digest + text + payload

    return make


def _take_entry(data: bytes) -> str:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        cache = Cache(folder, limit=1 << 20)
        (Path(folder) / "ab12.twk").write_bytes(data)
        (Path(folder) / "ab12.twk").chmod(0o600)
        cache.entries()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheWarning)
            return "read" if cache.get("ab12") else "damaged"


def _objects(source: random.Random) -> Callable[[], bytes]:
    whole = (CORPUS / "kernel.o").read_bytes()
    return lambda: damaged_bytes(source, whole)


def _take_object(data: bytes) -> str:
    from tilewright.runtime.native import _check_form

    _check_form(data, "kernel")  # what stands between a file and LLVM, which would end the process
    undefined_symbols(data)
    return "read"


@cache
def _database() -> bytes:
    """A database with a row in each table."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        made = Database(Path(folder) / "file")
        place = "a" * 32, (3, 4), "cpu", {"rows": 4}
        made.add_all([Trial(*place, "ok", 1.0, 0.5)], [Winner(*place, 1.0, 0.5)])
        with sqlite3.connect(made.path) as file:
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            file.execute("PRAGMA journal_mode = DELETE")
        return made.path.read_bytes()


_VIEWS = (
    "DROP TABLE winners",
    "CREATE VIEW winners AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
    " SELECT x AS kernel, x AS size_class, x AS device, x AS choice FROM c",
    "ALTER TABLE winners ADD COLUMN more TEXT",
    "CREATE TRIGGER t AFTER INSERT ON trials BEGIN DELETE FROM winners; END",
    "UPDATE winners SET choice = '{\"rows\": 1e999}'",
    "UPDATE winners SET choice = zeroblob(100)",
    "UPDATE winners SET size_class = '[' || hex(zeroblob(4000)) || ']'",
    "UPDATE winners SET ratio = 'much'",
    "UPDATE winners SET milliseconds = 9e999",
    "UPDATE trials SET reason = zeroblob(50), state = 7",
    "UPDATE trials SET kernel = x'00ff'",
    "PRAGMA user_version = 7",
    "INSERT INTO tasks VALUES ('k', '[]', '{\"inputs\": 3}')",
    "INSERT INTO tasks VALUES ('k', '[]', '[[[')",
)


def _databases(source: random.Random) -> Callable[[], bytes]:
    def make() -> bytes:
        if source.random() < 0.7:
            return damaged_bytes(source, _database())
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            path = Path(folder) / "file"
            path.write_bytes(_database())
            with sqlite3.connect(path) as file:
                for statement in source.sample(_VIEWS, 2):
                    try:
                        file.execute(statement)
                    except sqlite3.Error:
                        continue  # the other one has removed what this one changes
            file.close()
            return path.read_bytes()

    return make


def _read_database(path: Path) -> None:
    path.chmod(0o600)
    database = Database(path, wait=0.01)
    database.trials(), database.winners(), database.tasks()


def _take_export(path: Path) -> None:
    take_file(Database(path.with_name("fresh"), wait=0.01), path)


def _read_report(path: Path) -> None:
    from tilewright.bench.report.document import load

    load(path)


FILE_TARGETS = (
    Target("bundles", _json("manifest.json", _sealed), _take_bundle),
    Target("traces", _json("trace.json", _hashed), _in_file(".json", read_trace)),
    Target("exports", _json("export.json"), _in_file(".json", _take_export)),
    Target("databases", _databases, _in_file(".sqlite3", _read_database)),
    Target("placements", _json("placement.json"), _in_file(".json", read_placement)),
    Target("routing", _json("routing.json"), _in_file(".json", read_routing)),
    Target("reports", _json("report.json"), _in_file(".json", _read_report)),
    Target("entries", _entries, _take_entry),
    Target("objects", _objects, _take_object),
)
