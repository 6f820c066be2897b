"""``python -m tests.fuzz TARGET --inputs N``: a campaign, with its state in a file.

``python -m tests.fuzz record STATE … --out FILE``: what several have done, in one file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.fuzz.campaign import Tally, campaign
from tests.fuzz.record import write
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Runs what the arguments say; 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*TARGETS, "record"])
    parser.add_argument("states", type=Path, nargs="*", help="for record")
    parser.add_argument("--out", type=Path, help="for record")
    parser.add_argument("--inputs", type=int, default=100_000, help="how many in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--chunk", type=int, default=10_000, help="inputs between two states")
    parser.add_argument("--state", type=Path, help="JSON to go on from and to write to")
    arguments = parser.parse_args()
    if arguments.target == "record":
        if arguments.out is None:
            parser.error("record needs --out FILE")
        write(arguments.states, arguments.out)
        return 0
    state: Path | None = arguments.state
    if state is not None and state.exists():
        tally = Tally.load(state)
    else:
        tally = Tally(arguments.target, arguments.seed, arguments.chunk)
    if tally.target != arguments.target:
        parser.error(f"{state} belongs to the target {tally.target}")
    campaign(TARGETS[tally.target], tally, arguments.inputs, state)
    facts = {"outcomes": dict(tally.outcomes), "slowest": round(tally.slowest_seconds, 3)}
    print(tally.target, tally.inputs, "inputs", round(tally.seconds), "s", json.dumps(facts))
    for found in tally.findings:
        print(f"\n{found.count} x {found.error}\n  at {found.where}\n  {found.input[:600]}")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
