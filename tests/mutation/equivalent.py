"""Mutants that change nothing that anyone could see, each read, with the reason."""

from __future__ import annotations

from typing import Protocol


class Named(Protocol):
    """What is looked up."""

    name: str
    before: str
    after: str


# file, the line before and after -> why nothing can tell the two apart
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "passes/to_tile/whole_blocks/routing/values.py",
        "bounds.append((dim, b.index(frame.sizes[names[0]])))",
        "bounds.append((dim, b.index(frame.sizes[names[ -1]])))",
    ): "each dimension of memory is one axis here: its first name is its last",
    (
        "passes/to_tile/made.py",
        "return 8 if schedule.lanes == 16 else 4",
        "return 7 if schedule.lanes == 16 else 4",
    ): "the height of a register tile, chosen by measuring: any gives the same sums",
    (
        "passes/to_tile/whole_blocks/seen.py",
        "_FAR = 1 << 60  # beyond every position",
        "_FAR = 1 << 61  # beyond every position",
    ): "a number beyond every position: any larger one does the same",
    (
        "passes/to_tile/intervals.py",
        "_FAR = 1 << 31  # added, in multiples of the divisor, so that a dividend is not negative",
        "_FAR = 1 << 32  # added, in multiples of the divisor, so that a dividend is not negative",
    ): "a number beyond every dividend, in multiples of the divisor: any larger one does the same",
    (
        "passes/to_threads/roles.py",
        "AS_THEY_ARE, TWO_AT_ONCE, OVERLAPPED = 170, 278, {False: 306, True: 330}",
        "AS_THEY_ARE, TWO_AT_ONCE, OVERLAPPED = 169, 278, {False: 306, True: 330}",
    ): "a threshold of an estimate, read off machine code: no program has exactly that many",
    (
        "passes/to_tile/spaces.py",
        "ELEMENTS = (4, 6, 8, 12, 16)",
        "ELEMENTS = (4, 6, 8, 11, 16)",
    ): "which sizes a tuner tries, chosen by measuring: any gives the same sums",
    (
        "passes/to_tile/spaces.py",
        'return space_around(schedule, {"rows": (1, 2, 4, 8, 16, 32, 64)})',
        'return space_around(schedule, {"rows": ( 2, 2, 4, 8, 16, 32, 64)})',
    ): "which sizes a tuner tries: any gives the same sums",
    (
        "passes/axes.py",
        "if len(flat) != len(set(flat)):",
        "if len(flat) is not len(set(flat)):",
    ): "Python keeps one object for each small integer, and no element has hundreds of axes",
    (
        "passes/to_threads/registers.py",
        "if isinstance(op, m.Add | m.Or) and words(op.lhs) < words(value):",
        "if isinstance(op, m.Add | m.Or) and words(op.lhs) is not words(value):",
    ): "no operand is larger than the sum, and small integers are one object each",
    (
        "passes/to_tile/whole_blocks/schedule.py",
        'stages = 3 if target.gpu == "cuda" else 1',
        'stages = 3 if not target.gpu == "cuda" else 1',
    ): "how many blocks are under way, chosen by measuring: any number gives the same sums",
    (
        "passes/to_tile/whole_blocks/lowbit/schedule.py",
        "items = -(-blocks * schedule.pieces // schedule.vectors) * -(-rows // schedule.rows)",
        "items = -(~blocks * schedule.pieces // schedule.vectors) * -(-rows // schedule.rows)",
    ): "how many work items there are, about: it decides how k is cut, and any cut is right",
    (
        "passes/to_tile/whole_blocks/lowbit/schedule.py",
        "return strips if few else min(strips, 8 if least == 2 else 4)",
        "return strips if few else min(strips, 8 if not least == 2 else 4)",
    ): "how many codes a turn takes, chosen by measuring: any number gives the same sums",
    (
        "passes/to_tile/lowbit/weights.py",
        "self.b.prefetch(memory, [block, column], (-1, 1), self.shapes.vector)",
        "self.b.prefetch(memory, [block, column], (- 2, 1), self.shapes.vector)",
    ): "a hint to the memory: nothing is read by it",
    (
        "passes/choose_layout.py",
        "words = [b.filled(0, I32, layout) for _ in range(packing.words)]",
        "words = [b.filled( 1, I32, layout) for _ in range(packing.words)]",
    ): "the words stand for any: only the operations that unpack them are counted",
    (
        "passes/to_tile/whole_blocks/routing/products.py",
        "op = values.made.get(op.operands[0])",
        "op = values.made.get(op.operands[ -1])",
    ): "a cast and a repeat have one operand: the first is the last",
    (
        "ir/layout.py",
        'return math.prod(s for k, _, s in self.steps if k == "local")',
        'return math.prod(s for k, _, s in self.steps if k <= "local")',
    ): "the kinds are local, replicate and spatial: none comes before local in the alphabet",
    (
        "passes/to_tile/whole_blocks/routing/values.py",
        "dims[where] = dim if sizes[dim] > 1 else -1",
        "dims[where] = dim if sizes[dim] > 1 else - 0",
    ): "the tile has one element along the tokens there: both name the same place",
    (
        "passes/channels/deadlock.py",
        "if edge.consumer not in waits or len(edge.loops) <= depth or not count.terms:",
        "if edge.consumer not in waits or len(edge.loops) == depth or not count.terms:",
    ): "a channel with fewer loops has a producer that never fires there, so its count is empty",
    (
        "passes/reorder/linear.py",
        "degrees[op.results[0]] = found",
        "degrees[op.results[ -1]] = found",
    ): "degrees are known of operations with one result only: the first is the last",
    (
        "passes/reorder/moments.py",
        "if not plain or not is_float(op.operands[0]) or stream_type(op.results[0]).element:",
        "if not plain or not is_float(op.operands[ -1]) or stream_type(op.results[0]).element:",
    ): "a plain reduction has one operand: the first is the last",
    (
        "passes/to_tile/cached/unpacked.py",
        "per_group = max(1, p.padded_group // p.chunk)",
        "per_group = max( 0, p.padded_group // p.chunk)",
    ): "it is read only where a group is a chunk or more, and then at least 1",
    (
        "passes/to_tile/routing/selection.py",
        "up.next = (b.add(up.carried[0], 1),)",
        "up.next = (b.add(up.carried[ -1], 1),)",
    ): "the loop carries one value: the first is the last",
    (
        "passes/to_tile/cached/scores.py",
        'found.append(b.load(self.reader.words, where, [-1, -1, -1, 1], layout, hint="w"))',
        'found.append(b.load(self.reader.words, where, [-1, - 0, -1, 1], layout, hint="w"))',
    ): "the tile has one element along its first dimension: the same addresses are read",
    (
        "passes/to_tile/spaces.py",
        'return space_around(schedule, {"rows": (1, 2, 4, 8, 16, 32, 64)})',
        'return space_around(schedule, {"rows": (1, 2, 4, 8, 17, 32, 64)})',
    ): "which sizes a tuner tries: any gives the same sums",
    (
        "passes/to_threads/overlap.py",
        "self.kept = [n for n in range(len(loop.inits)) if n != turn.number]",
        "self.kept = [n for n in range(len(loop.inits)) if n is not turn.number]",
    ): "small integers are one object each",
    (
        "passes/to_tile/whole_blocks/parts.py",
        "element = tuple(a.size for a in info.element(op.results[0]))",
        "element = tuple(a.size for a in info.element(op.results[ -1]))",
    ): "a reduction has one result: the first is the last",
    (
        "passes/to_tile/block_walk.py",
        "_NEVER = 1 << 60  # beyond every position",
        "_NEVER = 1 << 61  # beyond every position",
    ): "a number beyond every position: any larger one does the same",
    (
        "passes/to_tile/cost/gpu.py",
        '"sm_90": Chip(132, 2048, 128, 16, 1.7e9, 3.3e12),',
        '"sm_90": Chip(132, 2048, 128, 16, 1.7e9, 3300000000001.0),',
    ): "one byte a second of 3.3e12: an estimate's constant",
    (
        "passes/to_tile/whole_blocks/schedule.py",
        "if bytes_read(info) > 2 or wide > 256:  # products in f32, by the ordinary units",
        "if bytes_read(info) > 2 or wide > 257:  # products in f32, by the ordinary units",
    ): "elements are padded to powers of two: none is 257 long",
    (
        "passes/to_tile/lowbit/schedule.py",
        "if target.lanes == 1:  # plain loops: every row more is text to compile, "
        "and work for one row",
        "if target.lanes <= 1:  # plain loops: every row more is text to compile, "
        "and work for one row",
    ): "a target has a lane at least",
    (
        "passes/to_tile/cost_model.py",
        "return float(seconds(shares, items, info, sizes, target, threads, 1)[0])",
        "return float(seconds(shares, items, info, sizes, target, threads, 1)[ -1])",
    ): "there is one schedule here: the first is the last",
    (
        "passes/split_sums.py",
        "deepest = max(depth.values(), default=0)",
        "deepest = max(depth.values(), default= -1)",
    ): "what is below 2 is not split",
    (
        "passes/to_threads/ahead.py",
        "region, found = op.regions[0], Ahead()",
        "region, found = op.regions[ -1], Ahead()",
    ): "a loop has one region: the first is the last",
    (
        "passes/channels/schedule.py",
        "while token == len(ready):",
        "while token >= len(ready):",
    ): "tokens are read one after the other: none is further ahead",
    (
        "passes/to_threads/rings.py",
        "len(users) != 1 or not isinstance(users[0], t.Product) or users[0].b is not op.results[0]",
        "len(users) != 1 or not isinstance(users[0], t.Product) or users[ -1].b is not "
        "op.results[0]",
    ): "there is one user: the first is the last",
    (
        "passes/to_tile/routing/values.py",
        "shape = [max(1, self.count(axes)), self.lanes]",
        "shape = [max( 0, self.count(axes)), self.lanes]",
    ): "a product of lengths, which are 1 at least",
    (
        "passes/reorder/additive.py",
        "given = [term if i == at else v for i, v in enumerate(op.operands)]",
        "given = [term if i is at else v for i, v in enumerate(op.operands)]",
    ): "small integers are one object each",
    (
        "passes/to_threads/lower.py",
        'attrs["layout"] = _seen(operands[0], op)',
        'attrs["layout"] = _seen(operands[ -1], op)',
    ): "a view has one operand: the first is the last",
    (
        "passes/to_tile/cached/info.py",
        "block = min(most, target.l2_bytes // 4 // (4 * max(width, 1))) // least * least",
        "block = min(most, target.l2_bytes // 4 // ( 5 * max(width, 1))) // least * least",
    ): "the length of a block, by an estimate of what a cache holds: any gives the same numbers",
    (
        "passes/to_threads/lower.py",
        "OWN_LOADS = 32  # registers of a right side that a thread reads for itself",
        "OWN_LOADS = 31  # registers of a right side that a thread reads for itself",
    ): "a threshold of speed: either way the same sums",
}


def why_equivalent(mutant: Named) -> str:
    """The reason, "" for a mutant that tests should see."""
    file = mutant.name.split(":", 1)[0]
    return EQUIVALENT.get((file, mutant.before, mutant.after), "")
