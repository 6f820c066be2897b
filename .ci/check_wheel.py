"""Whether a wheel is what the sources say: ``check_wheel.py SOURCES FROM_SDIST FROM_SOURCES``.

Both wheels hold the same files with the same bytes; they hold every module and data file of the
packages, and nothing else.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

LINKED = ("ir", "passes", "backends", "frontend", "runtime", "bench")
NOT_INSTALLED = ("bench/results/", "bench/gpu_session.sh")  # tests/test_packaging.py says why


def contents(wheel: Path) -> dict[str, bytes]:
    """Every file of a wheel but the list of its own files."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if not n.endswith("/RECORD")]
        return {name: archive.read(name) for name in names}


def expected(sources: Path) -> dict[str, bytes]:
    """What the packages' folders hold, under installed names."""
    found = {}
    for folder in ("tilewright", *LINKED):
        for path in sorted((sources / folder).rglob("*")):
            name = path.relative_to(sources).as_posix()
            if path.is_file() and "__pycache__" not in name and not name.startswith(NOT_INSTALLED):
                installed = name if folder == "tilewright" else f"tilewright/{name}"
                found[installed] = path.read_bytes()
    return found


def differences(a: dict[str, bytes], b: dict[str, bytes]) -> list[str]:
    """Names that only one has, or whose bytes differ."""
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def main() -> None:
    sources, *wheels = map(Path, sys.argv[1:])
    for wheel in wheels:
        assert wheel.name.endswith("-py3-none-any.whl"), f"{wheel.name} is not pure Python"
    through_sdist, direct = map(contents, wheels)
    if found := differences(through_sdist, direct):
        sys.exit(f"from the sdist and from the sources differ: {found[:20]}")
    installed = {n: data for n, data in direct.items() if ".dist-info/" not in n}
    if found := differences(installed, expected(sources)):
        sys.exit(f"the wheel and the packages' folders differ: {found[:20]}")
    information = {n.partition(".dist-info/")[2] for n in direct if ".dist-info/" in n}
    if missing := {"METADATA", "entry_points.txt", "licenses/LICENSE"} - information:
        sys.exit(f"the wheel lacks {sorted(missing)}")
    print(f"{wheels[0].name}: {len(installed)} files, {sum(map(len, installed.values()))} bytes")


if __name__ == "__main__":
    main()
