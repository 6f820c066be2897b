"""All targets by name."""

from __future__ import annotations

from tests.fuzz.campaign import Target
from tests.fuzz.checkpoint_target import CHECKPOINTS
from tests.fuzz.file_targets import FILE_TARGETS
from tests.fuzz.parser_target import PARSER
from tests.fuzz.program_target import PROGRAMS

TARGETS: dict[str, Target] = {
    target.name: target for target in (PARSER, PROGRAMS, CHECKPOINTS, *FILE_TARGETS)
}
