"""``verify=True`` of programs: the first call of every kind against the oracle.

Checked is the first call of every class of calls (``call_class``) and every call that compiled
something: each compiled form at least once, and no call of a loop that decodes token after token.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from tilewright.ir.core import Module
from tilewright.ir.errors import EvaluationError, SettingError
from tilewright.runtime.verification.bounds import bounded
from tilewright.runtime.verification.compare import compare, to_numpy

ALWAYS = "always"
FEW = 16  # sizes up to here choose among forms; larger ones are told apart by powers of two


def checked_option(verify: object) -> bool | str:
    """The option as it is. Raises SettingError for what it cannot be."""
    if isinstance(verify, bool) or verify == ALWAYS:
        return verify
    raise SettingError(f'verify is False, True (first calls) or "always", not {verify!r}')


def call_class(inputs: Sequence[torch.Tensor]) -> Hashable:
    """What calls of one class share: dtypes, devices, which dimension has stride one, and sizes,
    those above 16 by powers of two."""
    return tuple(
        (
            x.dtype,
            x.device.type,
            _unit(x),
            tuple(n if n <= FEW else -n.bit_length() for n in x.shape),
        )
        for x in inputs
    )


def _unit(x: torch.Tensor) -> int:
    """The last dimension with stride one, -1 if none."""
    strides = x.stride()
    return max((d for d in range(x.dim()) if strides[d] == 1), default=-1)


def compiled_forms(program: object) -> int:
    """How many forms of a program's kernels are compiled so far."""
    steps = getattr(program, "steps", ())
    return sum(len(step.family.reports) for step in steps if step.family is not None)


class FirstCalls:
    """Which calls of a program are checked, as ``verify`` says. ``program``: whose forms count."""

    def __init__(self, verify: bool | str) -> None:
        self.verify = verify
        self.right: set[Hashable] = set()  # classes of calls that were found right
        self.forms = 0  # compiled when the last check ended

    def wanted(self, program: object, inputs: Sequence[torch.Tensor]) -> bool:
        """Whether a call, after which this is asked, is to be checked."""
        if self.verify == ALWAYS or compiled_forms(program) != self.forms:
            return bool(self.verify)
        return bool(self.verify) and call_class(inputs) not in self.right

    def passed(self, program: object, inputs: Sequence[torch.Tensor]) -> None:
        """A call was checked and is right."""
        self.right.add(call_class(inputs))
        self.forms = compiled_forms(program)


class CheckedCall:
    """A program's call with the oracle behind it. ``inner``: the call."""

    def __init__(
        self,
        program: object,
        module: Module,
        inner: Callable[..., tuple[torch.Tensor, ...]],
        verify: bool | str,
    ) -> None:
        self.program, self.module, self.inner = program, module, inner
        self.first = FirstCalls(verify)

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The results. Raises EvaluationError if one is out of its bound."""
        results = self.inner(*tensors)
        if self.first.wanted(self.program, tensors):
            check_results(self.module, tensors, results)
            self.first.passed(self.program, tensors)
        return results


def check_results(module: Module, inputs: Sequence[torch.Tensor], results: Sequence[Any]) -> None:
    """Raises EvaluationError if results are farther from the oracle's than the bound."""
    exact = bounded(module.main, *(to_numpy(x.cpu()) for x in inputs))
    found = compare([to_numpy(x.cpu()) for x in results], exact)
    if not found.good:
        hint = module.main.results[found.result].hint
        raise EvaluationError(
            f"verify=True: %{hint} of {module.main.name} is {found.error:.3g} away from float64, "
            f"{found.bound:.3g} is the bound (docs/verify.md); please report it:\n{module}"
        )
