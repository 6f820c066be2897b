"""Arrays without an owner, for compiled loops: Numba would count references at every use."""

from __future__ import annotations

from typing import Any

from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def borrowed(_context: Any, arrays: Any) -> Any:
    """The same named tuple of arrays, of which none has an owner.

    Whoever calls the compiled function keeps the real ones. Ten times faster: a count is an atomic
    operation, which the optimiser may not remove.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        null: Any = cgutils.get_null_value  # Numba has no types
        made = arguments[0]
        for at, kind in enumerate(signature.return_type):
            given = builder.extract_value(arguments[0], at)
            array = context.make_array(kind)(context, builder, given)
            array.meminfo = null(array.meminfo.type)
            array.parent = null(array.parent.type)
            made = builder.insert_value(made, array._getvalue(), at)
        return made

    return arrays(arrays), emit
