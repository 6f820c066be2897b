"""Reserved addresses on a CUDA device, through the driver's virtual memory calls."""

from __future__ import annotations

import weakref
from functools import cache

import torch

from tilewright.ir.errors import ExpertError, SettingError
from tilewright.runtime.expert_memory.address_range import AddressRange
from tilewright.runtime.expert_memory.cuda_driver import CudaDriver
from tilewright.runtime.expert_memory.pace import FULL, Pace
from tilewright.runtime.expert_memory.page_table import Piece

_CHUNK = 16 << 20  # bytes of one copy


class CudaRange(AddressRange):
    """Addresses of one device; each mapped piece is one physical allocation.

    Copies run on one stream of their own: they neither wait for the kernels of other threads nor
    hold them up.
    """

    def __init__(
        self,
        size: int,
        device: torch.device,
        page: int | None = None,
        driver: CudaDriver | None = None,
    ) -> None:
        ordinal = device.index if device.index is not None else torch.cuda.current_device()
        self.device = torch.device("cuda", ordinal)
        self._driver = driver or _driver_of(ordinal)
        self.page = page or self._driver.granularity
        if self.page % self._driver.granularity:
            raise SettingError(
                f"expert memory: pages of {self.page} bytes are no multiple of the device's "
                f"granularity, {self._driver.granularity}"
            )
        self.size = -(-size // self.page) * self.page
        self._block = _Block(self._driver, self.size)

    @property
    def address(self) -> int:
        return self._block.address

    def map(self, piece: Piece) -> None:
        address = self._block.address + piece.offset
        try:
            handle = self._driver.map(address, piece.size)
        except ExpertError:  # perhaps torch's allocator holds what nobody uses
            torch.cuda.empty_cache()
            handle = self._driver.map(address, piece.size)
        self._block.mapped[piece] = handle

    def unmap(self, piece: Piece, pace: Pace = FULL) -> None:
        address = self._block.address + piece.offset
        self._driver.unmap(address, piece.size, self._block.mapped[piece])
        del self._block.mapped[piece]

    def write(self, offset: int, data: torch.Tensor, pace: Pace = FULL) -> None:
        target = _as_tensor(self._block, self.device, offset, len(data))
        stream = _copy_stream(self.device)
        if data.is_cuda:
            # The caller's stream may still compute the data, whose memory must outlive the copy.
            stream.wait_stream(torch.cuda.current_stream(data.device))
            data.record_stream(stream)
        with torch.cuda.stream(stream):
            for at, stop in pace.steps(0, len(data), _CHUNK):
                target[at:stop].copy_(data[at:stop], non_blocking=True)

    def finish(self, start: int, stop: int, pace: Pace = FULL) -> None:
        _copy_stream(self.device).synchronize()

    def settle(self) -> None:
        self._driver.synchronize()

    def tensor(self, size: int) -> torch.Tensor:
        return _as_tensor(self._block, self.device, 0, size)


class _Block:
    """The addresses and what is mapped behind them; given back when the last tensor is gone."""

    def __init__(self, driver: CudaDriver, size: int) -> None:
        self.address = driver.reserve(size)
        self.mapped: dict[Piece, int] = {}  # handles
        weakref.finalize(self, _give_back, driver, self.address, size, self.mapped).atexit = False


class _Exported:
    """Bytes of a block as torch.as_tensor takes them."""

    def __init__(self, block: _Block, offset: int, size: int) -> None:
        self.block = block  # torch keeps this object as long as the tensor
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (block.address + offset, False),
            "strides": None,
            "version": 3,
        }


def _as_tensor(block: _Block, device: torch.device, offset: int, size: int) -> torch.Tensor:
    """uint8 [size]; torch asks the driver for the device of its first byte, which is mapped."""
    return torch.as_tensor(_Exported(block, offset, size), device=device)


def _give_back(driver: CudaDriver, address: int, size: int, mapped: dict[Piece, int]) -> None:
    """Everything mapped, and then the addresses; kernels that were started still read them."""
    driver.synchronize()
    for piece, handle in mapped.items():
        driver.unmap(address + piece.offset, piece.size, handle)
    mapped.clear()
    driver.free(address, size)


@cache
def _driver_of(ordinal: int) -> CudaDriver:
    """One for each device; torch makes its context first."""
    torch.zeros(1, device=f"cuda:{ordinal}")
    return CudaDriver(ordinal)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
