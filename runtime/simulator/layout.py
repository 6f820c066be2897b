"""The tables that the engine runs on: which column of which table means what.

Everything is an array, so that one compiled engine serves every program. A channel is a ring with a
slot for every token that is under way: when it is ready for the receiver, when its place is free
again for the sender (after it is read), and its numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# ---- nodes
TOTAL, DONE, STAGE, CLOCK, INTERVAL = range(5)  # firings; reads of the next done; free at
READS, READS_END, WRITES, WRITES_END, ROWS, ROWS_END = range(5, 11)
PLACES, PLACES_END, LOOPS, DEPTH = range(11, 15)  # addresses; the odometer of the loops
STARTED, WAITED, CAUSE, SPAN, PARTIAL = range(15, 20)  # first firing, cycles of waiting; the
# channel that was waited for; where a span begins; the clock in the middle of a firing
NODE_FIELDS = 20

# ---- reads and writes of a node: due once in PERIOD firings, LEFT of which remain
CHANNEL, PERIOD, LEFT, REGISTER = range(4)
PORT_FIELDS = 4

# ---- channels
CAPACITY, START, MASK, VALUES, WIDTH, FORWARD, RESPONSE = range(7)
SENT, READ, FREED, COUNTED, PEAK, HELD = range(7, 13)  # tokens; most places taken; place-cycles
CHANNEL_FIELDS = 13

# ---- spans of a trace
SPAN_NODE, SPAN_START, SPAN_END, SPAN_CAUSE = range(4)
BUSY = -1  # the cause of a span in which the node does not wait; else 2 * channel + (1: it is full)

FINISHED, STUCK, GROW = range(3)  # what the engine says
UNLIMITED = 1 << 60


class Tables(NamedTuple):
    """Everything the engine reads and writes; the names of int64 tables are as above."""

    nodes: Any  # [nodes, NODE_FIELDS]
    reads: Any  # [reads, PORT_FIELDS]
    writes: Any
    channels: Any  # [channels, CHANNEL_FIELDS]
    ready: Any  # [slots]
    free: Any  # [slots]
    values: Any  # f64 [slots * width]
    registers: Any  # f64
    rows: Any  # [rows, FIELDS]
    lists: Any
    memory: Any  # f64: inputs and results
    address: Any  # [addresses]
    steps: Any  # [addresses, levels]
    index: Any  # the odometers
    extent: Any
    bins: Any  # f64 [channels, bins]: see occupancy.py
    changes: Any  # [channels, bins]
    spans: Any  # [most, 4]
    control: Any  # see below


WITH_VALUES, BIN_WIDTH, SPANS_USED, GROWN = range(4)  # control
