"""The C header of a bundle: a prototype for every kernel, and a function that fills its arguments.

The calling convention is that of runtime/calls.py, which is written into the header in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tilewright.ir.sizes import Size, parse_size
from tilewright.ir.target import Target
from tilewright.runtime.bundle.forms import class_text
from tilewright.runtime.bundle.manifest import ABI, Buffer, Code

HEADER = "tilewright_kernels.h"
_TYPES = {
    **{"f64": "double", "f32": "float", "f16": "uint16_t", "bf16": "uint16_t", "bool": "uint8_t"},
    **{"i64": "int64_t", "i32": "int32_t", "i16": "int16_t", "i8": "int8_t", "u8": "uint8_t"},
}

_START = """\
/* Kernels compiled by Tilewright for {target} ({cpu}): include this, link {library}.
 *
 * Every kernel is a function  void NAME(int64_t *args)  that runs once on every thread that is to
 * help; threads share one block of arguments and claim work items from its counter until none is
 * left, so that any number of them (one, too) computes the same. args, in 64-bit words:
 *   0  address of the work counter, an int64_t that is 0 at first
 *   1  address of the slot counter, an int64_t that is 0 at first; each has a cache line to itself
 *   2  address of scratch memory, aligned to 64 bytes; its contents are arbitrary
 *   3  bytes of scratch memory of each thread, a multiple of 64
 *   4  number of work items: the product of the extents of the grid
 *   then the extents of the grid, then the values of the sizes, then for every buffer, inputs
 *   first, its address and its strides in elements (a word for every dimension).
 * NAME_call fills them in: pointers and strides as above, sizes, and a number of threads (used
 * where the compiler has OpenMP on, else one thread does it all). It returns 0, TW_NO_MEMORY, or
 * TW_BAD_STRIDE where a dimension that has to be contiguous is not; outputs are the caller's.
 * f16 and bf16 are given by their bits (uint16_t), bool as 0 or 1 (uint8_t). Where a kernel takes
 * NAME_low and NAME_high beside NAME, these are the least and the greatest of every 64 elements
 * (fewer at the end) along NAME's last dimension.
 */
#ifndef TILEWRIGHT_KERNELS_H
#define TILEWRIGHT_KERNELS_H

#include <stdint.h>
#include <stdlib.h>

#define TW_ABI {abi}
#define TW_NO_MEMORY 1
#define TW_BAD_STRIDE 2

