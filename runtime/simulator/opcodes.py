"""The numbers of the operations that the engine interprets."""

from __future__ import annotations

POINTWISE = (
    *("add", "sub", "mul", "div", "mod", "max", "min", "pow", "and", "or", "not", "neg", "abs"),
    *("exp", "exp2", "log", "log2", "tanh", "sqrt", "rsqrt", "round", "sigmoid", "fma"),
    *("fraction", "scale2", "larger", "smaller", "lt", "le", "gt", "ge", "eq", "ne", "select"),
    *("copy", "truncate", "to_bool", "integer_div", "integer_mod", "integer_pow", "erf"),
)
CODE = {name: at for at, name in enumerate(POINTWISE)}
# on whole elements
SOURCE, SINK, INDEX, GATHER, CONTRACT, FOLD, REDUCE, RESCALED, SCAN = range(100, 109)
SUM, MAXIMUM, MINIMUM = 0, 1, 2
KINDS = {"sum": SUM, "max": MAXIMUM, "min": MINIMUM}
