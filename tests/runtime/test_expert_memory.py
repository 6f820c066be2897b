"""Expert memory: what was loaded is there, the rest takes nothing, failures change nothing."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.errors import ExpertError, SettingError
from tilewright.runtime.expert_memory.linux import LinuxRange
from tilewright.runtime.expert_memory.memory import ExpertMemory
from tilewright.runtime.expert_memory.page_table import PageTable
from tilewright.runtime.expert_memory.weight import ExpertWeight

DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.int8, torch.float64]
PAGES = [4096, 3 * 4096, 2 << 20]
linux = pytest.mark.skipif(sys.platform != "linux", reason="mapped pages are Linux's")


def noise(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, generator=generator, dtype=dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit by bit: NaNs and signs of zero count."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


class Model:
    """A memory of two layers, and beside it what must be in it."""

    EXPERTS, SLOTS, ROOM = 5, 3, 4

    def __init__(
        self, sizes: tuple[int, int], dtype: torch.dtype = torch.float32, **options: Any
    ) -> None:
        self.shapes = {"up": (sizes[0], 3), "down": (sizes[1],)}
        self.dtype = dtype
        self.memory = ExpertMemory(self.SLOTS, self.ROOM, **options)
        self.base = {
            layer: {k: noise((self.EXPERTS, *s), dtype, layer) for k, s in self.shapes.items()}
            for layer in (0, 1)
        }
        for layer, weights in self.base.items():
            self.memory.add_layer(layer, weights)
        self.wanted: dict[str, Any] = {}

    def parts(self, chosen: dict[int, set[int]], seed: int) -> dict[Any, Any]:
        return {
            layer: {
                e: {k: noise(s, self.dtype, 10 * seed + e) for k, s in self.shapes.items()}
                for e in experts
            }
            for layer, experts in chosen.items()
        }

    def load(self, name: str, chosen: dict[int, set[int]], seed: int = 1) -> None:
        parts = self.parts(chosen, seed)
        self.memory.load(name, parts)
        self.wanted[name] = parts

    def unload(self, name: str) -> None:
        self.memory.unload(name)
        del self.wanted[name]

    def check(self) -> None:
        """Every byte of the base and of every adapter, found through the maps."""
        assert set(self.memory.snapshot.adapters) == set(self.wanted)
        slots = [a.slot for a in self.memory.snapshot.adapters.values()]
        assert len(slots) == len(set(slots))
        for layer, weights in self.memory.layers.items():
            pi = self.memory.snapshot.maps[layer]
            for key, weight in weights.items():
                assert same(weight.tensor[: self.EXPERTS], self.base[layer][key])
                assert same(weight.base, self.base[layer][key])
            for name, parts in self.wanted.items():
                row = pi[self.memory.snapshot.adapters[name].slot].tolist()
                for expert in range(self.EXPERTS):
                    given = parts.get(layer, {}).get(expert)
                    if given is None:
                        assert row[expert] == expert
                        continue
                    for key, weight in weights.items():
                        assert same(weight.tensor[row[expert]], given[key])

    def state(self) -> Any:
        return (
            self.memory.snapshot,
            self.memory.figures(),
            [r.resident_bytes for r in ranges(self.memory)],
            set(self.memory._taken),
        )


def ranges(memory: ExpertMemory) -> list[LinuxRange]:
    found = [w._range for weights in memory.layers.values() for w in weights.values()]
    return [area for area in found if isinstance(area, LinuxRange)]


chosen_experts = st.fixed_dictionaries(
    {}, optional={layer: st.sets(st.integers(0, 4), min_size=1, max_size=4) for layer in (0, 1)}
).filter(bool)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), chosen_experts, st.integers(1, 99)), max_size=12),
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.sampled_from(DTYPES),
    st.sampled_from(PAGES),
    st.sampled_from(["auto", "padded"]),
)
def test_what_is_loaded_is_there_and_nothing_else_changes(
    steps: list[Any], sizes: tuple[int, int], dtype: torch.dtype, page: int, kind: str
) -> None:
    model = Model(sizes, dtype, page=page, kind=kind)
    for name, chosen, seed in steps:
        if name in model.wanted:
            model.unload(name)
        else:
            model.load(name, chosen, seed)
        model.check()
        figures = model.memory.figures()
        per_expert = (3 * sizes[0] + sizes[1]) * dtype.itemsize
        count = 10 + sum(len(e) for parts in model.wanted.values() for e in parts.values())
        assert figures.existing_bytes == count * per_expert
        assert figures.padded_bytes == 2 * (5 + 3 * 4) * per_expert
        if kind == "padded":
            assert figures.mapped_bytes >= figures.padded_bytes
        else:
            held = sum(area.resident_bytes for area in ranges(model.memory))
            assert held <= figures.mapped_bytes
            assert page > 4096 or held == figures.mapped_bytes


@given(
    st.integers(1, 40),
    st.integers(1, 17),
    st.lists(st.tuples(st.integers(0, 11), st.integers(1, 4)), max_size=30),
)
def test_pages_are_counted_once_for_all_who_touch_them(
    size: int, page: int, steps: list[tuple[int, int]]
) -> None:
    table = PageTable(12 * size, page)
    there: dict[int, int] = {}
    mapped: set[int] = set()

    def pages(piece: Any) -> set[int]:
        assert piece.offset % page == 0 and piece.size % page == 0
        return set(range(piece.offset // page, (piece.offset + piece.size) // page))

    for first, count in steps:
        last = min(12, first + count)
        if first in there:
            for piece in table.give_back(first * size, there.pop(first) * size):
                assert pages(piece) <= mapped
                mapped -= pages(piece)
        elif all(last <= a or b <= first for a, b in there.items()):
            for piece in table.missing(first * size, last * size):
                assert not pages(piece) & mapped
                mapped |= pages(piece)
            table.take(first * size, last * size)
            there[first] = last
        touched = {byte // page for a, b in there.items() for byte in range(a * size, b * size)}
        assert mapped == touched
        assert table.mapped_bytes == page * len(mapped)


@linux
def test_rows_that_do_not_exist_have_no_access() -> None:
    model = Model((700, 3000))
    model.load("a", {0: {1, 3}})
    model.load("b", {0: {0, 1, 2}})
    model.unload("b")
    weight = model.memory.layers[0]["down"]
    area = weight._range
    assert isinstance(area, LinuxRange)
    size = weight.form.nbytes
    exists = {*range(5 * size), *range(5 * size, 7 * size)}
    open_pages = set()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        ends, access = line.split()[:2]
        start, stop = (int(end, 16) for end in ends.split("-"))
        if start < area.address + area.size and stop > area.address and "r" in access:
            first, last = max(start, area.address), min(stop, area.address + area.size)
            open_pages |= set(range((first - area.address) // 4096, (last - area.address) // 4096))
    assert open_pages == {byte // 4096 for byte in exists}


def bad_inputs() -> dict[str, tuple[Callable[[Model], Any], str]]:
    def parts(change: Callable[[Any], Any]) -> Callable[[Model], Any]:
        def call(model: Model) -> Any:
            given = model.parts({0: {0, 2}}, 5)
            return model.memory.load("new", change(given))

        return call

    def swap(given: Any, key: str, data: Any) -> Any:
        given[0][2][key] = data
        return given

    def late() -> Any:
        raise KeyboardInterrupt

    def without(given: Any, key: str) -> Any:
        del given[0][2][key]
        return given

    wrong = torch.zeros(3)
    return {
        "missing layer": (parts(lambda g: {**g, 7: g[0]}), "no layer 7"),
        "missing expert": (parts(lambda g: {0: {**g[0], 5: g[0][0]}}), "0 to 4, not 5"),
        "negative expert": (parts(lambda g: {0: {-1: g[0][0]}}), "not -1"),
        "missing weight": (parts(lambda g: without(g, "up")), "has down; the layer's weights"),
        "size": (parts(lambda g: swap(g, "down", wrong)), r"\[3\], the layer's is .* \[900\]"),
        "dtype": (parts(lambda g: swap(g, "down", g[0][2]["down"].half())), "float16"),
        "rows": (parts(lambda g: swap(g, "up", [wrong, wrong])), "and torch.float32"),
        "late size": (parts(lambda g: swap(g, "up", lambda: [wrong])), "up of expert 2"),
        "late interrupt": (parts(lambda g: swap(g, "up", late)), ""),
        "too many": (lambda m: m.memory.load("new", m.parts({0: set(range(5))}, 5)), "room for 4"),
        "nothing": (parts(lambda g: {0: {}}), "brings no expert"),
        "loaded twice": (lambda m: m.memory.load("a", m.parts({0: {1}}, 5)), "loaded already"),
        "no name": (lambda m: m.memory.load("", m.parts({0: {1}}, 5)), "named by a text"),
        "None": (lambda m: m.memory.load(None, m.parts({0: {1}}, 5)), "not by None"),
        "not loaded": (lambda m: m.memory.unload("new"), "not loaded; loaded are: a, b"),
        "share": (lambda m: m.memory.load("new", m.parts({0: {1}}, 5), share=0.0), "share must"),
        "no lease": (lambda m: m.memory.lease(["new"]).__enter__(), "'new' is not loaded"),
        "late layer": (lambda m: m.memory.add_layer(2, m.base[0]), "adapters are loaded already"),
    }


@pytest.mark.parametrize("case", bad_inputs())
def test_bad_input_is_named_and_changes_nothing(case: str) -> None:
    call, message = bad_inputs()[case]
    model = Model((500, 900))
    model.load("a", {0: {1, 4}, 1: {2}}, 1)
    model.load("b", {0: {0, 1, 2, 3}}, 2)
    before = model.state()
    expected = KeyboardInterrupt if case == "late interrupt" else (ExpertError, SettingError)
    with pytest.raises(expected, match=message or None):
        call(model)
    assert model.state() == before
    model.check()
    model.load("new", {1: {4}}, 3)  # the last slot is still free
    with pytest.raises(ExpertError, match="all 3 slots are taken"):
        model.load("more", {1: {4}})
    model.check()


@linux
def test_no_memory_for_a_copy_is_named_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model((5000, 90000))
    model.load("a", {0: {1, 4}, 1: {2}})
    before, calls, real = model.state(), iter(range(10**9)), os.pwrite

    def full(*arguments: Any) -> int:
        if next(calls) >= 3:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ExpertError, match=r"no room for experts: .*No space"):
        model.memory.load("b", model.parts({0: {0}, 1: {3, 4}}, 9))
    monkeypatch.undo()
    assert model.state() == before
    model.check()


def test_an_adapter_in_use_stays() -> None:
    model = Model((50, 90))
    model.load("a", {0: {1}})
    before = model.state()
    with model.memory.lease(["a"]), model.memory.lease(["a"]):
        with pytest.raises(ExpertError, match="in use by 2 calls"):
            model.memory.unload("a")
        assert model.state() == before
        model.load("b", {0: {2}})
        model.unload("b")
    model.unload("a")
    model.check()


def test_readers_keep_the_map_they_began_with() -> None:
    model = Model((50, 90))
    model.load("a", {0: {1}})
    with model.memory.lease(["a"]) as snapshot:
        kept = snapshot.maps[0].clone()
        model.load("b", {0: {2}})
        assert torch.equal(snapshot.maps[0], kept)
        assert not torch.equal(model.memory.snapshot.maps[0], kept)
        assert model.memory.snapshot.maps[1] is snapshot.maps[1]


@linux
def test_everything_is_given_back_when_the_last_tensor_goes() -> None:
    def addresses() -> int:
        return Path("/proc/self/maps").read_text(encoding="utf-8").count("memfd:tilewright")

    before, files = addresses(), len(os.listdir("/proc/self/fd"))
    weight = ExpertWeight(noise((5, 7, 300), torch.float32, 0), 20)
    kept, gone = weight.tensor[1, 2], weakref.ref(weight)
    value = kept.clone()
    del weight
    gc.collect()
    assert gone() is None and torch.equal(kept, value)  # its addresses live as long as a tensor
    assert addresses() > before
    del kept
    assert addresses() == before
    assert len(os.listdir("/proc/self/fd")) == files


@linux
def test_the_base_alone_is_what_a_copy_or_file_of_it_takes(tmp_path: Path) -> None:
    weight = ExpertWeight(noise((5, 7, 300), torch.float32, 0), 200)
    assert weight.base.untyped_storage().nbytes() == 5 * 7 * 300 * 4
    torch.save(weight.base, tmp_path / "base.pt")
    assert torch.equal(torch.load(tmp_path / "base.pt"), weight.base)


def test_a_fork_cannot_change_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model((50, 90))
    model.load("a", {0: {1}})
    monkeypatch.setattr(os, "getpid", lambda: -1)
    for call in (lambda: model.memory.unload("a"), lambda: model.load("b", {0: {1}})):
        with pytest.raises(ExpertError, match="fork"):
            call()
    model.check()


def test_pages_and_kinds_that_do_not_exist_are_named() -> None:
    base = {"up": torch.zeros(2, 3)}
    with pytest.raises(SettingError, match="kind 'x' is none of"):
        ExpertMemory(1, 1, kind="x").add_layer(0, base)
    if sys.platform == "linux":
        with pytest.raises(SettingError, match="pages of 5000 bytes"):
            ExpertMemory(1, 1, page=5000).add_layer(0, base)
    with pytest.raises(ExpertError, match="at least 1"):
        ExpertMemory(0, 4)
    with pytest.raises(ExpertError, match="different numbers of experts"):
        ExpertMemory(1, 1).add_layer(0, base | {"down": torch.zeros(3, 3)})


KILLED = """
import sys, torch
from tilewright.runtime.expert_memory.memory import ExpertMemory
memory = ExpertMemory(2, 4)
memory.add_layer(0, {"up": torch.randn(4, 1 << 20)})
print("loading", flush=True)
memory.load("a", {0: {e: {"up": torch.randn(1 << 20)} for e in range(4)}}, share=0.001)
print("done", flush=True)
"""


@linux
def test_a_process_killed_while_loading_leaves_nothing() -> None:
    before = sorted(os.listdir("/dev/shm"))
    root = Path(__file__).parent.parent.parent
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=root, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "loading\n"
        files = [
            os.readlink(f"/proc/{child.pid}/fd/{n}") for n in os.listdir(f"/proc/{child.pid}/fd")
        ]
        assert any("memfd:tilewright" in file for file in files)
        child.send_signal(signal.SIGKILL)
        assert child.stdout.read() == ""  # it was in the middle of loading
    finally:
        child.kill()
        child.wait()
    assert sorted(os.listdir("/dev/shm")) == before
