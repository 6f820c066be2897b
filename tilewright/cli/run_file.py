"""``tilewright run FILE``: a tensor-level program through its kernels and through the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from tilewright.cli.inputs import (
    check_memory,
    input_shapes,
    result_shapes,
    with_dtype,
)
from tilewright.cli.output import heading, note, plural, say
from tilewright.cli.programs import only_tensor_level, read_program
from tilewright.cli.results import (
    RunOptions,
    same_count,
    show_errors,
    show_kernel,
    show_tensors,
    show_times,
)
from tilewright.cli.sizes import choose_sizes, parse_sizes
from tilewright.evaluation import evaluate, to_numpy
from tilewright.ir.core import Graph, Module
from tilewright.ir.dtypes import Array
from tilewright.ir.errors import SettingError, UnsupportedError
from tilewright.ir.ops_tensor import Contract
from tilewright.ir.sizes import product
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch

    from tilewright.runtime.verification.case import Call
    from tilewright.runtime.verification.compare import Comparison
    from tilewright.runtime.verification.values import InputSpec

ORACLE_ELEMENTS = 1 << 25  # the largest tensor that the oracle may hold: 256 MiB in f64
ORACLE_PRODUCTS = 1 << 35  # the most multiply-adds of one contraction: seconds


def run_file(name: str, options: RunOptions) -> bool:
    """Runs the program and prints what came of it; False if the results are wrong."""
    module = only_tensor_level(read_program(name), name, "run")
    if options.dtype is not None:
        module = with_dtype(module, options.dtype)
    graph = module.main
    given = parse_sizes(options.sizes)
    sizes = choose_sizes(graph, given)
    shapes = input_shapes(graph, sizes)
    results = result_shapes(graph, sizes)
    check_memory([*shapes, *results])
    from tilewright.runtime.program import Program
    from tilewright.runtime.threads import num_threads
    from tilewright.runtime.verification.case import Call
    from tilewright.runtime.verification.check import inputs_of

    program = Program(module, target=options.target, backend=options.backend)
    where = f"{program.target.name} by {program.backend}"
    heading(f"{graph.name}, for {where}, {plural(num_threads(), 'thread')}")
    _show_sizes(sizes, given)
    rows = [(f"%{p.hint}", str(s)) for p, s in zip(graph.params, shapes, strict=True)]
    rows += [(f"-> %{v.hint}", str(s)) for v, s in zip(graph.results, results, strict=True)]
    show_tensors(rows)
    call = Call(sizes, options.seed, named_specs(options.inputs))
    inputs = inputs_of(graph, call)
    outputs = show_times(lambda: program(*inputs), options.repeat)
    good = not options.check or _check(module, call, inputs, outputs)
    report = program.explain()
    say(f"kernels {len(report.kernels)}")
    for kernel in report.kernels:
        show_kernel(asdict(kernel))
    return good


def _show_sizes(sizes: Mapping[str, int], given: Mapping[str, int]) -> None:
    if not sizes:
        return
    chosen = [name for name in sizes if name not in given]
    remark = f"   ({', '.join(chosen)} chosen; --size sets them)" if chosen else ""
    say(f"sizes   {', '.join(f'{k} = {n}' for k, n in sizes.items())}{remark}")


def named_specs(texts: Sequence[str]) -> dict[str, InputSpec]:
    """``["q=normal,strides=1x64"]`` by name. Raises SettingError."""
    from tilewright.runtime.verification.values import parse_spec

    specs = {}
    for text in texts:
        name, equals, spec = text.partition("=")
        if not equals:
            raise SettingError(
                f"--input {text!r}: name an input of the program and say what it holds, such as "
                "q=normal or q=normal,strides=1x64 (its shape follows from --size)"
            )
        specs[name.strip().removeprefix("%")] = parse_spec(spec)
    return specs


def _check(
    module: Module,
    call: Call,
    inputs: list[torch.Tensor],
    outputs: tuple[torch.Tensor, ...],
) -> bool:
    """Prints the largest errors against the oracle, unless that would take too long."""
    if too_large_for_the_oracle(module.main, call.sizes):
        note("error   not checked: too large for the oracle, which holds every value in float64")
        return True
    wanted, bounds = _oracle(module, call, inputs, outputs)
    if not same_count(len(outputs), len(wanted)):
        return False
    named = zip(module.main.results, outputs, wanted, strict=True)
    rows = []
    for value, got, right in named:
        assert isinstance(value.type, TensorType)
        rows.append((f"%{value.hint}", to_numpy(got), right, str(value.type.dtype)))
    return show_errors(rows, bounds)


def _oracle(
    module: Module,
    call: Call,
    inputs: list[torch.Tensor],
    outputs: tuple[torch.Tensor, ...],
) -> tuple[Sequence[Array], Sequence[Comparison] | None]:
    """Exact results, and how the outputs compare with their bounds; None where an operation has
    no rule for one."""
    from tilewright.runtime.verification.check import exact_results
    from tilewright.runtime.verification.compare import compare

    try:
        exact = exact_results(module.main, call, inputs)
    except UnsupportedError:
        return evaluate(module, *inputs, precision="f64", sizes=dict(call.sizes)), None
    pairs = zip(outputs, exact, strict=False)
    return [e.x for e in exact], [compare([to_numpy(got)], [e]) for got, e in pairs]


def too_large_for_the_oracle(graph: Graph, sizes: Mapping[str, int]) -> bool:
    """True if a value has too many elements, or a contraction too many products."""
    for op in graph.body.ops:
        for result in op.results:
            assert isinstance(result.type, TensorType)
            if product(result.type.shape).evaluate(sizes) > ORACLE_ELEMENTS:
                return True
        if isinstance(op, Contract) and _products(op, sizes) > ORACLE_PRODUCTS:
            return True
    return False


def _products(op: Contract, sizes: Mapping[str, int]) -> int:
    left, right, _ = op.letters()
    lengths: dict[str, int] = {}
    for letters, value in ((left, op.lhs), (right, op.rhs)):
        shape = op.tensor(value).shape
        lengths.update({x: s.evaluate(sizes) for x, s in zip(letters, shape, strict=True)})
    return product(lengths.values()).evaluate({})
