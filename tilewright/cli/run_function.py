"""``MODULE:FUNCTION`` on the command line: what ``tilewright.compile`` makes of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tilewright.cli.inputs import check_memory, parse_input, random_inputs
from tilewright.cli.output import heading, note, plural, say
from tilewright.cli.programs import import_function
from tilewright.cli.results import (
    RunOptions,
    no_option,
    same_count,
    show_errors,
    show_kernel,
    show_tensors,
    show_times,
)
from tilewright.evaluation import to_numpy
from tilewright.ir.errors import SettingError, TilewrightError

if TYPE_CHECKING:
    import torch

    from tilewright.frontend.report import RegionReport, Report

DTYPES = {"torch.float64": "f64", "torch.float32": "f32", "torch.float16": "f16"}
DTYPES |= {"torch.bfloat16": "bf16"}


def run_function(name: str, options: RunOptions) -> bool:
    """Runs the compiled function and prints what came of it; False if the results are wrong."""
    no_option(options.sizes, "--size", "a function has inputs: --input 2x8x128x64:f32")
    why = "tilewright.compile takes the best back end that is installed"
    no_option(options.backend, "--backend", why)
    function = import_function(name)
    inputs = function_inputs(name, options.inputs, options.dtype, options.seed)
    import torch

    import tilewright
    from tilewright.runtime.threads import num_threads

    compiled = tilewright.compile(function, target=options.target)
    heading(f"{name}, for {options.target or 'host'}, {plural(num_threads(), 'thread')}")
    show_tensors([(f"input {at}", _shown(x)) for at, x in enumerate(inputs)])
    with torch.no_grad():
        call = guarded(name, lambda: compiled(*inputs))
        results = _tensors(show_times(call, options.repeat))
        show_tensors([(f"result {at}", _shown(x)) for at, x in enumerate(results)])
        good = not options.check or _check(function, inputs, results)
    _show_regions(compiled.explain(), name)
    return good


def explain_function(name: str, inputs: Sequence[str], target: str | None) -> Report:
    """What the compiled function reports after one call on random inputs."""
    function = import_function(name)
    tensors = function_inputs(name, inputs, None, 0)
    import torch

    import tilewright

    compiled = tilewright.compile(function, target=target)
    with torch.no_grad():
        guarded(name, lambda: compiled(*tensors))()
    report: Report = compiled.explain()
    return report


def function_inputs(
    name: str, texts: Sequence[str], dtype: str | None, seed: int
) -> list[torch.Tensor]:
    """The random inputs that --input asks for. SettingError if it is missing or too much."""
    if not texts:
        raise SettingError(f"{name}: a function needs its inputs: --input 2x8x128x64:f32 for each")
    shapes = [parse_input(text, dtype or "f32") for text in texts]
    check_memory(shapes)
    return random_inputs(shapes, seed)


def guarded(name: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """Calls the user's function; its exceptions become an error that names it."""

    def checked() -> Any:
        try:
            return call()
        except TilewrightError:
            raise
        except Exception as error:  # the user's code may raise anything
            text = str(error).strip().split("\n")[0]
            raise SettingError(f"{name} failed: {type(error).__name__}: {text}") from error

    return checked


def _shown(tensor: torch.Tensor) -> str:
    dtype = str(tensor.dtype)
    return " x ".join([*map(str, tensor.shape), DTYPES.get(dtype, dtype.removeprefix("torch."))])


def _tensors(result: Any) -> list[torch.Tensor]:
    """The tensors of a result: itself, or those in a tuple, list or dictionary."""
    import torch

    if isinstance(result, torch.Tensor):
        return [result]
    parts = list(result.values()) if isinstance(result, dict) else result
    if not isinstance(parts, list | tuple):
        return []
    return [x for part in parts for x in _tensors(part)]


def _check(
    function: Callable[..., Any], inputs: list[torch.Tensor], results: list[torch.Tensor]
) -> bool:
    """Compares with the function itself, run by torch in float64."""
    import torch

    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    oracle = copy.deepcopy(function).double() if isinstance(function, torch.nn.Module) else function
    try:
        wanted = _tensors(oracle(*wide))
    except Exception as error:  # a function may insist on its dtype
        note(f"error   not checked: it does not run in float64 ({type(error).__name__})")
        return True
    if not same_count(len(results), len(wanted)):
        return False
    pairs = zip(results, wanted, strict=True)
    rows = [
        (f"result {at}", to_numpy(got), to_numpy(right), DTYPES.get(str(got.dtype), ""))
        for at, (got, right) in enumerate(pairs)
    ]
    return show_errors(rows)


def _show_regions(report: Report, name: str) -> None:
    """A line for each region and for each of its kernels; the rest is explain's business."""
    say(f"regions {len(report.regions)}")
    for region in report.regions:
        _show_region(region)
    left = [row for graph in report.graphs for row in graph.left]
    count = sum(row.count for row in left)
    kinds = ", ".join(dict.fromkeys(row.op for row in left))
    say(f"torch   {plural(count, 'operation')}" + (f": {kinds}" if kinds else ""))
    note(f"all of it: tilewright explain {name} --input …")


def _show_region(region: RegionReport) -> None:
    say(f"  {region.name}: {region.status}" + (f", {region.reason}" if region.reason else ""))
    for reason, times in region.fallbacks.items():
        say(f"    with torch {plural(times, 'time')}: {reason}")
    for kernel in region.kernels["kernels"] if region.kernels else ():
        show_kernel(kernel)
