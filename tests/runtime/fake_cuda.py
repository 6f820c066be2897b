"""A CUDA driver that keeps books instead of memory, and refuses what a real one would."""

from __future__ import annotations

from typing import Any

GRANULARITY = 2 << 20
INVALID, NO_MEMORY = 1, 2


class FakeCuda:
    """The functions that CudaDriver calls, with the driver's rules: a piece is mapped into reserved
    addresses that have no memory, unmapped whole, released once, and addresses are freed empty."""

    def __init__(self, memory: int = 1 << 40) -> None:
        self.left = memory
        self.calls: list[str] = []
        self.reserved: dict[int, int] = {}  # address -> size
        self.created: dict[int, int] = {}  # handle -> size
        self.mapped: dict[int, tuple[int, int]] = {}  # address -> size, handle
        self.open: set[int] = set()  # addresses that may be accessed
        self.contexts = 0
        self._next = 1 << 32

    def mapped_at(self, address: int) -> bool:
        return any(a <= address < a + s for a, (s, _) in self.mapped.items() if a in self.open)

    def cuInit(self, flags: int) -> int:
        return 0

    def cuGetErrorString(self, code: int, text: Any) -> int:
        text._obj.value = {INVALID: b"invalid argument", NO_MEMORY: b"out of memory"}[code]
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = ordinal
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        context._obj.value = 7
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        self.contexts += 1
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:
        self.contexts -= 1
        return 0

    def cuCtxSynchronize(self) -> int:
        self.calls.append("synchronize")
        return 0 if self.contexts else INVALID

    def cuMemGetAllocationGranularity(self, size: Any, allocation: Any, option: int) -> int:
        size._obj.value = GRANULARITY
        return 0

    def cuMemAddressReserve(self, address: Any, size: int, *rest: int) -> int:
        if size % GRANULARITY or not self.contexts:
            return INVALID
        address._obj.value = self._next
        self.reserved[self._next] = size
        self._next += size + (1 << 32)
        return 0

    def cuMemAddressFree(self, address: int, size: int) -> int:
        inside = any(address <= a < address + size for a in self.mapped)
        if self.reserved.get(address) != size or inside:
            return INVALID
        del self.reserved[address]
        return 0

    def cuMemCreate(self, handle: Any, size: int, allocation: Any, flags: int) -> int:
        if size % GRANULARITY or allocation._obj.type != 1 or allocation._obj.location.type != 1:
            return INVALID
        if size > self.left:
            return NO_MEMORY
        self._next += 1
        self.left -= size
        self.created[self._next] = size
        handle._obj.value = self._next
        return 0

    def cuMemRelease(self, handle: Any) -> int:
        number = getattr(handle, "value", handle)
        if number not in self.created or any(h == number for _, h in self.mapped.values()):
            return INVALID
        self.left += self.created.pop(number)
        return 0

    def cuMemMap(self, address: int, size: int, offset: int, handle: Any, flags: int) -> int:
        self.calls.append("map")
        inside = any(a <= address and address + size <= a + s for a, s in self.reserved.items())
        taken = any(a < address + size and address < a + s for a, (s, _) in self.mapped.items())
        if not inside or taken or address % GRANULARITY or self.created[handle.value] != size:
            return INVALID
        self.mapped[address] = (size, handle.value)
        return 0

    def cuMemSetAccess(self, address: int, size: int, access: Any, count: int) -> int:
        if self.mapped.get(address, (0,))[0] != size or access._obj.flags != 3 or count != 1:
            return INVALID
        self.open.add(address)
        return 0

    def cuMemUnmap(self, address: int, size: int) -> int:
        self.calls.append("unmap")
        if self.mapped.get(address, (0,))[0] != size:  # a part of an allocation, or none
            return INVALID
        del self.mapped[address]
        self.open.discard(address)
        return 0
