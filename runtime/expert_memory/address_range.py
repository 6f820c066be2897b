"""The interface of reserved addresses, and which of its implementations serves a device."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod

import torch

from tilewright.ir.errors import SettingError
from tilewright.runtime.expert_memory.pace import FULL, Pace
from tilewright.runtime.expert_memory.page_table import Piece

KINDS = ("auto", "pages", "padded")


class AddressRange(ABC):
    """``size`` bytes of address space, of which only mapped pieces may be touched.

    Implementations keep no count of owners (``PageTable`` does), are used by one loading thread at
    a time, and give everything back when neither they nor any of their tensors is alive.
    """

    page: int  # bytes that are mapped at a time
    size: int
    on_demand = True  # whether what is not mapped takes no memory

    @abstractmethod
    def map(self, piece: Piece) -> None:
        """Memory behind a piece that had none. Raises ExpertError if there is no more."""

    @abstractmethod
    def unmap(self, piece: Piece, pace: Pace = FULL) -> None:
        """Gives back the memory behind a piece that ``map`` got, whole."""

    @abstractmethod
    def write(self, offset: int, data: torch.Tensor, pace: Pace = FULL) -> None:
        """Copies contiguous uint8 [n], of any device, to mapped bytes from ``offset`` on. Visible
        after ``finish``."""

    @abstractmethod
    def finish(self, start: int, stop: int, pace: Pace = FULL) -> None:
        """All writes into [start, stop) are done, and reading it is not slower the first time."""

    @abstractmethod
    def settle(self) -> None:
        """Returns when no kernel started before still reads: what follows may unmap."""

    @abstractmethod
    def tensor(self, size: int) -> torch.Tensor:
        """The first ``size`` bytes as uint8 [size] with a storage of just that size, no copy.

        The first page is mapped by now. Reading bytes of the tensor that are not mapped ends the
        process (or, on a device, its context).
        """


def reserve(
    size: int, device: torch.device, kind: str = "auto", page: int | None = None
) -> AddressRange:
    """Addresses for ``size`` bytes on a device, mapped in pages of ``page`` bytes.

    ``kind``: "pages", "padded" (everything allocated at once), or "auto": pages where the system
    has them. ``page`` is a multiple of the system's page (default: that page; on CUDA the driver's
    granularity). Raises SettingError for what the device cannot do, ExpertError without addresses.
    """
    if kind not in KINDS:
        raise SettingError(f"expert memory: kind {kind!r} is none of {', '.join(KINDS)}")
    if device.type == "cuda" and kind != "padded":
        from tilewright.runtime.expert_memory.cuda import CudaRange

        return CudaRange(size, device, page)
    if device.type == "cpu" and sys.platform == "linux" and kind != "padded":
        from tilewright.runtime.expert_memory.linux import LinuxRange

        return LinuxRange(size, page)
    if kind == "pages":
        raise SettingError(
            f"expert memory: kind 'pages' is for Linux and CUDA, not for {device.type} on "
            f"{sys.platform}; take 'padded' or 'auto'"
        )
    from tilewright.runtime.expert_memory.padded import PaddedRange

    return PaddedRange(size, device, page)
