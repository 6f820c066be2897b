"""Starting a loaded kernel: its parameters written in one go, one foreign call, no check.

A launch takes a block of memory from a pool and gives it back, so that threads do not meet: the
driver's configuration, the values of the parameters, what the bulk copy engine knows of tensors,
and the table of their addresses, which never changes. The driver copies parameters while it is
called, so a captured graph keeps its own.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.ir.errors import DeviceError
from tilewright.runtime.cuda.driver import MAP_BYTES, NO_CONTEXT, Driver, Image, Loaded

_LINE = 64  # alignment of a block of memory, and of a tensor's description in it
_CONFIG = (
    "7I4xQ24x"  # CUlaunchConfig (grid, block, shared bytes, stream, no attributes) and padding
)
_MOST_ITEMS = (1 << 31) - 1

Frame = tuple[memoryview, ctypes.c_void_p, ctypes.c_void_p]
Start = Callable[[int, int, Sequence[int], Sequence[bytes]], None]


@dataclass(frozen=True)
class Layout:
    """A kernel's parameters in order: pointers; for each tensor that is copied in bulk (``ranks``)
    a description, its sizes (32 bits) and strides (64 bits); integers, of 64 bits if ``wide``;
    pointers that stay null."""

    pointers: int
    ranks: tuple[int, ...]
    integers: int
    wide: bool = False
    nulls: int = 2

    def sizes(self) -> list[int]:
        """Bytes of every parameter, as the kernel's assembly declares them."""
        found = [8] * self.pointers
        for rank in self.ranks:
            found += [MAP_BYTES, *([4] * rank), *([8] * rank)]
        return found + [8 if self.wide else 4] * self.integers + [8] * self.nulls

    def format(self) -> str:
        """How ``struct`` writes configuration, pointers, integers and descriptions."""
        kind = "q" if self.wide else "i"
        text = f"={_CONFIG}{self.pointers}Q{self.integers}{kind}"
        for rank in self.ranks:
            gap = -struct.calcsize(text) % _LINE
            text += f"{gap}x{_described_bytes(rank)}s"
        gap = -struct.calcsize(text) % 8
        return f"{text}{gap}x8x"  # the null that null pointers are read from

    def offsets(self) -> list[int]:
        """Where in the block every parameter is, in the kernel's order."""
        at = struct.calcsize(f"={_CONFIG}")
        pointers = [at + 8 * i for i in range(self.pointers)]
        at += 8 * self.pointers
        width = 8 if self.wide else 4
        integers = [at + width * i for i in range(self.integers)]
        at += width * self.integers
        described: list[int] = []
        for rank in self.ranks:
            at += -at % _LINE
            described += [at + offset for offset in _described_offsets(rank)]
            at += _described_bytes(rank)
        null = struct.calcsize(self.format()) - 8
        return pointers + described + integers + [null] * self.nulls


def _described_offsets(rank: int) -> list[int]:
    strides = MAP_BYTES + 4 * rank + (4 * rank) % 8
    return [
        0,
        *(MAP_BYTES + 4 * i for i in range(rank)),
        *(strides + 8 * i for i in range(rank)),
    ]


def _described_bytes(rank: int) -> int:
    return MAP_BYTES + 4 * rank + (4 * rank) % 8 + 8 * rank


def described(tensor_map: bytes, shape: Sequence[int], strides: Sequence[int]) -> bytes:
    """A tensor's description with its sizes and strides, as ``Layout`` lays them out."""
    rank = len(shape)
    gap = (4 * rank) % 8
    return tensor_map + struct.pack(f"={rank}i{gap}x{rank}q", *shape, *strides)


def starter(driver: Driver, image: Image, loaded: Loaded, layout: Layout, device: int) -> Start:
    """``start(items, stream, pointers and integers, descriptions)`` for a kernel on a device, which
    must be the current one. DeviceError for what the driver refuses; struct.error for an integer
    that needs 64 bits and has 32."""
    write = struct.Struct(layout.format()).pack_into
    launch, threads, shared = driver.launch, image.threads, image.shared_bytes
    function = ctypes.c_void_p(loaded.function)
    frames: list[Frame] = []
    give = frames.append

    def start(
        items: int, stream: int, values: Sequence[int], descriptions: Sequence[bytes] = ()
    ) -> None:
        try:
            frame = frames.pop()
        except IndexError:
            frame = _new_frame(layout)
        block, config, parameters = frame
        try:
            write(block, 0, items, 1, 1, threads, 1, 1, shared, stream, *values, *descriptions)
        except struct.error:
            if items > _MOST_ITEMS:
                _failed(driver, image, items, 0)
            raise
        code = launch(config, function, parameters, None)
        if code == NO_CONTEXT:  # a thread that has not used the device yet
            driver.set_current(device)
            code = launch(config, function, parameters, None)
        give(frame)
        if code:
            _failed(driver, image, items, code)

    return start


def _failed(driver: Driver, image: Image, items: int, code: int) -> None:
    if items > _MOST_ITEMS:
        raise DeviceError(
            f"{image.symbol}: {items} blocks of work, a launch takes {_MOST_ITEMS}: split the call "
            "along its batch"
        )
    driver.refuse(code, f"start the kernel {image.symbol} with {items} blocks")


def _new_frame(layout: Layout) -> Frame:
    """A block of memory, and the addresses that a launch gives to the driver."""
    offsets, size = layout.offsets(), struct.calcsize(layout.format())
    table = size + (-size % 8)
    memory = (ctypes.c_char * (table + 8 * len(offsets) + _LINE))()
    first = -ctypes.addressof(memory) % _LINE
    start = ctypes.addressof(memory) + first
    block = memoryview(memory)[first : first + table + 8 * len(offsets)]
    struct.pack_into(f"={len(offsets)}Q", block, table, *(start + at for at in offsets))
    return block, ctypes.c_void_p(start), ctypes.c_void_p(start + table)
