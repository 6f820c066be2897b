"""The form of one file of the kernel cache: header, metadata (JSON), payload; checked by a hash.

It knows bytes only: where files lie and how long they live is the cache's business. Damage is a
ValueError here, which the cache turns into a warning and a miss; no user meets it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAGIC = b"TWKERNEL"
VERSION = 1
MOST_METADATA = 1 << 20  # bytes
# magic, version, bytes of metadata, bytes of payload, sha256 of key + metadata + payload
_HEADER = struct.Struct("<8sIIQ32s")
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True)
class Entry:
    """What was kept for a key: facts about it as JSON, and its bytes."""

    metadata: dict[str, Any]
    payload: bytes


def pack(key: str, metadata: Mapping[str, Any], payload: bytes) -> bytes:
    """The file's bytes."""
    facts = json.dumps(dict(metadata), sort_keys=True).encode()
    digest = _digest(key, facts, payload)
    return _HEADER.pack(MAGIC, VERSION, len(facts), len(payload), digest) + facts + payload


def unpack(key: str, data: bytes) -> Entry:
    """The entry in a file's bytes; ValueError says what is wrong with them."""
    facts_bytes, payload_bytes, digest = _header(data)
    if len(data) != HEADER_BYTES + facts_bytes + payload_bytes:
        wanted = HEADER_BYTES + facts_bytes + payload_bytes
        raise ValueError(f"{len(data)} bytes long instead of {wanted}")
    facts, payload = data[HEADER_BYTES:][:facts_bytes], data[HEADER_BYTES + facts_bytes :]
    if _digest(key, facts, payload) != digest:
        raise ValueError("checksum does not match")
    return Entry(metadata(facts), payload)


def metadata(data: bytes) -> dict[str, Any]:
    """The facts in an entry's metadata; ValueError says what is wrong with them."""
    try:
        facts = json.loads(data)
    except RecursionError:
        raise ValueError("its metadata are nested too deeply") from None
    if not isinstance(facts, dict):
        raise ValueError("its metadata are no JSON object")
    return facts


def metadata_bytes(head: bytes) -> int:
    """How many bytes of metadata follow the header, from the header alone."""
    return _header(head)[0]


def _header(data: bytes) -> tuple[int, int, bytes]:
    if len(data) < HEADER_BYTES:
        raise ValueError(f"only {len(data)} bytes long")
    magic, version, facts_bytes, payload_bytes, digest = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"not an entry of version {VERSION}")
    if facts_bytes > MOST_METADATA:
        raise ValueError(f"it says that it has {facts_bytes} bytes of metadata")
    return facts_bytes, payload_bytes, digest


def _digest(key: str, facts: bytes, payload: bytes) -> bytes:
    # the key is in it, so that a file under another entry's name is noticed
    digest = hashlib.sha256(key.encode())
    digest.update(facts)
    digest.update(payload)
    return digest.digest()
