"""The compiled forms of one Triton kernel for CUDA, started without Triton's launcher.

A form is decided by the device, by which buffers do not lie at multiples of 16 bytes, by whether
blocks are copied in bulk, and by whether some stride needs 64 bits: never by a length.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

from tilewright.backends.triton.build import Chip, compile_for
from tilewright.backends.triton.emit import TritonSource
from tilewright.ir.core import Graph
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.types import BufferType
from tilewright.runtime.cuda.calls import ADDRESSES, element_bytes
from tilewright.runtime.cuda.descriptions import Descriptions, Key
from tilewright.runtime.cuda.driver import Image, Tiling
from tilewright.runtime.cuda.gpus import gpus, refuse_capture
from tilewright.runtime.cuda.odd import OddBuffers
from tilewright.runtime.cuda.repeat import Bound
from tilewright.runtime.cuda.start import Layout, Start, starter
from tilewright.runtime.locks import Guard
from tilewright.runtime.report import MachineReport

BULK = 90  # compute capability from which there is a bulk copy engine
# Triton's numbers of element types inside descriptors are not quite the driver's
_MAP_TYPES = {8: 10, 9: 8, 10: 9}


@dataclass
class Form:
    """One compiled form; ``descriptions``: of the tensors that it copies in bulk."""

    start: Start
    descriptions: Descriptions


class Forms:
    """Forms of a tile program, compiled when first needed. Safe to call from several threads."""

    def __init__(
        self,
        program: Graph,
        plain: TritonSource,
        bulk: TritonSource | None,
        options: dict[str, int],
        reports: list[MachineReport],
    ) -> None:
        self.program, self.plain, self.bulk, self.options = program, plain, bulk, options
        self.reports = reports
        self.forms: dict[tuple[int, int], Form] = {}  # by device and odd buffers
        self.others: dict[tuple[int, int, bool], Form] = {}  # without bulk copies, perhaps wide
        types = [p.type for p in program.params if isinstance(p.type, BufferType)]
        self.odd = OddBuffers([element_bytes(x) for x in types], plain.strides)
        self.guard = Guard()

    def start(
        self, device: int, items: int, values: tuple[int, ...], low: int, keys: tuple[Key, ...]
    ) -> None:
        """Starts the kernel on the device's current stream; the device is the current one."""
        odd = self.odd(values, low)
        form = self.forms.get((device, odd)) or self._first(device, odd)
        descriptions: Sequence[bytes] = ()
        if form.descriptions.tilings:
            try:
                descriptions = list(map(getitem, form.descriptions.known, keys))
            except KeyError:
                found = form.descriptions.find(keys)
                if found is None:
                    form = self._other(device, odd, False)
                else:
                    descriptions = found
        try:
            form.start(items, gpus.stream(device), values, descriptions)
        except struct.error:  # a stride of 2^31 or more
            self._other(device, odd, True).start(items, gpus.stream(device), values, ())

    def bound(
        self, device: int, values: tuple[int, ...], low: int, keys: tuple[Key, ...]
    ) -> Bound | None:
        """What starts this call again with other addresses (``Starts``)."""
        if low > ADDRESSES:
            return None
        form = self.forms.get((device, self.odd(values, low)))
        if form is None or max(values[len(self.odd.widths) :], default=0) >= 1 << 31:
            return None
        descriptions = form.descriptions
        if not descriptions.tilings:
            return form.start, ()
        if descriptions.find(keys) is None:
            return None
        return form.start, descriptions.by_address(keys)

    def _first(self, device: int, odd: int) -> Form:
        """The form that is tried first."""
        with self.guard.lock:
            key = device, odd
            if key not in self.forms:
                bulk = self.bulk
                copied = sum(1 << i for i, _ in bulk.blocks) if bulk else 0
                usable = bulk is not None and gpus.capability(device) >= BULK and not copied & odd
                self.forms[key] = (
                    self._compile(device, odd, bulk, False)
                    if bulk is not None and usable
                    else self._other(device, odd, False)
                )
            return self.forms[key]

    def _other(self, device: int, odd: int, wide: bool) -> Form:
        with self.guard.lock:
            key = device, odd, wide
            if key not in self.others:
                self.others[key] = self._compile(device, odd, self.plain, wide)
            return self.others[key]

    def _compile(self, device: int, odd: int, source: TritonSource, wide: bool) -> Form:
        refuse_capture(self.program.name)
        chip = Chip("cuda", gpus.capability(device))
        made = compile_for(source, self.program, chip, self.options, odd, wide)
        layout = Layout(
            len(source.pointers),
            tuple(len(shape) for _, shape in source.blocks),
            len(source.strides) + len(source.sizes),
            wide,
        )
        _require_startable(self.program.name, made, layout)
        image = Image(
            made.asm["cubin"],
            source.symbol,
            32 * int(self.options["num_warps"]),
            int(made.metadata.shared),
        )
        loaded = gpus.driver.load(image, device)
        blocks = tuple(_tilings(made.metadata.tensordesc_meta)) if source.blocks else ()
        self.reports.append(
            MachineReport(
                self._words(odd, bool(blocks), wide),
                loaded.registers,
                loaded.local_bytes,
                image.shared_bytes,
                int(self.options["num_warps"]),
                int(self.options["num_stages"]),
            )
        )
        start = starter(gpus.driver, image, loaded, layout, device)
        return Form(start, Descriptions(blocks))

    def _words(self, odd: int, bulk: bool, wide: bool) -> str:
        """A form in words."""
        names = [p.hint for i, p in enumerate(self.program.params) if odd >> i & 1]
        words = [f"{', '.join(names)} not at multiples of 16 bytes"] if names else []
        words += ["bulk copies"] if bulk else []
        return "; ".join(words + (["64-bit strides"] if wide else [])) or "plain"


def _tilings(described: Any) -> list[Tiling]:
    return [
        Tiling(
            tuple(x["block_size"]),
            int(x["swizzle"]),
            int(x["elem_size"]),
            _MAP_TYPES.get(int(x["elem_type"]), int(x["elem_type"])),
        )
        for x in described
    ]


def _require_startable(name: str, made: Any, layout: Layout) -> None:
    """UnsupportedError for a kernel that another version of Triton compiled to take its parameters
    in another way."""
    facts = made.metadata
    extra = [
        what
        for what in ("global_scratch_size", "profile_scratch_size", "launch_cooperative_grid")
        if getattr(facts, what, 0)
    ]
    text = made.asm["ptx"]
    head = text[text.index(".entry") : text.index("{", text.index(".entry"))]
    sizes = [_parameter_bytes(line) for line in head.splitlines() if ".param" in line]
    if sizes != layout.sizes() or extra or getattr(facts, "num_ctas", 1) != 1:
        found = f"parameters of {sizes} bytes, {', '.join(extra) or 'nothing else'}"
        raise UnsupportedError(
            f"{name}: Triton {facts.triton_version} compiled a kernel that is started in another "
            f"way than this version of Tilewright knows ({found}); use Triton 3.6 to 3.9"
        )


def _parameter_bytes(line: str) -> int:
    """Bytes of a parameter that PTX declares."""
    if array := re.search(r"\.b8 \w+\[(\d+)\]", line):
        return int(array.group(1))
    number = re.search(r"\.param (?:\.align \d+ )?\.[usfb](\d+)", line)
    return int(number.group(1)) // 8 if number else 0
