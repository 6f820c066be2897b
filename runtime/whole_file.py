"""Files that are there as a whole or not at all, whoever is killed and whatever disk is full."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from tilewright.ir.errors import TilewrightError


def write_whole(path: Path, data: bytes, error: type[TilewrightError], force: bool = False) -> None:
    """Writes a new file. Raises ``error`` if it exists (``force`` replaces it) or cannot be
    written; what was there stays then."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        with open(fresh, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if force:
            os.replace(fresh, path)
        else:
            os.link(fresh, path)  # fails if it exists by now
    except FileExistsError:
        raise error(f"{path} exists: name another file, or --force to replace it") from None
    except OSError as problem:
        raise error(f"cannot write {path}: {problem.strerror or problem}") from None
    finally:
        with suppress(OSError):
            fresh.unlink()
