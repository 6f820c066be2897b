"""``python -m tests.mutation``: see docs/mutation.md."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path("build") / "mutation"
TESTS = ("tests/ir", "tests/passes", "tests/golden")
SEED = 16


def main() -> int:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("what", choices=["cover", "run", "report"])
    parser.add_argument("tests", nargs="*", default=list(TESTS), help="folders and files of tests")
    parser.add_argument("--count", type=int, default=220, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--minutes", type=float, default=60.0, help="then stop; run again goes on")
    parser.add_argument("--share", type=float, default=60.0, help="processor seconds of a mutant")
    parser.add_argument("--part", default="1/1", help="2/3: the second of three runs side by side")
    parser.add_argument("--again", default="", help="try those of this state once more")
    parser.add_argument("--everything", action="store_true", help="other tests after covering ones")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="coverage and results")
    parser.add_argument("--json", type=Path, help="where report writes")
    given = parser.parse_args()
    os.environ.setdefault("CI", "true")  # Hypothesis draws the same examples for every mutant
    return {"cover": cover, "run": run, "report": report}[given.what](given)


def cover(given: argparse.Namespace) -> int:
    """Runs the tests once under coverage.py, each folder for itself, so that what is done stays."""
    from tests.mutation.covering import configuration

    config = configuration(given.folder)
    coverage = [sys.executable, "-m", "coverage", "run", "--append", f"--rcfile={config}"]
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    pytest += ["-p", "tests.mutation.contexts"]
    codes = [subprocess.run([*coverage, *pytest, x], check=False).returncode for x in given.tests]
    return max(codes)


def run(given: argparse.Namespace) -> int:
    """Tries the mutants of which nothing is known yet."""
    import pytest

    from tests.mutation.covering import Covering
    from tests.mutation.forks import Forks, known_results, written
    from tests.mutation.sample import sample

    results = given.folder / f"results-{given.seed}.jsonl"
    known = known_results(results)
    done = {name for name, x in known.items() if x.state != given.again}
    first, parts = map(int, given.part.split("/"))
    drawn = sample(given.count, given.seed)[first - 1 :: parts]
    mutants = [x for x in drawn if x.name not in done]
    covering = Covering(sorted(given.folder.glob("data*")))
    ends = time.monotonic() + 60 * given.minutes
    tell = written(results)
    forks = Forks(mutants, covering, given.share, tell, ends, given.everything)
    plain = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    return int(pytest.main([*plain, *given.tests], plugins=[forks]))


def report(given: argparse.Namespace) -> int:
    """Counts, and writes them."""
    import json

    from tests.mutation.equivalent import why_equivalent
    from tests.mutation.forks import known_results
    from tests.mutation.sample import sample

    known = known_results(given.folder / f"results-{given.seed}.jsonl")
    drawn = [x.name for x in sample(given.count, given.seed)]
    results = [known[name] for name in drawn if name in known]
    reasons = {x.name: why_equivalent(x) for x in results}
    counted = [x for x in results if not reasons[x.name]]
    states = Counter(x.state for x in counted)
    killed = states["killed"] + states["timeout"]
    value = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "seed": given.seed,
        "drawn": given.count,
        "tried": len(results),
        "equivalent": [
            {"mutant": x.name, "before": x.before, "after": x.after, "reason": reasons[x.name]}
            for x in results
            if reasons[x.name]
        ],
        "counted": len(counted),
        "killed": killed,
        "of them timeouts": states["timeout"],
        "share killed": round(killed / max(1, len(counted)), 4),
        "survivors": [asdict(x) for x in counted if x.state not in ("killed", "timeout")],
        "all killed": [asdict(x) for x in counted if x.state in ("killed", "timeout")],
    }
    if given.json:
        given.json.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    print(f"{len(results)} tried, {len(results) - len(counted)} equivalent, {killed} of ", end="")
    print(f"{len(counted)} killed ({killed / max(1, len(counted)):.1%}; {dict(states)})")
    for x in counted:
        if x.state not in ("killed", "timeout"):
            print(f"{x.state:9} {x.name}\n    - {x.before}\n    + {x.after}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
