"""Stream graphs whose channel depths were found wrong once, or would be with a rule left out."""

from __future__ import annotations

# Found by Hypothesis. The sum is repeated twice: the second could come later without a place more
# in the channel that brings it, and so wait there instead of before the addition.
REPEATED_TWICE = """stream f<N, M>(%x: tensor<N x M x f32>) {
  %a = stream.source %x {dims = [["n"], ["m"]], type = stream<n=N, m=M; f32>}
  %s = stream.reduce %a {kind = "sum", axis = "m"}
  %r = stream.repeat %s {axis = axis(m, M)}
  %c = math.sub %r, %a
  %q = stream.repeat %s {axis = axis(m, M)}
  %d = math.add %c, %q
  %o = stream.sink %d {dims = [["n"], ["m"]], type = tensor<N x M x f32>}
  return %o
}"""


# Found by Hypothesis. The first sum of a row is there before %c has done the row: its reader then
# takes the first %c, and waits for %d, which needs the second sum.
ONE_AFTER_THE_OTHER = """stream f<N, M>(%x: tensor<N x M x f32>) {
  %a = stream.source %x {dims = [["n"], ["m"]], type = stream<n=N, m=M; f32>}
  %s = stream.reduce %a {kind = "sum", axis = "m"}
  %r = stream.repeat %s {axis = axis(m, M)}
  %c = math.tanh %a
  %t = stream.reduce %c {kind = "sum", axis = "m"}
  %u = stream.repeat %t {axis = axis(m, M)}
  %d = math.sub %u, %a
  %z = math.fma %r, %c, %d
  %o = stream.sink %z {dims = [["n"], ["m"]], type = tensor<N x M x f32>}
  return %o
}"""

# Found by Hypothesis. %q waits for %p, a row and some cycles; with one place its node is held up
# for these cycles, which no other node feels, since the next sum is a row away.
HELD_UP_WITHOUT_HARM = """stream f<N, M>(%x: tensor<N x M x f32>, %y: tensor<N x f32>) {
  %a = stream.source %x {dims = [["n"], ["m"]], type = stream<n=N, m=M; f32>}
  %b = stream.source %y {dims = [["n"]], type = stream<n=N; f32>}
  %s = stream.reduce %a {kind = "sum", axis = "m"}
  %r = stream.repeat %s {axis = axis(m, M)}
  %t = stream.reduce %a {kind = "sum", axis = "m"}
  %u = stream.repeat %t {axis = axis(m, M)}
  %q = stream.reduce %a {kind = "sum", axis = "m"}
  %p = stream.reduce %r {kind = "sum", axis = "m"}
  %z = math.fma %b, %q, %p
  %o = stream.sink %u {dims = [["n"], ["m"]], type = tensor<N x M x f32>}
  return %o
}"""

# Found by Hypothesis. Opening barriers by what each costs next, one waits for %k before %p. The
# other way round %f has to hold one less, and %e what it has to anyway.
ANOTHER_ORDER = """stream f<N, M>(%x: tensor<N x M x f32>) {
  %a = stream.source %x {dims = [["n"], ["m"]], type = stream<n=N, m=M; f32>}
  %s = stream.reduce %a {kind = "sum", axis = "m"}
  %r = stream.repeat %s {axis = axis(m, M)}
  %b = math.sub %r, %a
  %c = math.sub %b, %r
  %t = stream.reduce %c {kind = "sum", axis = "m"}
  %d = math.tanh %a
  %u = stream.reduce %d {kind = "sum", axis = "m"}
  %p = stream.repeat %u {axis = axis(m, M)}
  %e = math.tanh %d
  %g = math.mul %p, %e
  %f = math.sub %r, %d
  %k = stream.repeat %t {axis = axis(m, M)}
  %h = math.tanh %a
  %i = math.add %f, %g
  %j = math.add %k, %h
  %z = math.add %j, %i
  %o = stream.sink %z {dims = [["n"], ["m"]], type = tensor<N x M x f32>}
  return %o
}"""

# %q could wait for room if its node came later: but what comes of it ends last.
NO_LATER_THAN_THE_END = """stream f<N, M>(%x: tensor<N x M x f32>, %y: tensor<N x f32>) {
  %a = stream.source %x {dims = [["n"], ["m"]], type = stream<n=N, m=M; f32>}
  %q = stream.source %y {dims = [["n"]], type = stream<n=N; f32>}
  %s = stream.reduce %a {kind = "sum", axis = "m"}
  %r = stream.repeat %s {axis = axis(m, M)}
  %p = stream.reduce %r {kind = "sum", axis = "m"}
  %z = math.add %p, %q
  %c = stream.repeat %q {axis = axis(m, M)}
  %d = stream.reduce %c {kind = "sum", axis = "m"}
  %e = stream.repeat %d {axis = axis(m, M)}
  %f = stream.reduce %e {kind = "sum", axis = "m"}
  %g = stream.repeat %f {axis = axis(m, M)}
  %o = stream.sink %g {dims = [["n"], ["m"]], type = tensor<N x M x f32>}
  %w = stream.sink %z {dims = [["n"]], type = tensor<N x f32>}
  return %o, %w
}"""

# Found by Hypothesis. A node that runs once a round takes nothing before it is done with the round
# before.
BUSY_FOR_A_ROUND = """stream f<N, M>(%in: tensor<N x M x f32>) {
  %v = stream.source %in {dims = [["n"], ["m"]], type = stream<n=N, m=M; f32>}
  %v1 = stream.reduce %v {kind = "sum", axis = "m"}
  %v2 = stream.repeat %v1 {axis = axis(m, M)}
  %v3 = math.tanh %v
  %v4 = math.tanh %v3
  %v5 = math.tanh %v4
  %v6 = math.sub %v2, %v5
  %v7 = math.fma %v2, %v4, %v
  %v8 = math.add %v6, %v
  %v9 = stream.repeat %v1 {axis = axis(m, M)}
  %h = math.tanh %v2
  %v10 = stream.reduce %v7, %h {kind = "sum", axis = "m"}
  %v11 = stream.reduce %v8 {kind = "sum", axis = "m"}
  %v12 = stream.repeat %v11 {axis = axis(m, M)}
  %v13 = math.tanh %v9
  %v14 = math.sub %v13, %v12
  %v15 = stream.reduce %v4 {kind = "sum", axis = "m"}
  %h1 = math.tanh %v8
  %v16 = stream.reduce %v8, %h1 {kind = "sum", axis = "m"}
  %v17 = math.add %v10, %v15
  %v18 = math.add %v17, %v16
  %out = stream.sink %v14 {dims = [["n"], ["m"]], type = tensor<N x M x f32>}
  %out1 = stream.sink %v18 {dims = [["n"]], type = tensor<N x f32>}
  return %out, %out1
}"""
