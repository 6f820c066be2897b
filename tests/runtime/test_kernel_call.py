"""Calling a kernel: the argument block, sizes, outputs, scratch, threads, and what it refuses."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.errors import BindError, UnsupportedError
from tilewright.ir.sizes import Size, SizeLike, parse_size
from tilewright.ir.types import BufferType, TensorType
from tilewright.runtime import kernel as kernel_module
from tilewright.runtime import threads
from tilewright.runtime.calls import sizes_function
from tilewright.runtime.kernel import Kernel
from tilewright.runtime.native import NativeFunction

MakeNative = Callable[[str, str], NativeFunction]
MakeBuffer = Callable[..., BufferType]
NOTHING = NativeFunction(0, None)  # its call would crash: for kernels that are never run


def inputs(n: int, m: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, m, generator=generator), torch.randn(n, m, generator=generator)


def dump(make_native: MakeNative, words: int) -> NativeFunction:
    """Code that copies its arguments and its counters' values to its last buffer (rank 1, i64),
    and leaves the counters changed."""
    text = f"""
    declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
    define void @dump(ptr %args) {{
      %place = getelementptr i64, ptr %args, i64 {words - 2}
      %out = load ptr, ptr %place
      call void @llvm.memcpy.p0.p0.i64(ptr %out, ptr %args, i64 {8 * words}, i1 false)
      %work = load ptr, ptr %args
      %old_work = atomicrmw add ptr %work, i64 7 monotonic
      %slots_place = getelementptr i64, ptr %args, i64 1
      %slots = load ptr, ptr %slots_place
      %old_slots = atomicrmw add ptr %slots, i64 7 monotonic
      %at_work = getelementptr i64, ptr %out, i64 {words}
      store i64 %old_work, ptr %at_work
      %at_slots = getelementptr i64, ptr %out, i64 {words + 1}
      store i64 %old_slots, ptr %at_slots
      ret void
    }}"""
    return make_native(text, "dump")


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 7), (33, 64), (1, 500)])
def test_result_is_right_for_any_number_of_threads(
    scaled_add: Kernel, workers: int, shape: tuple[int, int]
) -> None:
    threads.set_num_threads(workers)
    x, y = inputs(*shape)
    for _ in range(5):  # threads meet in another order each time
        (out,) = scaled_add(x, y)
        assert torch.equal(out, 2 * x + y)
        assert out.is_contiguous()


def test_any_strides(scaled_add: Kernel) -> None:
    x, y = inputs(12, 20)
    for a in (x[::2, 1::3], x.T[:6, :7].flip(0).T[:6], x[:1, :7].expand(6, 7), x[3:9, 5:12]):
        b = y[: a.shape[0], : a.shape[1]]
        assert torch.equal(scaled_add(a, b)[0], 2 * a + b)
    column = torch.randn(1).expand(6, 7)
    assert torch.equal(scaled_add(column, column)[0], 3 * column)


def test_the_argument_block(make_native: MakeNative, buffer: MakeBuffer) -> None:
    params = [buffer("2*N", "M", 3), buffer("M", dtype="bf16"), buffer("W", dtype="i64")]
    params.insert(2, buffer("W", dtype="u8"))
    words = 5 + 3 + 3 + (1 + 3) + (1 + 1) + (1 + 1) + (1 + 1)
    grid: list[tuple[SizeLike, int]] = [("N*M", 4), (Size.of("M"), 1), (5, 2)]
    code = dump(make_native, words)
    kernel = Kernel("dump", params, ["M", "N", "W"], grid, 1, 100, code)
    x = torch.zeros(3, 9, 14)[:, ::3, ::2].permute(2, 1, 0)[:6]
    b, w = torch.zeros(3, dtype=torch.bfloat16), torch.zeros(words + 2, dtype=torch.uint8)
    threads.set_num_threads(1)  # two workers would see each other's changes of the counters
    for _ in range(2):  # the second time the counters have to be set back to zero
        (out,) = kernel(x, b, w)
        got = out.tolist()
        work, slots, scratch, scratch_bytes, items = got[:5]
        assert work % 64 == slots % 64 == scratch % 64 == 0 and abs(work - slots) >= 64
        assert scratch_bytes == 128  # whole cache lines
        assert items == 3 * 3 * 3
        assert got[5:11] == [3, 3, 3, 3, 3, words + 2]
        assert got[11:15] == [x.data_ptr(), *x.stride()]
        assert got[15:words] == [b.data_ptr(), 1, w.data_ptr(), 1, out.data_ptr(), 1]
        assert got[words:] == [0, 0]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_no_work_makes_no_call(buffer: MakeBuffer, shape: tuple[int, int]) -> None:
    grid = [("N", 2), ("M", 3)]
    kernel = Kernel("f", [buffer("N", "M")] * 2, ["N", "M"], grid, 1, 8, NOTHING)
    (out,) = kernel(torch.randn(*shape))
    assert out.shape == shape


def test_scalars_and_several_outputs(make_native: MakeNative, buffer: MakeBuffer) -> None:
    params = [buffer(), buffer("N"), buffer(dtype="f64"), buffer("N", "N + 1", dtype="bool")]
    code = make_native("define void @nop(ptr %a) { ret void }", "nop")
    kernel = Kernel("f", params, ["N"], [], 2, 0, code)
    first, second = kernel(torch.tensor(1.0), torch.zeros(4))
    assert (first.shape, first.dtype) == ((), torch.float64)
    assert (second.shape, second.dtype) == ((4, 5), torch.bool)


def test_eight_python_threads_at_once(scaled_add: Kernel) -> None:
    threads.set_num_threads(2)

    def work(seed: int) -> bool:
        pairs = [inputs(3 + seed * i % 40, 50, seed) for i in range(60)]
        return all(torch.equal(scaled_add(x, y)[0], 2 * x + y) for x, y in pairs)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_a_call_from_within_a_call(scaled_add: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finaliser may call the kernel between filling the arguments and running the code."""
    x, y = inputs(7, 9)
    scaled_add(x, y)  # leaves an argument block in the pool
    inner: list[torch.Tensor] = []
    run = threads.run_parallel

    def interrupted(function: int, arguments: int, workers: int) -> None:
        if not inner:
            inner.append(torch.empty(0))
            inner.append(scaled_add(y[:3], x[:3])[0])
        run(function, arguments, workers)

    monkeypatch.setattr(kernel_module, "run_parallel", interrupted)
    scaled_add.call = scaled_add._compile()
    (outer,) = scaled_add(x, y)
    assert torch.equal(outer, 2 * x + y)
    assert torch.equal(inner[1], 2 * y[:3] + x[:3])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_computes_the_same(scaled_add: Kernel) -> None:
    threads.set_num_threads(2)
    x, y = inputs(40, 50)
    expected = scaled_add(x, y)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork in a threaded process
        child = os.fork()
    if not child:
        signal.alarm(20)  # a hang ends with this signal instead of an exit code
        os._exit(0 if scaled_add(x, y)[0].equal(expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_no_more_workers_than_items(scaled_add: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(kernel_module, "run_parallel", lambda f, a, workers: seen.append(workers))
    scaled_add.call = scaled_add._compile()
    threads.set_num_threads(4)
    for shape in ((2, 3), (2, 4), (9, 9)):  # 1, 2 and 15 items
        scaled_add(*inputs(*shape))
    assert seen == [1, 2, 4]


def test_pools_do_not_grow_with_calls(scaled_add: Kernel) -> None:
    x, y = inputs(40, 50)
    kernel_module._free_scratch.clear()
    for workers in (1, 3, 2, 3):
        threads.set_num_threads(workers)
        scaled_add(x, y)
    assert len(scaled_add._frames) == len(kernel_module._free_scratch) == 1
    assert kernel_module._free_scratch[0][1] == 3 * 64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: (x,), r"scaled_add takes 2 inputs \(%x, %y\), 1 given"),
        (lambda x: (x, x, x), r"takes 2 inputs \(%x, %y\), 3 given"),
        (lambda x: (x[0], x), r"%x: buffer<N x M x f32, unit 1> has 2 dimensions, .* has 1 \(6\)"),
        (lambda x: (x, x[:3]), r"dimension 0 of %y: .* must be N = 4 \(N = 4\), the input has 3"),
        (lambda x: (x, x.double()), r"%y: .* must have dtype torch.float32, .* torch.float64"),
        (lambda x: (x.to("meta"), x), r"%x: .* must be on the CPU, the input is on meta"),
        (lambda x: (x, 3), r"%y: .* must be a torch tensor, the input is a int"),
        (lambda x: (x, x.numpy()), r"%y: .* must be a torch tensor, the input is a ndarray"),
        (lambda x: (x.to_sparse(), x), r"%x: .* must be dense \(.to_dense\(\)\)"),
        (lambda x: (x, torch.complex(x, x).conj().imag), r"%y: .*\.resolve_neg\(\)"),
    ],
)
def test_wrong_inputs(
    scaled_add: Kernel, make: Callable[[torch.Tensor], tuple[object, ...]], message: str
) -> None:
    with pytest.raises(BindError, match=message):
        scaled_add(*make(torch.randn(4, 6)))  # type: ignore[arg-type]


