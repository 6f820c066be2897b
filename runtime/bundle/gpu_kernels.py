"""A bundle's programs for a GPU: torch's CUDA tensors in and out, kernels started by the driver.

Machine code is loaded for the device of a call when first needed; where the device is newer than
it, its PTX is, which the driver compiles. Neither NVRTC nor Triton is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tilewright.ir.errors import BindError, BundleError
from tilewright.runtime.bundle.arrays import Seen, TorchArrays
from tilewright.runtime.bundle.kernels import Arrays, BundledProgram, Launch
from tilewright.runtime.bundle.manifest import Code, Program, Sized, Step
from tilewright.runtime.cuda.driver import Image
from tilewright.runtime.cuda.gpus import gpus, refuse_capture
from tilewright.runtime.cuda.start import Layout, Start, starter

_16_BYTES = 15  # low bits of addresses of what is moved 16 bytes at once


class CudaArrays(TorchArrays):
    """Tensors of torch on one CUDA device."""

    def key(self, tensors: Sequence[Any]) -> tuple[object, ...]:
        """All that decides a call but addresses."""
        return tuple(
            [(x.dtype, x.shape, x.stride(), x.device, x.layout, x.is_neg()) for x in tensors]
        )

    def place(self, where: str, x: Any) -> None:
        """BindError for a tensor that is not on a GPU."""
        if not getattr(x, gpus.place):
            raise BindError(f"{where} must be on a GPU, the input is on {x.device}")

    def empty(self, shape: tuple[int, ...], dtype: str, like: Sequence[Any]) -> Any:
        return torch.empty(shape, dtype=self.dtypes[dtype], device=like[0].device)


class GpuProgram(BundledProgram):
    """A program of a bundle for a GPU. ``read`` gives a file's bytes, checked; ``chip`` is the
    compute capability that its machine code is for.

    Raises what ``BundledProgram`` does, and DeviceError for what the driver refuses.
    """

    def __init__(
        self,
        program: Program,
        codes: Mapping[str, Code],
        sized: Mapping[str, Sized],
        read: Callable[[str], bytes],
        where: str,
        chip: int,
    ) -> None:
        super().__init__(program, codes, sized, _no_address, where)
        self.read, self.chip = read, chip
        self.starts: dict[tuple[str, int], Start] = {}
        self._fitting: dict[tuple[str, frozenset[int]], Code] = {}

    def _kind(self, arrays: Sequence[Any]) -> Arrays:
        if not any(isinstance(x, torch.Tensor) for x in arrays):
            raise BindError(f"{self.name} is called with torch tensors on a GPU")
        return CudaArrays()

    def _prepare(self, kind: Arrays, arrays: Sequence[Any]) -> list[Launch]:
        devices = {x.device for x in arrays if isinstance(x, torch.Tensor)}
        if len(devices) > 1:
            named = ", ".join(sorted(map(str, devices)))
            raise BindError(f"{self.name}: inputs are on {named}; a kernel runs on one device")
        return super()._prepare(kind, arrays)

    def _started(self, step: Step, code: Code, sizes: dict[str, int], given: list[Seen]) -> Launch:
        return GpuLaunch(step, code, sizes, given, self)

    def start(self, code: Code, device: int) -> Start:
        """What starts a code on a device."""
        found = self.starts.get((code.symbol, device))
        if found is None:
            refuse_capture(code.kernel)
            image = self._image(code, gpus.capability(device))
            loaded = gpus.driver.load(image, device)
            assert code.image is not None, "codes of a GPU have images"
            integers = len(code.image.strides) + len(code.sizes)
            layout = Layout(len(code.params), (), integers, wide=True, nulls=0)
            found = starter(gpus.driver, image, loaded, layout, device)
            self.starts[code.symbol, device] = found
        return found

    def _image(self, code: Code, capability: int) -> Image:
        """Machine code for a chip, or PTX where the chip is newer."""
        image, exact = code.image, self.chip >= 90  # with what 9.0 or 10.0 alone has
        assert image is not None, "codes of a GPU have images"
        if capability == self.chip or (not exact and capability // 10 == self.chip // 10):
            data = self.read(image.cubin)
        elif capability > self.chip and not exact and image.ptx:
            data = self.read(image.ptx) + b"\0"
        else:
            raise BundleError(
                f"{self.where} is for compute capability {self.chip / 10}, this GPU has "
                f"{capability / 10}: make one for it (tilewright bundle --target cuda-sm80 runs on "
                "all newer ones)"
            )
        return Image(data, code.symbol, image.threads, image.shared_bytes)

    def fitting(self, code: Code, odd: frozenset[int]) -> Code:
        """The code of the same form that moves 16 bytes at once of the most buffers, and not of
        ``odd`` ones, which do not lie at multiples of that."""
        found = self._fitting.get((code.symbol, odd))
        if found is None:
            same = [
                c for c in self.codes.values() if (c.form, c.choice) == (code.form, code.choice)
            ]
            fits = [(c.image.wide, c) for c in same if c.image and odd.isdisjoint(c.image.wide)]
            if not fits:
                raise BundleError(f"{self.where} has no {code.kernel} for tensors at odd addresses")
            found = max(fits, key=lambda each: len(each[0]))[1]
            self._fitting[code.symbol, odd] = found
        return found


class GpuLaunch(Launch):
    """A kernel on the device of its inputs, on that device's current stream."""

    def __init__(
        self,
        step: Step,
        code: Code,
        sizes: dict[str, int],
        given: list[Seen],
        program: GpuProgram,
    ) -> None:
        super().__init__(step, code, sizes, given)
        assert code.image is not None, "codes of a GPU have images"
        self.program = program
        self.steps = tuple(self.buffers[b].strides[d] for b, d in code.image.strides)
        self.odd = code.odd([x.strides for x in self.buffers])

    def run(self, kind: Arrays, addresses: list[int], buffers: list[Any]) -> None:
        """Starts the form that addresses and strides allow."""
        device, odd, low = buffers[0].get_device(), self.odd, 0
        for address in addresses:
            low |= address
        if low & _16_BYTES:
            odd |= {i for i, address in enumerate(addresses) if address & _16_BYTES}
        code = self.program.fitting(self.code, odd) if odd else self.code
        if device == gpus.current():
            self._start(code, device, addresses)
            return
        with gpus.on(device):
            self._start(code, device, addresses)

    def _start(self, code: Code, device: int, addresses: list[int]) -> None:
        start = self.program.start(code, device)
        start(self.items, gpus.stream(device), (*addresses, *self.steps, *self.sizes), ())


def _no_address(symbol: str) -> int:
    raise AssertionError(f"{symbol} is not in the library of a CPU")
