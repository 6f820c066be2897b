"""The op map: one handler per torch operation, from FX to tensor-level IR.

Importing this package fills the registry.
"""

from tilewright.frontend.op_map import (
    activations,
    attention,
    contractions,
    elementary,
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
    activations,
    attention,
    contractions,
    elementary,
    generators,
    logic,
    losses,
    norms,
    pointwise,
    reductions,
    routing,
    shape,
)