def test_products_are_divided(buffer: MakeBuffer, make_native: MakeNative) -> None:
    code = make_native("define void @nop(ptr %a) { ret void }", "nop")
    params = [buffer("G*K", "8*K"), buffer("K + 2"), buffer("G", "K")]
    kernel = Kernel("f", params, ["G", "K"], [("G", 1)], 1, 0, code, hints=("w", "s"))
    assert kernel(torch.zeros(15, 24), torch.zeros(5))[0].shape == (5, 3)
    assert kernel(torch.zeros(0, 0), torch.zeros(2))[0].shape == (0, 0)
    for shapes, message in [
        (((15, 23), 5), r"dimension 1 of %w: .* a multiple of 8, the input has 23"),
        (((16, 24), 5), r"dimension 0 of %w: .* a multiple of 3, the input has 16"),
        (((15, 24), 6), r"dimension 0 of %s: .* must be K \+ 2 = 5 \(K = 3\), the input has 6"),
        (((2, 0), 2), r"dimension 0 of %w: .* a multiple of 0, the input has 2"),
    ]:
        with pytest.raises(BindError, match=message):
            kernel(torch.zeros(*shapes[0]), torch.zeros(shapes[1]))


def test_a_name_alone_counts_before_a_product(buffer: MakeBuffer, make_native: MakeNative) -> None:
    code = make_native("define void @nop(ptr %a) { ret void }", "nop")
    params = [buffer("N", "N*M"), buffer("M + 1"), buffer("2*M"), buffer("M", "N")]
    kernel = Kernel("f", params, ["N", "M"], [("N", 1)], 1, 0, code)
    assert kernel(torch.zeros(0, 0), torch.zeros(4), torch.zeros(6))[0].shape == (3, 0)