#ifdef __cplusplus
extern "C" {{
#endif

typedef void (*tw_kernel)(int64_t *args);

/* Runs a kernel whose words from 4 on are filled in. */
static inline int tw_run(tw_kernel kernel, int64_t *args, int64_t scratch_bytes, int threads) {{
  if (args[4] <= 0) return 0;
  if (threads > args[4]) threads = (int)args[4];
#ifndef _OPENMP
  threads = 1;
#endif
  if (threads < 1) threads = 1;
  char *memory = (char *)malloc((size_t)(3 * 64 + scratch_bytes * threads));
  if (!memory) return TW_NO_MEMORY;
  char *line = memory + (64 - (uintptr_t)memory % 64) % 64;
  *(int64_t *)line = 0, *(int64_t *)(line + 64) = 0;
  args[0] = (int64_t)(uintptr_t)line;
  args[1] = (int64_t)(uintptr_t)(line + 64);
  args[2] = (int64_t)(uintptr_t)(line + 128);
  args[3] = scratch_bytes;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
#endif
  kernel(args);
  free(memory);
  return 0;
}}
"""
_GPU_START = """\
/* Kernels compiled by Tilewright for {target} ({cpu}), each in NAME.cubin and, for newer devices,
 * NAME.ptx: load one of them (cuModuleLoadData), take the function NAME from it, allow it
 * NAME_SHARED_BYTES of dynamic shared memory (cuFuncSetAttribute), and launch NAME_blocks(sizes)
 * blocks of NAME_THREADS threads in one dimension. Its parameters, in this order: a pointer for
 * every buffer, inputs first; 64-bit strides in elements as listed; 64-bit sizes. With
 * NAME_ALIGNED 1, the buffers that are said to lie so start, and have strides, at multiples of 16
 * bytes.
 */
#ifndef TILEWRIGHT_KERNELS_H
#define TILEWRIGHT_KERNELS_H

#include <stdint.h>

#define TW_ABI {abi}

#ifdef __cplusplus
extern "C" {{
#endif
"""
_END = """
#ifdef __cplusplus
}
#endif
#endif
"""


def header_text(codes: Sequence[Code], target: Target, library: str) -> str:
    """The header of a library, or of a GPU's kernels."""
    if target.gpu:
        start = _GPU_START.format(target=target.name, cpu=target.cpu, abi=ABI)
        return "\n".join([start, *map(_gpu_text, codes)]) + _END
    start = _START.format(target=target.name, cpu=target.cpu, library=library, abi=ABI)
    return "\n".join([start, *map(_code_text, codes)]) + _END


def _code_text(code: Code) -> str:
    """Comment, prototype and calling function of a kernel."""
    count = len(code.params) - code.outputs
    inputs, outputs = code.params[:count], code.params[count:]
    lines = [f"/* {_comment(code.kernel)}, {class_text(code.rows)}"]
    lines += [f" *   in  {_described(b)}" for b in inputs]
    lines += [f" *   out {_described(b)}" for b in outputs]
    lines += [" */", f"void {code.symbol}(int64_t *args);"]
    arguments = [*(f"{_pointer(b, True)}" for b in inputs)]
    arguments += [_pointer(b, False) for b in outputs]
    names = sorted({n for b in code.params for s in b.shape for n in parse_size(s).names})
    arguments += [f"int64_t size_{n}" for n in names] + ["int threads"]
    words = 5 + len(code.grid) + len(code.sizes) + sum(1 + len(b.shape) for b in code.params)
    lines.append(f"static inline int {code.symbol}_call(")
    lines.append("    " + ", ".join(arguments) + ") {")
    lines += [f"  {text}" for text in _body(code, words)]
    return "\n".join([*lines, "}", ""])


def _gpu_text(code: Code) -> str:
    """Comment and launch figures of a GPU kernel."""
    image = code.image
    assert image is not None, "codes of a GPU have images"
    count = len(code.params) - code.outputs
    lines = [f"/* {_comment(code.kernel)}, {class_text(code.rows)}"]
    lines += [f" *   in  {_described(b)}" for b in code.params[:count]]
    lines += [f" *   out {_described(b)}" for b in code.params[count:]]
    strides = [f"{code.params[b].name}[{d}]" for b, d in image.strides]
    lines.append(f" *   strides: {', '.join(strides) or 'none'}")
    lines.append(f" *   sizes: {', '.join(code.sizes) or 'none'}")
    if image.wide:
        wide = ", ".join(code.params[b].name for b in image.wide)
        lines.append(f" *   at multiples of 16 bytes: {wide}")
    lines += [" */", f"#define {code.symbol}_THREADS {image.threads}"]
    lines.append(f"#define {code.symbol}_SHARED_BYTES {image.shared_bytes}")
    lines.append(f"#define {code.symbol}_ALIGNED {int(image.vectors)}")
    names = sorted({n for s, _ in code.grid for n in parse_size(s).names})
    given = ", ".join(f"int64_t size_{n}" for n in names) or "void"
    blocks = [f"(({_expression(parse_size(s))} + {t - 1}) / {t})" for s, t in code.grid]
    lines.append(f"static inline int64_t {code.symbol}_blocks({given}) {{")
    lines += [f"  return {' * '.join(blocks) or '1'};", "}", ""]
    return "\n".join(lines)


def _body(code: Code, words: int) -> Iterator[str]:
    names = {n for b in code.params for s in b.shape for n in parse_size(s).names}
    yield "".join(f"(void)size_{n}; " for n in sorted(names)) + f"int64_t args[{words}];"
    for buffer in code.params:
        if buffer.unit >= 0:
            extent = _expression(parse_size(buffer.shape[buffer.unit]))
            stride = f"strides_{buffer.name}[{buffer.unit}]"
            yield f"if ({stride} != 1 && {extent} > 1) return TW_BAD_STRIDE;"
    at = 5
    for size, tile in code.grid:
        extent = _expression(parse_size(size))
        yield f"args[{at}] = ({extent} + {tile - 1}) / {tile};"
        yield f"if (args[{at}] < 0) args[{at}] = 0;"
        at += 1
    extents = " * ".join(f"args[{5 + i}]" for i in range(len(code.grid))) or "1"
    yield f"args[4] = {extents};"
    for name in code.sizes:
        yield f"args[{at}] = size_{name};"
        at += 1
    for buffer in code.params:
        yield f"args[{at}] = (int64_t)(uintptr_t)data_{buffer.name};"
        for dim in range(len(buffer.shape)):
            yield f"args[{at + 1 + dim}] = strides_{buffer.name}[{dim}];"
        at += 1 + len(buffer.shape)
    scratch = -(-code.scratch_bytes // 64) * 64
    yield f"return tw_run({code.symbol}, args, {scratch}, threads);"


def _pointer(buffer: Buffer, constant: bool) -> str:
    """A buffer's parameters; those without dimensions have no strides."""
    kind = ("const " if constant else "") + _TYPES[buffer.dtype]
    text = f"{kind} *data_{buffer.name}"
    rank = len(buffer.shape)
    return text + (f", const int64_t strides_{buffer.name}[{rank}]" if rank else "")


def _expression(size: Size) -> str:
    """A size in C."""
    terms = []
    for monomial, factor in size.terms:
        terms.append(" * ".join([f"INT64_C({factor})", *(f"size_{n}" for n in monomial)]))
    return f"({' + '.join(terms) or '0'})"


def _described(buffer: Buffer) -> str:
    unit = f", stride of dimension {buffer.unit} is 1" if buffer.unit >= 0 else ""
    shape = " x ".join(buffer.shape) or "one number"
    return f"{buffer.name}: {shape}, {buffer.dtype}{unit}"


def _comment(text: str) -> str:
    return text.replace("*/", "* /").replace("\n", " ")
