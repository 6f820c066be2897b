"""What to keep of an attention layer: its keys and values, or the input that they are made from.

``absorb`` makes the input enough where nothing lies between the projection and the product (no
rotation): products are associative. ``fuse`` makes keys and values again from the input inside the
kernel that reads them, a block at a time, rotated there; they are never in memory. ``Layer`` says
what each way costs and which is fastest, and which fits into memory; on CPUs, what is kept decides
about memory more often than about time.

Source: Tomar et al., "XQuant" (arXiv 2508.10395).
"""

from tilewright.passes.rematerialise.absorb import absorb
from tilewright.passes.rematerialise.cost import (
    ABSORBED,
    FUSED,
    KEYS_AND_VALUES,
    REMADE,
    Balance,
    Cost,
    Layer,
)
from tilewright.passes.rematerialise.fuse import Fused, Last, fuse

__all__ = [
    "ABSORBED",
    "FUSED",
    "KEYS_AND_VALUES",
    "REMADE",
    "Balance",
    "Cost",
    "Fused",
    "Last",
    "Layer",
    "absorb",
    "fuse",
]
