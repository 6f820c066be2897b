"""One firing's numbers: the rows of a node's function, run one after the other by the engine."""

from __future__ import annotations

import numpy as np

from tilewright.runtime.simulator.arithmetic import combined, number, scanned
from tilewright.runtime.simulator.compiled import apart, inlined
from tilewright.runtime.simulator.opcodes import (
    CONTRACT,
    FOLD,
    GATHER,
    INDEX,
    REDUCE,
    RESCALED,
    SCAN,
    SINK,
    SOURCE,
)

place = np.uint64  # of an index: Numba asks of a signed one whether it counts from the end


@inlined
def compute(tables, first, end, loops, innermost):  # type: ignore[no-untyped-def]
    """Runs the rows ``first`` to ``end``; ``loops`` is where the node's odometer begins."""
    starts = tables.index[place(innermost)] == 0
    for row in range(first, end):
        i = place(row)
        code = tables.rows[i, 0]
        if code < SOURCE:
            _pointwise(tables, i, code)
        elif code in (REDUCE, RESCALED, SCAN):
            _step(tables, i, code, starts)
        else:
            _other(tables, i, code, loops)


@inlined
def _pointwise(tables, i, code):  # type: ignore[no-untyped-def]
    rows, registers = tables.rows, tables.registers
    places, result = rows[i, 1], rows[i, 2]
    x, y, z = rows[i, 3], rows[i, 4], rows[i, 5]
    if places == 1:
        registers[place(result)] = number(
            code, registers[place(x)], registers[place(y)], registers[place(z)]
        )
    else:
        _wide(rows, registers, tables.lists, i)


@apart
def _wide(rows, registers, lists, i):  # type: ignore[no-untyped-def]
    """The same place by place; ``a_map`` and its like say where an operand's place is."""
    code, places, result = rows[i, 0], rows[i, 1], rows[i, 2]
    a, b, c = rows[i, 3], rows[i, 4], rows[i, 5]
    a_map, b_map, c_map = rows[i, 6], rows[i, 7], rows[i, 8]
    if code == 2 and a_map == -2 and b_map == -1:  # a number times a vector
        factor = registers[place(a)]
        for k in range(places):
            registers[place(result + k)] = factor * registers[place(b + k)]
        return
    for k in range(places):
        x = registers[place(a + _place(lists, a_map, k))]
        y = registers[place(b + _place(lists, b_map, k))]
        z = registers[place(c + _place(lists, c_map, k))]
        registers[place(result + k)] = number(code, x, y, z)


@inlined
def _place(lists, how, k):  # type: ignore[no-untyped-def]
    return k if how == -1 else (0 if how == -2 else lists[place(how + k)])


@inlined
def _step(tables, i, code, starts):  # type: ignore[no-untyped-def]
    """A step of a reduction or a scan; ``starts``: the first of its loop."""
    rows, registers = tables.rows, tables.registers
    places, state, x = rows[i, 1], rows[i, 2], rows[i, 3]
    kind = rows[i, 10]
    if starts:
        neutral = registers[place(rows[i, 5])]
        for k in range(places):
            registers[place(state + k)] = neutral
    if code == REDUCE:
        for k in range(places):
            registers[place(state + k)] = combined(
                kind, registers[place(state + k)], registers[place(x + k)]
            )
    elif code == RESCALED:
        factor = registers[place(rows[i, 4])]
        for k in range(places):
            registers[place(state + k)] = (
                registers[place(state + k)] * factor + registers[place(x + k)]
            )
    else:
        before = rows[i, 4]
        for k in range(places):
            old = registers[place(state + k)]
            registers[place(before + k)] = old
            registers[place(state + k)] = scanned(kind, old, registers[place(x + k)])


@inlined
def _other(tables, i, code, loops):  # type: ignore[no-untyped-def]
    rows, registers, lists = tables.rows, tables.registers, tables.lists
    places, result, how = rows[i, 1], rows[i, 2], rows[i, 6]
    if code == SOURCE:
        start = tables.address[place(rows[i, 9])]
        for k in range(places):
            registers[place(result + k)] = tables.memory[place(start + _place(lists, how, k))]
    elif code == SINK:
        start = tables.address[place(rows[i, 9])]
        for k in range(places):
            tables.memory[place(start + _place(lists, how, k))] = registers[place(rows[i, 3] + k)]
    elif code == CONTRACT:
        _contract(rows, registers, lists, i)
    elif code == FOLD:
        _fold(rows, registers, lists, i)
    elif code == INDEX:
        for k in range(places):
            registers[place(result + k)] = tables.index[place(loops + rows[i, 3])]
    elif code == GATHER:
        _gather(rows, registers, lists, tables.memory, i)


@apart
def _contract(rows, registers, lists, i):  # type: ignore[no-untyped-def]
    places, result, a, b = rows[i, 1], rows[i, 2], rows[i, 3], rows[i, 4]
    a_map, b_map, count = rows[i, 6], rows[i, 7], rows[i, 9]
    for k in range(places):
        total = 0.0
        if places == 1 and a_map == -1 and b_map == -1:
            for j in range(count):
                total += registers[place(a + j)] * registers[place(b + j)]
        else:
            for j in range(k * count, (k + 1) * count):
                x = registers[place(a + _place(lists, a_map, j))]
                total += x * registers[place(b + _place(lists, b_map, j))]
        registers[place(result + k)] = total


@apart
def _fold(rows, registers, lists, i):  # type: ignore[no-untyped-def]
    places, result, x, start = rows[i, 1], rows[i, 2], rows[i, 3], rows[i, 4]
    how, count, kind = rows[i, 6], rows[i, 9], rows[i, 10]
    for k in range(places):
        state = registers[place(start)]
        for j in range(k * count, (k + 1) * count):
            state = combined(kind, state, registers[place(x + _place(lists, how, j))])
        registers[place(result + k)] = state


@apart
def _gather(rows, registers, lists, memory, i):  # type: ignore[no-untyped-def]
    places, result, listed, how = rows[i, 1], rows[i, 2], rows[i, 3], rows[i, 6]
    start = rows[i, 4]
    for k in range(lists[place(listed)]):
        entry = listed + 1 + 3 * k
        register, size, stride = (
            lists[place(entry)],
            lists[place(entry + 1)],
            lists[place(entry + 2)],
        )
        start += min(max(int(registers[place(register)]), 0), size - 1) * stride
    for k in range(places):
        registers[place(result + k)] = memory[place(start + _place(lists, how, k))]
