"""A compiled module's own state: hooks, copies, and what lives as long as it does."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.frontend.test_attention_spellings import inputs
from tests.frontend.test_compile import QKV, Loop, attend
from tilewright.frontend.compile import CompiledModule, Function, compile


def test_hooks_run_around_the_compiled_call() -> None:
    """As they do around torch.compile's; none of them becomes one of the module's own."""
    seen: list[Any] = []
    module, x = Loop().eval(), torch.randn(2, 5, 8)
    compiled = compile(module)
    with torch.no_grad():
        plain = compiled(x)
        handles = [
            compiled.register_forward_pre_hook(lambda m, a: (a[0] * 2,)),
            compiled.register_forward_pre_hook(
                lambda m, a, k: seen.append((m, k)), with_kwargs=True
            ),
            compiled.register_forward_hook(lambda m, a, k, o: o + 1, with_kwargs=True),
            compiled.register_forward_hook(lambda m, a, o: o * 3),
        ]
        torch.testing.assert_close(compiled(x), (module(2 * x) + 1) * 3)
        torch.testing.assert_close(compiled.forward(x), plain)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(compiled(x), plain)
    assert [m for m, _ in seen] == [compiled]


def test_hooks_of_gradients_run_once() -> None:
    seen: list[nn.Module] = []
    module = nn.Linear(8, 8)
    compiled = compile(module)
    compiled.register_full_backward_hook(lambda m, i, o: seen.append(m))
    compiled.register_full_backward_pre_hook(lambda m, o: seen.append(m))
    compiled(torch.randn(3, 8)).sum().backward()
    assert seen == [compiled, compiled] and module._is_full_backward_hook is None
    assert module.weight.grad is not None


class CopiesItself(Loop):
    """A module that says how it is copied, as torch.fx's do."""

    def __deepcopy__(self, _memo: object) -> CopiesItself:
        made = CopiesItself().train(self.training)
        made.load_state_dict(self.state_dict())
        return made


COPIES: dict[str, Function] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda compiled: pickle.loads(pickle.dumps(compiled)),
}


@pytest.mark.parametrize("kind", [Loop, CopiesItself])
@pytest.mark.parametrize("way", COPIES)
def test_copies_of_compiled_modules_compile_anew(way: str, kind: type[Loop]) -> None:
    compiled = compile(kind().eval(), verify=True, dynamic=False)
    compiled.register_full_backward_hook(_nothing)
    compiled.register_forward_hook(_doubled)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        wanted = compiled(x)
        made = COPIES[way](compiled)
        assert isinstance(made, CompiledModule) and not made.explain().regions
        torch.testing.assert_close(made(x), wanted)
        compiled.proj.weight.zero_()
        torch.testing.assert_close(made(x), wanted)
        made(x[:1])
    assert len(made.explain().graphs) == 2, "dynamic=False: a graph for each batch"
    assert made._compiled.options == compiled._compiled.options and not made.training
    assert made._is_full_backward_hook and compiled.explain().regions[0].calls == 1


def _doubled(_module: nn.Module, _inputs: object, out: Tensor) -> Tensor:
    return out * 2


def _nothing(_module: nn.Module, _before: object, _after: object) -> None: ...


@pytest.mark.parametrize("way", COPIES)
def test_copies_of_compiled_functions_compile_anew(way: str) -> None:
    compiled, tensors = compile(attend, strict=True), inputs(*QKV)
    with torch.no_grad():
        compiled(*tensors)
        made = COPIES[way](compiled)
        torch.testing.assert_close(made(*tensors), attend(*tensors))
    assert made.explain().regions[0].calls == 1 and compiled.explain().regions[0].calls == 1
    assert made._compiled.options.strict


class Halting(Loop):
    """Two graphs, with torch's Python between them."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        torch._dynamo.graph_break()
        return attend(x, x, x)


@pytest.mark.parametrize("kind", [Loop, Halting])
def test_graphs_go_with_what_was_compiled(kind: type[Loop]) -> None:
    """Dynamo keeps every backend that it was given; live ones are not disturbed."""
    x = torch.randn(2, 5, 8)
    live = compile(kind().eval())
    gone: list[weakref.ref[Any]] = []
    with torch.no_grad():
        wanted = live(x)
        for _ in range(3):
            module = kind().eval()
            compiled, function = compile(module), compile(lambda x: attend(x, x, x))
            compiled(x), function(x)
            captures = (compiled._compiled.capture, function._compiled.capture)
            gone += map(weakref.ref, (module, *captures, *captures[0].graphs))
        del module, compiled, function, captures
        gc.collect()
        assert not [ref() for ref in gone if ref() is not None]
        torch.testing.assert_close(live(x), wanted)
        live(x[:1])
    assert len(live.explain().graphs) == (4 if kind is Halting else 2)
