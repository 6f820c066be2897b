"""A program that runs a module in the interpreter, so that these tests need no back end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tilewright.frontend.build import Built, build_module
from tilewright.frontend.classify import Analysis
from tilewright.frontend.functionalise import functionalise_scores
from tilewright.frontend.op_map import FILLED
from tilewright.frontend.regions import Region
from tilewright.frontend.torch_dtypes import torch_dtype
from tilewright.frontend.translate import fake_of
from tilewright.ir.core import Module
from tilewright.ir.evaluate import evaluate
from tilewright.ir.types import TensorType

assert FILLED


class StandInReport:
    def __str__(self) -> str:
        return "kernel: interpreted"

    def to_dict(self) -> dict[str, object]:
        return {"kernels": ["interpreted"]}


class StandInProgram:
    """The interface of ``tilewright.runtime.program.Program``."""

    made: int = 0
    supported = True

    def __init__(self, module: Module, target: str | None = None) -> None:
        StandInProgram.made += 1
        self.module = module

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return run_module(self.module, inputs)

    def explain(self) -> StandInReport:
        return StandInReport()


def run_module(
    module: Module, inputs: Sequence[torch.Tensor], precision: str | None = None
) -> tuple[torch.Tensor, ...]:
    """``evaluate`` on torch tensors; results in the dtypes of the module (f64 stays f64)."""
    outputs = evaluate(module, *map(as_array, inputs), precision=precision)
    results = []
    for value, output in zip(module.main.results, outputs, strict=True):
        assert isinstance(value.type, TensorType)
        tensor = torch.from_numpy(np.array(output, order="C"))
        wide = precision == "f64" and value.type.dtype.is_float
        results.append(tensor if wide else tensor.to(torch_dtype(value.type.dtype)))
    return tuple(results)


def as_array(x: torch.Tensor) -> Any:
    narrow = x.dtype in (torch.bfloat16, torch.float16)
    return (x.float() if narrow else x).detach().numpy()


def translate_whole(
    function: Callable[..., Any], *inputs: torch.Tensor, dynamic: bool = True
) -> tuple[Built, list[torch.Tensor]]:
    """All of a function as one region, whatever the rules for regions say, and its inputs in the
    order of the module's parameters. ``dynamic``: with sizes that may change."""
    found: list[tuple[Built, list[torch.Tensor]]] = []

    def backend(gm: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        functionalise_scores(gm)
        analysis = Analysis(gm.graph)
        region = whole_region(analysis)
        built = build_module(region)
        places = [n for n in analysis.nodes if n.op == "placeholder"]

        def run(*args: Any) -> Any:
            found.append((built, [args[places.index(n)] for n in region.inputs]))
            return gm.forward(*args)

        return run

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)(*inputs)
    assert len(found) == 1
    return found[0]


def in_torch_order(built: Built, results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Results with the dimensions in torch's order (they are computed in memory order)."""
    pairs = zip(results, built.orders, strict=True)
    return [r if order is None else r.permute(order) for r, order in pairs]


def whole_region(analysis: Analysis) -> Region:
    nodes = [n for n in analysis.nodes if n.op.startswith("call_") and is_tensor(fake_of(n))]
    inputs = [n for n in analysis.nodes if n.op == "placeholder" and is_tensor(fake_of(n))]
    inputs = [n for n in inputs if any(u in nodes for u in n.users)]
    (output,) = [n for n in analysis.nodes if n.op == "output"]
    return Region(frozenset(nodes), nodes, inputs, list(output.all_input_nodes), nodes[-1])


def is_tensor(fake: Any) -> bool:
    return isinstance(fake, torch.Tensor | tuple)