def test_sums_of_names_are_solved(buffer: MakeBuffer, make_native: MakeNative) -> None:
    code = make_native("define void @nop(ptr %a) { ret void }", "nop")
    params = [buffer("M", "N*M", "N + 1"), buffer("2*K + M"), buffer("N", "M", "K")]
    kernel = Kernel("f", params, ["N", "M", "K"], [("N", 1)], 1, 0, code, hints=("x", "y"))
    assert kernel(torch.zeros(0, 0, 3), torch.zeros(8))[0].shape == (2, 0, 4)
    assert kernel(torch.zeros(4, 8, 3), torch.zeros(4))[0].shape == (2, 4, 0)
    for x, y, message in [
        ((0, 0, 0), 4, r"dimension 2 of %x: .* a multiple of 1 more than 1, the input has 0"),
        ((4, 8, 3), 2, r"dimension 0 of %y: .* a multiple of 2 more than M, the input has 2"),
        ((4, 8, 3), 7, r"dimension 0 of %y: .* a multiple of 2 more than M, the input has 7"),
        ((0, 1, 3), 0, r"dimension 1 of %x: .* the input has 1"),
    ]:
        with pytest.raises(BindError, match=message):
            kernel(torch.zeros(x), torch.zeros(y))


def test_which_product_gives_a_size_depends_on_the_call(
    buffer: MakeBuffer, make_native: MakeNative
) -> None:
    """Whichever of two factors is 0, the other one's product is solved first."""
    code = make_native("define void @nop(ptr %a) { ret void }", "nop")
    params = [buffer("M", "K"), buffer("A*M", "B*K", "A*B"), buffer("A", "B")]
    kernel = Kernel("f", params, ["A", "B", "K", "M"], [("A", 1)], 1, 0, code)
    for m, k in ((2, 5), (0, 5), (2, 0)):
        shape = (3 * m, 4 * k, 12)
        assert kernel(torch.zeros(m, k), torch.zeros(shape))[0].shape == (3, 4)


def test_sizes_that_no_input_gives(buffer: MakeBuffer) -> None:
    for params, sizes in [
        ([buffer("N"), buffer("N")], ["N", "M"]),
        ([buffer("N"), buffer("M")], ["N"]),
        ([buffer("N*M"), buffer("N")], ["N"]),
        ([buffer("N + 1"), buffer("M")], ["N"]),
    ]:
        with pytest.raises(BindError, match=r"f: size [NM] follows from no input"):
            Kernel("f", params, sizes, [("N", 1)], 1, 0, NOTHING)


