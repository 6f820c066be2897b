"""The integer program, solved by HiGHS through SciPy, after ExFlow's (arXiv 2401.08383).

    minimise    Σ A[l,i,j] · (y[l,i,j] + (inter_cost - 1) · z[l,i,j])  +  Σ unary[l,i,d] · x[l,i,d]
                 +  known · u
    Σ_d x[l,i,d] = 1 - u      Σ_i x[l,i,d] = capacity[d] (1 - u)      x, u in {0, 1}
    y[l,i,j] >= x[l,i,d] - x[l+1,j,d]                         for every d: another device
    z[l,i,j] >= Σ_{d in node} (x[l,i,d] - x[l+1,j,d])         for every node: another node

ExFlow has a y for every token and step; here one for every pair of experts that any token used one
after the other, weighted by how many did, so that the program does not grow with the trace. Left to
itself, the relaxation costs nothing (x = 1/N everywhere), so each step's bound from singular values
goes in as a row. Column u stands for the placement that is already known: HiGHS takes no start from
SciPy, but it finds u = 1 at once, and says its bound even where it finds nothing better. Devices
that are alike are named in the order of the first layer's experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.errors import UnsupportedError
from tilewright.runtime.placement.alternate import optimiser
from tilewright.runtime.placement.problem import Problem
from tilewright.runtime.placement.trace import Ints

MOST_ROWS = 400_000  # beyond these HiGHS does not get past its first relaxation in minutes


@dataclass(frozen=True)
class Outcome:
    """``places`` if something better than what was known was found, and a bound for all of them."""

    places: Ints | None
    bound: int


def row_count(problem: Problem) -> int:
    """Rows of the program's largest part: one for each pair used and each device."""
    return int(np.count_nonzero(problem.affinity)) * problem.devices


def check_size(problem: Problem) -> None:
    """Raises UnsupportedError for a program that is too large."""
    if (rows := row_count(problem)) > MOST_ROWS:
        raise UnsupportedError(
            f"the integer program of this trace has {rows:,} rows, more than HiGHS can be given "
            f"({MOST_ROWS:,}); use --method recursive, or auto"
        )


def solve_program(
    problem: Problem,
    seconds: float,
    known: int,
    step_bounds: tuple[int, ...] = (),
    nodes: int = 1,
) -> Outcome:
    """Looks for places that cost less than ``known``; none and bound = ``known``: there are none.

    ``step_bounds``: for each step between layers, what its hops cost at least; ``nodes``: equal
    runs of devices that form a machine (costs 0, 1 within, more between). Raises UnsupportedError
    for a program that is too large, BackendMissingError without SciPy.
    """
    check_size(problem)
    made = _Program(problem, nodes, known, step_bounds)
    scipy = optimiser()
    result = scipy.milp(
        made.objective,
        integrality=made.integral,
        bounds=scipy.Bounds(0, made.upper),
        constraints=made.constraints(),
        # Costs are whole numbers: within less than 1 of the best is the best.
        options={"time_limit": max(seconds, 0.1), "mip_rel_gap": 0.9 / max(known, 1)},
    )
    dual = result.get("mip_dual_bound")
    least = max(0, math.ceil(dual - 0.05)) if dual is not None and math.isfinite(dual) else 0
    places = None if result.x is None else made.places(result.x)
    if places is None or (cost := problem.cost(places)) >= known:
        return Outcome(None, min(known, least))
    return Outcome(places, min(cost, least))


