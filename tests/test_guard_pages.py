"""Generated code stays inside its memory: every array lies beside a page that nobody may touch."""

from __future__ import annotations

import json
import sys

import pytest

from tests.guarded import Guard, child, run_in_child

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are Linux's")


def test_kernels_of_all_kinds_touch_nothing_outside() -> None:
    """Products, attention, caches, rows, routing, experts; both widths of lanes, Numba; both ends
    of every array. ``python -m tests.guarded --set everything`` goes through all tails."""
    calls, faults = run_in_child(["--set=fast"])
    assert not faults
    assert calls > 250


def test_one_element_too_far_is_seen_on_either_side() -> None:
    done = child(["--set=planted", "--progress=/dev/null"])
    assert done.returncode == 0, done.stderr
    wanted = ["planted 1, guarded after", "planted -1, guarded before"]
    assert json.loads(done.stdout.splitlines()[-1])["faults"] == wanted


@pytest.mark.parametrize("side", ["after", "before"])
def test_memory_has_the_numbers_and_strides_that_it_copies(side: str) -> None:
    import torch

    given = torch.arange(35.0).view(5, 7)[:, :4].mT
    copied = Guard(side).copy(given)
    assert torch.equal(copied, given) and copied.stride() == given.stride()
    end = copied.data_ptr() + 4 * (4 * 7 + 4)
    assert (end if side == "after" else copied.data_ptr()) % 4096 == 0