def test_dtype_that_torch_lacks(buffer: MakeBuffer) -> None:
    odd = BufferType((Size.of("N"),), F32.__class__("f3e1m1", "float", 3, "float32"), 0)
    with pytest.raises(UnsupportedError, match="torch has no tensors of f3e1m1"):
        Kernel("f", [odd, buffer("N")], ["N"], [("N", 1)], 1, 0, NOTHING)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_tensors_without_memory_do_not_reach_native_code(scaled_add: Kernel) -> None:
    x, y = inputs(4, 6)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = mode.from_tensor(x)
    for tensor in (fake, torch._efficientzerotensor((4, 6)), emptied(x)):
        with pytest.raises(BindError, match="scaled_add: %y must be a real tensor"):
            scaled_add(y, tensor)
    with mode, pytest.raises(BindError, match="an output must be a real tensor"):
        scaled_add(y, y)


def emptied(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whose memory was given back, as FSDP does it."""
    copy = tensor.clone()
    copy.untyped_storage().resize_(0)
    return copy


def test_an_empty_input_is_no_tensor_without_memory(
    make_native: MakeNative, buffer: MakeBuffer
) -> None:
    code = make_native("define void @nop(ptr %a) { ret void }", "nop")
    kernel = Kernel("f", [buffer("M"), buffer(3)], ["M"], [(3, 1)], 1, 0, code)
    assert kernel(torch.empty(0))[0].shape == (3,)


def test_output_is_on_the_cpu_whatever_the_default(scaled_add: Kernel) -> None:
    x, y = inputs(4, 6)
    with torch.device("meta"):
        (out,) = scaled_add(x, y)
    assert torch.equal(out, 2 * x + y)


SIZES = ["N", "M", "3", "2*N", "N*M", "N + 1", "N*M + 2*N", "0", "N + 2*K", "N*K", "K*M", "N*N"]


@given(
    st.lists(st.lists(st.sampled_from(SIZES), max_size=3), min_size=1, max_size=3),
    st.data(),
)
def test_sizes_agree_with_bind_sizes(texts: list[list[str]], data: st.DataObject) -> None:
    """Shapes are accepted if the sizes found give just these, and refused if no sizes do."""
    types = [BufferType(tuple(map(parse_size, t)), F32) for t in texts]
    names = sorted({n for t in types for s in t.shape for n in s.names})
    words: list[int] = []

    def read(function: int, arguments: int, workers: int) -> None:
        at = arguments + 8 * (5 + 1)
        words.extend((ctypes.c_int64 * len(names)).from_address(at))

    with mock.patch.object(kernel_module, "run_parallel", read):
        try:
            kernel = Kernel("f", types, names, [(1, 1)], 0, 0, NOTHING)
        except BindError:
            return
    values = {name: data.draw(st.integers(0, 3)) for name in "NMK"}
    shapes = [[s.evaluate(values) for s in t.shape] for t in types]
    if data.draw(st.booleans()):
        change = st.sampled_from([0, 0, 0, 1])
        shapes = [[n + data.draw(change) for n in shape] for shape in shapes]
    try:
        kernel(*[torch.empty(shape) for shape in shapes])
    except BindError:  # an AssertionError would mean that bind_sizes accepts it
        # with a size of 0, a product does not tell its other sizes, and one of them may count as 0
        assert 0 in values.values() or not fits(types, shapes)
    else:
        found = dict(zip(names, words, strict=True))
        assert [[s.evaluate(found) for s in t.shape] for t in types] == shapes


@given(
    st.lists(st.lists(st.sampled_from(SIZES), max_size=3), min_size=1, max_size=3),
    st.fixed_dictionaries({name: st.integers(1, 5) for name in "NMK"}),
)
def test_sizes_of_tensors_that_fit(texts: list[list[str]], values: dict[str, int]) -> None:
    """What ``bind_sizes`` finds is found without looking for mistakes."""
    types = [TensorType(tuple(map(parse_size, t)), F32) for t in texts]
    names = tuple(sorted({n for t in types for s in t.shape for n in s.names}))
    graph = Graph("graph", "f", names, Region(tuple(Value(t, "x") for t in types), ()))
    shapes = [tuple(s.evaluate(values) for s in t.shape) for t in types]
    try:
        sizes = sizes_function(graph)
    except BindError:
        return
    assert sizes(*map(torch.empty, shapes)) == bind_sizes(graph, shapes)


def fits(types: list[BufferType], shapes: list[list[int]]) -> bool:
    """Whether any small sizes give these shapes, by trying all (0 stands for a free size)."""
    tries = itertools.product(range(16), repeat=3)
    named = (dict(zip("NMK", v, strict=True)) for v in tries)
    return any(shapes == [[s.evaluate(v) for s in t.shape] for t in types] for v in named)
