"""The op map: one handler per torch operation, from FX to tensor-level IR.

Importing this package fills the registry.
"""

from tilewright.frontend.op_map import (
    attention,
    contractions,
    generators,
    logic,
    losses,
    norms,
    pointwise,
    reductions,
    routing,
    shape,
)

FILLED = (
    attention,
    contractions,
    generators,
    logic,
    losses,
    norms,
    pointwise,
    reductions,
    routing,
    shape,
)
