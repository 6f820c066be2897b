"""What the bulk copy engine knows of tensors: encoded once for an address, sizes and strides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tilewright.runtime.cuda.driver import Tiling
from tilewright.runtime.cuda.gpus import gpus
from tilewright.runtime.cuda.start import described
from tilewright.runtime.locks import Guard

Key = tuple[int, ...]  # a buffer's address, sizes and strides
MOST = 2048  # descriptions that are kept, of each tiling


@dataclass
class Descriptions:
    """Descriptions of tensors, for every one of a kernel's tilings; ``whole``: with the sizes and
    strides, as Triton's kernels take them."""

    tilings: Sequence[Tiling]
    whole: bool = True
    known: list[dict[Key, bytes]] = field(default_factory=list)
    guard: Guard = field(default_factory=Guard)

    def __post_init__(self) -> None:
        self.known = self.known or [{} for _ in self.tilings]

    def find(self, keys: Sequence[Key]) -> list[bytes] | None:
        """A description for every tiling, of the tensors that ``keys`` say; None where the engine
        cannot read one."""
        found = []
        for number, key in enumerate(keys):
            rank = len(key) // 2
            if min(key[1:]) <= 0 or any(n >= 1 << 32 for n in key[1 : 1 + rank]):
                return None
            description = self.known[number].get(key)
            found.append(self._made(number, key) if description is None else description)
        return found

    def _made(self, number: int, key: Key) -> bytes:
        description, known = self.encoded(number, key), self.known[number]
        with self.guard.lock:
            if len(known) >= MOST:  # the oldest half goes
                for old in list(known)[: MOST // 2]:
                    del known[old]
            known[key] = description
        return description

    def by_address(self, keys: Sequence[Key]) -> tuple[Callable[[int], bytes], ...]:
        """A function for each tensor of ``keys``, which were found before, that describes one of
        its sizes and strides at another address."""
        return tuple(self._by_address(number, key) for number, key in enumerate(keys))

    def _by_address(self, number: int, key: Key) -> Callable[[int], bytes]:
        here = {key[0]: self.known[number][key]}

        def describe(address: int) -> bytes:
            found = here.get(address)
            if found is None:
                if len(here) >= MOST:
                    here.clear()
                found = here[address] = self.encoded(number, (address, *key[1:]))
            return found

        return describe

    def encoded(self, number: int, key: Key) -> bytes:
        """A new description by the driver."""
        rank = len(key) // 2
        shape, strides = key[1 : 1 + rank], key[1 + rank :]
        made = gpus.driver.tensor_map(self.tilings[number], key[0], shape, strides)
        return described(made, shape, strides) if self.whole else made