class _Program:
    """Columns x [layers, experts, devices], then y, then z, then u; rows as sparse triplets."""

    def __init__(
        self, problem: Problem, nodes: int, known: int, step_bounds: tuple[int, ...]
    ) -> None:
        self.problem = problem
        self.steps, self.before, self.after = np.nonzero(problem.affinity)
        self.used = problem.affinity[self.steps, self.before, self.after].astype(np.float64)
        self.x_count = problem.unary.size
        near, far = _hop_costs(problem.costs, nodes)
        kinds = [(near, 1), (far - near, nodes)] if far > near else [(near, 1)]
        self.kinds = [kind for kind in kinds if kind[0] > 0]
        pairs = len(self.used)
        hops = [self.used * price for price, _ in self.kinds]
        self.objective = np.concatenate([problem.unary.ravel(), *hops, [known]])
        self.escape = len(self.objective) - 1  # column u
        self.integral = np.zeros(len(self.objective))
        self.integral[: self.x_count] = self.integral[self.escape] = 1
        self.upper = np.ones(len(self.objective))
        self._parts: list[tuple[Any, Any, Any, Any, Any]] = []
        self._balance()
        self._step_bounds(step_bounds)
        for at, (_, groups) in enumerate(self.kinds):
            self._hops(self.x_count + at * pairs, groups)
        if problem.symmetric:
            free = self.upper[: self.x_count].reshape(problem.unary.shape)
            free[0] = np.tril(np.ones((problem.experts, problem.devices)))

    def _x(self, layer: Any, expert: Any, device: Any) -> Any:
        return (layer * self.problem.experts + expert) * self.problem.devices + device

    def _add(self, row: Any, column: Any, value: Any, low: Any, high: Any) -> None:
        self._parts.append(
            (np.ravel(row), np.ravel(column), np.ravel(value), np.ravel(low), np.ravel(high))
        )

    def _balance(self) -> None:
        layers, experts, devices = self.problem.unary.shape
        x = np.arange(self.x_count).reshape(layers, experts, devices)
        of_expert = np.arange(layers * experts)[:, None]
        self._sums(
            np.broadcast_to(of_expert, (len(of_expert), devices)), x, np.ones(len(of_expert))
        )
        of_device = np.arange(layers * devices).reshape(layers, 1, devices)
        full = np.tile(np.asarray(self.problem.capacity, dtype=np.float64), layers)
        self._sums(np.broadcast_to(of_device, x.shape), x, full)

    def _sums(self, rows: Any, columns: Any, totals: NDArray[np.float64]) -> None:
        """Sums of columns that are ``totals``, or 0 with u = 1."""
        rows, columns = np.ravel(rows), np.ravel(columns)
        rows = np.concatenate([rows, np.arange(len(totals))])
        columns = np.concatenate([columns, np.full(len(totals), self.escape)])
        values = np.concatenate([np.ones(len(rows) - len(totals)), totals])
        self._add(rows, columns, values, totals, totals)

    def _hops(self, first: int, nodes: int) -> None:
        """y - Σ x[l,i,d] + Σ x[l+1,j,d] >= 0, summed over the devices of each group."""
        devices = self.problem.devices
        groups = (
            np.array_split(np.arange(devices), nodes)
            if nodes > 1
            else [np.array([device]) for device in range(devices)]
        )
        pairs = np.arange(len(self.used))
        for group in groups:
            here = self._x(self.steps[:, None], self.before[:, None], group)
            there = self._x(self.steps[:, None] + 1, self.after[:, None], group)
            columns = np.concatenate([(first + pairs)[:, None], here, there], axis=1)
            sizes = (1, len(group), len(group))
            values = np.repeat([1.0, -1.0, 1.0], sizes)
            rows = np.repeat(pairs, columns.shape[1])
            low = np.zeros(len(pairs))
            self._add(rows, columns, np.tile(values, len(pairs)), low, np.full(len(pairs), np.inf))

    def _step_bounds(self, step_bounds: tuple[int, ...]) -> None:
        """Each step's hops cost at least its bound, or nothing with u = 1."""
        if not step_bounds:
            return
        low = np.asarray(step_bounds, dtype=np.float64)
        hops = np.arange(self.x_count, self.escape)
        rows = np.concatenate([np.tile(self.steps, len(self.kinds)), np.arange(len(low))])
        columns = np.concatenate([hops, np.full(len(low), self.escape)])
        values = np.concatenate([self.objective[hops], low])
        self._add(rows, columns, values, low, np.full(len(low), np.inf))

    def constraints(self) -> Any:
        from scipy.sparse import csr_array

        sizes = [len(part[3]) for part in self._parts]
        starts = np.cumsum([0, *sizes])
        rows = np.concatenate([p[0] + s for p, s in zip(self._parts, starts, strict=False)])
        columns, values, low, high = (
            np.concatenate([part[at] for part in self._parts]) for at in range(1, 5)
        )
        shape = (int(starts[-1]), len(self.objective))
        return optimiser().LinearConstraint(csr_array((values, (rows, columns)), shape), low, high)

    def places(self, solution: NDArray[np.float64]) -> Ints | None:
        """The solution's places; None if it is the known placement."""
        if solution[self.escape] > 0.5:
            return None
        x = solution[: self.x_count].reshape(self.problem.unary.shape)
        places: Ints = x.argmax(axis=2).astype(np.int64)
        return places


def _hop_costs(costs: Ints, nodes: int) -> tuple[int, int]:
    """The price of a hop within a node and between nodes."""
    if len(costs) == 1:
        return 0, 0
    if nodes in (1, len(costs)):
        return int(costs[0, 1]), int(costs[0, 1])
    return int(costs[0, 1]), int(costs[0, -1])
