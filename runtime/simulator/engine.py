"""The machine itself: nodes fire as long as they can, in turns, compiled by Numba.

The program is a deterministic Kahn network: every node has its own clock, and a token carries the
cycle at which it is ready, a freed place the cycle at which it is free. So nodes may run in any
order and for any stretch, and the times come out the same. DAM's rules, at one firing:

    read:   clock = max(clock, token's time);  its place is free at clock + response
    write:  wait until (sent - freed) < capacity: clock = max(clock, when that place was freed)
            token's time = clock + max(latency, send)
    then:   clock = clock + interval
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.runtime.simulator import layout as at
from tilewright.runtime.simulator.borrowed import borrowed
from tilewright.runtime.simulator.compiled import apart, entry, inlined
from tilewright.runtime.simulator.compute import compute

# the columns as constants of the compiled code
TOTAL, DONE, STAGE, CLOCK, INTERVAL = at.TOTAL, at.DONE, at.STAGE, at.CLOCK, at.INTERVAL
READS, READS_END, WRITES, WRITES_END = at.READS, at.READS_END, at.WRITES, at.WRITES_END
ROWS, ROWS_END, PLACES, PLACES_END = at.ROWS, at.ROWS_END, at.PLACES, at.PLACES_END
LOOPS, DEPTH, STARTED, WAITED = at.LOOPS, at.DEPTH, at.STARTED, at.WAITED
CAUSE, SPAN, PARTIAL = at.CAUSE, at.SPAN, at.PARTIAL
CHANNEL, PERIOD, LEFT, REGISTER = at.CHANNEL, at.PERIOD, at.LEFT, at.REGISTER
CAPACITY, START, MASK, VALUES, WIDTH = at.CAPACITY, at.START, at.MASK, at.VALUES, at.WIDTH
FORWARD, RESPONSE, SENT, READ, FREED = at.FORWARD, at.RESPONSE, at.SENT, at.READ, at.FREED
COUNTED, PEAK, HELD = at.COUNTED, at.PEAK, at.HELD
WITH_VALUES, BIN_WIDTH, SPANS_USED, GROWN = at.WITH_VALUES, at.BIN_WIDTH, at.SPANS_USED, at.GROWN
FINISHED, STUCK, GROW, BUSY = at.FINISHED, at.STUCK, at.GROW, at.BUSY
GOES_ON, WAITS, TOO_SMALL = range(3)  # what a node finds at a firing
place = np.uint64  # of an index: Numba asks of a signed one whether it counts from the end
TURN = 256  # most firings of a node in a turn: what lies between it and its consumer stays in cache

_borrowed: Any = borrowed  # Numba passes its context, which types do not know


@entry
def run(tables):  # type: ignore[no-untyped-def]
    """Fires nodes until all are done (FINISHED), none can go on (STUCK), or a ring is too small
    (GROW; ``control[GROWN]`` is the channel, and the run can go on after it has more slots)."""
    tables = _borrowed(tables)
    nodes = tables.nodes
    while True:
        moved, open_nodes = False, False
        for node in range(len(nodes)):
            n = place(node)
            if nodes[n, DONE] == nodes[n, TOTAL]:
                continue
            open_nodes = True
            before = nodes[n, DONE]
            stage = nodes[n, STAGE]
            if not _turn(tables, n):
                return GROW
            moved = moved or nodes[n, DONE] != before or nodes[n, STAGE] != stage
        if not open_nodes:
            return FINISHED
        if not moved:
            return STUCK


@inlined
def _turn(tables, n):  # type: ignore[no-untyped-def]
    """Fires node ``n`` until it has to wait for another; False if a ring is too small."""
    nodes = tables.nodes
    stage, clock, cause = nodes[n, STAGE], nodes[n, PARTIAL], nodes[n, CAUSE]
    done = nodes[n, DONE]
    last = min(nodes[n, TOTAL], done + TURN)
    interval = nodes[n, INTERVAL]
    innermost = nodes[n, LOOPS] + nodes[n, DEPTH] - 1
    with_values = tables.control[WITH_VALUES] != 0
    plotted, traced = tables.control[BIN_WIDTH] > 0, len(tables.spans) > 0
    state = GOES_ON
    while done < last:
        state, stage, clock, cause = _take(tables, n, stage, clock, cause, with_values, plotted)
        if state == GOES_ON:
            state, clock, cause = _room(tables, n, clock, cause)
        if state != GOES_ON:
            break
        if with_values:
            compute(tables, nodes[n, ROWS], nodes[n, ROWS_END], nodes[n, LOOPS], innermost)
        for write in range(nodes[n, WRITES], nodes[n, WRITES_END]):
            w = place(write)
            if tables.writes[w, LEFT] == 1:
                _write(tables, place(tables.writes[w, CHANNEL]), w, clock, with_values, plotted)
                tables.writes[w, LEFT] = tables.writes[w, PERIOD]
            else:
                tables.writes[w, LEFT] -= 1
        _next_step(tables, n, innermost)
        if done == 0:
            nodes[n, STARTED] = clock
            nodes[n, SPAN] = clock
        elif clock > nodes[n, CLOCK]:
            nodes[n, WAITED] += clock - nodes[n, CLOCK]
            if traced:
                _trace(tables, n, nodes[n, CLOCK], clock, cause)
        clock += interval
        nodes[n, CLOCK] = clock
        done += 1
        stage = 0
    nodes[n, DONE], nodes[n, STAGE], nodes[n, CAUSE] = done, stage, cause
    nodes[n, PARTIAL] = clock
    return state != TOO_SMALL


@inlined
def _take(tables, n, stage, clock, cause, with_values, plotted):  # type: ignore[no-untyped-def]
    """Reads what is due, one after the other from where it stopped: state, stage, clock, cause."""
    reads, channels = tables.reads, tables.channels
    first, end = tables.nodes[n, READS], tables.nodes[n, READS_END]
    state = GOES_ON
    for read in range(first + stage, end):
        r = place(read)
        if reads[r, LEFT] == 0:
            c = place(reads[r, CHANNEL])
            if channels[c, READ] == channels[c, SENT]:
                state = WAITS
                break
            later = _read(tables, c, r, clock, with_values, plotted)
            if later > clock:
                clock = later
                cause = 2 * reads[r, CHANNEL]
            reads[r, LEFT] = reads[r, PERIOD]
        reads[r, LEFT] -= 1
        stage += 1
    return state, stage, clock, cause


@inlined
def _room(tables, n, clock, cause):  # type: ignore[no-untyped-def]
    """Waits for room in all channels that are due: state, clock, cause."""
    writes, channels = tables.writes, tables.channels
    state = GOES_ON
    for write in range(tables.nodes[n, WRITES], tables.nodes[n, WRITES_END]):
        w = place(write)
        if writes[w, LEFT] != 1:
            continue
        c = place(writes[w, CHANNEL])
        sent, mask, capacity = channels[c, SENT], channels[c, MASK], channels[c, CAPACITY]
        if sent - channels[c, READ] >= capacity:
            state = WAITS
            break
        token = sent - capacity
        if token >= channels[c, FREED]:
            free = tables.free[place(channels[c, START] + (token & mask))]
            if free > clock:
                clock = free
                cause = 2 * writes[w, CHANNEL] + 1
        if sent - channels[c, FREED] > mask:
            _forget(tables, c, clock)
            if sent - channels[c, FREED] > mask:
                tables.control[GROWN] = writes[w, CHANNEL]
                state = TOO_SMALL
                break
    return state, clock, cause


@inlined
def _read(tables, c, r, clock, with_values, plotted):  # type: ignore[no-untyped-def]
    """Takes the next token of a channel; gives the clock after it."""
    channels, ready = tables.channels, tables.ready
    token, start, mask = channels[c, READ], channels[c, START], channels[c, MASK]
    slot = place(start + (token & mask))
    clock = max(clock, ready[slot])
    free = clock + channels[c, RESPONSE]
    forward = channels[c, FORWARD]
    channels[c, HELD] += free - (ready[slot] - forward)
    tables.free[slot] = free
    channels[c, READ] = token + 1
    # tokens sent until the place is free: the most that were in the channel at one time
    counted, sent = max(channels[c, COUNTED], token + 1), channels[c, SENT]
    while counted < sent and ready[place(start + (counted & mask))] - forward < free:
        counted += 1
    channels[c, COUNTED] = counted
    channels[c, PEAK] = max(channels[c, PEAK], counted - token)
    if with_values:
        width, to = channels[c, WIDTH], tables.reads[r, REGISTER]
        begin = channels[c, VALUES] + (token & mask) * width
        for k in range(width):
            tables.registers[place(to + k)] = tables.values[place(begin + k)]
    if plotted:
        _count(tables, c, free, -1)
    return clock


@inlined
def _write(tables, c, w, clock, with_values, plotted):  # type: ignore[no-untyped-def]
    """Sends a token; there is room."""
    channels = tables.channels
    _forget(tables, c, clock)
    sent, freed = channels[c, SENT], channels[c, FREED]
    if freed < channels[c, READ]:  # all that were freed by now are known
        channels[c, PEAK] = max(channels[c, PEAK], sent + 1 - freed)
    slot = sent & channels[c, MASK]
    tables.ready[place(channels[c, START] + slot)] = clock + channels[c, FORWARD]
    channels[c, SENT] = sent + 1
    if with_values:
        width, start = channels[c, WIDTH], tables.writes[w, REGISTER]
        to = channels[c, VALUES] + slot * width
        for k in range(width):
            tables.values[place(to + k)] = tables.registers[place(start + k)]
    if plotted:
        _count(tables, c, clock, 1)


@inlined
def _forget(tables, c, clock):  # type: ignore[no-untyped-def]
    """Moves past the places that were free by ``clock``: no later token waits for them."""
    channels = tables.channels
    freed, read = channels[c, FREED], channels[c, READ]
    start, mask = channels[c, START], channels[c, MASK]
    while freed < read and tables.free[place(start + (freed & mask))] <= clock:
        freed += 1
    channels[c, FREED] = freed


@inlined
def _next_step(tables, n, innermost):  # type: ignore[no-untyped-def]
    """The odometer of the loops, and the addresses that follow it."""
    nodes = tables.nodes
    first = nodes[n, LOOPS]
    level = innermost
    tables.index[place(level)] += 1
    while level > first and tables.index[place(level)] == tables.extent[place(level)]:
        tables.index[place(level)] = 0
        level -= 1
        tables.index[place(level)] += 1
    for address in range(nodes[n, PLACES], nodes[n, PLACES_END]):
        a = place(address)
        tables.address[a] += tables.steps[a, place(level - first)]


@apart
def _count(tables, c, cycle, change):  # type: ignore[no-untyped-def]
    """A place of a channel taken (1) or freed (-1) at a cycle, for the picture (occupancy.py)."""
    bins, changes, control = tables.bins, tables.changes, tables.control
    count, width = bins.shape[1], control[BIN_WIDTH]
    while cycle >= count * width:  # pairs of bins become one, from the left
        for row in range(bins.shape[0]):
            for b in range(count):
                left, right = 2 * b, 2 * b + 1
                area, net = 0.0, 0
                if left < count:
                    area += bins[row, left] + width * changes[row, left]
                    net += changes[row, left]
                if right < count:
                    area += bins[row, right]
                    net += changes[row, right]
                bins[row, b], changes[row, b] = area, net
        width *= 2
        control[BIN_WIDTH] = width
    b = cycle // width
    bins[c, b] += change * (width - (cycle - b * width))
    changes[c, b] += change


@apart
def _trace(tables, n, free_at, clock, cause):  # type: ignore[no-untyped-def]
    """A wait of a node, and the busy time before it; nothing once the table is full."""
    nodes, spans, control = tables.nodes, tables.spans, tables.control
    used = control[SPANS_USED]
    if used + 2 <= len(spans):
        spans[used, 0], spans[used, 1] = n, nodes[n, SPAN]
        spans[used, 2], spans[used, 3] = free_at, BUSY
        spans[used + 1, 0], spans[used + 1, 1] = n, free_at
        spans[used + 1, 2], spans[used + 1, 3] = clock, cause
        control[SPANS_USED] = used + 2
        nodes[n, SPAN] = clock
