"""Tensors in huge pages are like any others: copies, files, processes; memory is given back."""

from __future__ import annotations

import copy
import io
import os
import weakref
from pathlib import Path

import pytest
import torch

import tilewright
from tilewright.runtime import huge_pages
from tilewright.runtime.huge_pages import PAGE, SMALLEST

LINUX = pytest.mark.skipif(huge_pages._ADVICE is None, reason="no huge pages on request")
SHAPE = (3, SMALLEST // 8 + 1)  # int32: one and a half times the smallest, no whole pages


def numbers() -> torch.Tensor:
    found = huge_pages.empty(SHAPE, torch.int32)
    return found.copy_(torch.arange(found.numel(), dtype=torch.int32).view(SHAPE))


def advised(tensor: torch.Tensor) -> int:
    """Bytes of the mappings of a tensor's memory that ask for huge pages ("hg" in VmFlags)."""
    first, found, inside = tensor.data_ptr(), 0, False
    last = first + tensor.nbytes
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        head = line.split(maxsplit=1)[0]
        if "-" in head and not head.endswith(":"):
            start, stop = (int(part, 16) for part in head.split("-"))
            inside = start < last and first < stop
        elif inside and line.startswith("VmFlags:") and " hg" in line:
            found += min(stop, last) - max(start, first)
    return found


@LINUX
def test_large_tensors_ask_for_them_and_small_ones_do_not() -> None:
    large = numbers()
    assert large.data_ptr() % PAGE == 0 and large.is_contiguous()
    assert advised(large) == large.nbytes // PAGE * PAGE
    small = huge_pages.empty((SMALLEST - 4,), torch.uint8)
    assert small.untyped_storage().resizable() and not large.untyped_storage().resizable()


def test_values_go_wherever_tensors_go(tmp_path: Path) -> None:
    large = numbers()
    assert torch.equal(copy.deepcopy(large), large) and torch.equal(large.clone(), large)
    written = io.BytesIO()
    torch.save({"w": large, "view": large[1:]}, written)
    written.seek(0)
    read = torch.load(written, weights_only=True)
    assert torch.equal(read["w"], large) and torch.equal(read["view"], large[1:])
    module = torch.nn.Module()
    module.register_buffer("w", large)
    other = torch.nn.Module()
    other.register_buffer("w", torch.zeros_like(large))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.w, large)
    assert torch.equal(numbers().share_memory_(), large)


def test_a_stack_is_torchs_stack() -> None:
    parts = list(torch.randn(5, 1 << 18).split(1))
    found = huge_pages.stack(parts)
    assert torch.equal(found, torch.stack(parts)) and found.shape == (5, 1, 1 << 18)


@LINUX
def test_memory_goes_with_the_last_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[weakref.ref[object]] = []
    real = huge_pages._mapped

    def seen(nbytes: int) -> object:
        found = real(nbytes)
        assert found is not None
        kept.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(huge_pages, "_mapped", seen)
    view = numbers()[1:]
    assert kept[0]() is not None
    del view
    assert kept[0]() is None


@LINUX
def test_a_system_without_them_gives_ordinary_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def __init__(self, *_args: object, **_kwargs: object) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(huge_pages.mmap, "mmap", Refused)
    assert numbers().untyped_storage().resizable()


@LINUX
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes by copy")
def test_a_forked_child_has_its_own_copy() -> None:
    large = numbers()
    child = os.fork()
    if not child:
        large[0, 5] += 1  # no threads: they do not survive a fork
        os._exit(0 if int(large[0, 5]) == 6 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert int(large[0, 5]) == 5


@LINUX
def test_packed_weights_lie_in_them(tmp_path: Path) -> None:
    w = torch.randn(4096, 2304)
    weight = tilewright.QuantizedTensor.from_float(w, "u4", group=32)
    assert advised(weight.words) >= weight.words.nbytes - PAGE
    moved = weight.with_layout(weight.layout)
    assert torch.equal(moved.codes(), weight.codes())
    state = {k: v.clone() for k, v in weight.state_dict("w.").items()}
    assert torch.equal(
        tilewright.QuantizedTensor.from_state_dict(state, "w.").dequantize(), weight.dequantize()
    )
