"""Quantised layers under torch.compile, tilewright.compile and torch's function transforms."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import tilewright
from tests.frontend.quantize.models import Network, indices, weight
from tilewright.frontend.quantize.layers import QuantizedLinear


@pytest.fixture
def model() -> Network:
    network = Network().eval()
    tilewright.quantize(network, "u4", group=16, plan={"head": "u6"}, activation="int8")
    return network


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "tilewright"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_one_graph_with_the_same_result(model: Network, backend: str, dynamic: bool | None) -> None:
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)
    with torch.no_grad():
        for shape in ((2, 7), (3, 5), (1, 1)):
            torch.testing.assert_close(compiled(indices(*shape)), model(indices(*shape)))


def test_inductor(model: Network) -> None:
    import torch._inductor.config as inductor

    compiled = torch.compile(model, fullgraph=True)
    # else it tries seven instruction sets first, each by a compiler and a process that loads torch
    with torch.no_grad(), inductor.patch({"cpp.vec_isa_ok": True}):
        # int8 rounding turns the last bit of a fused norm into a step now and then
        torch.testing.assert_close(compiled(indices()), model(indices()), rtol=0, atol=0.05)


@pytest.mark.parametrize("backend", ["aot_eager", "tilewright"])
def test_gradients(backend: str) -> None:
    layer = QuantizedLinear(weight(6, 40), torch.nn.Parameter(torch.zeros(6)))
    x, y = (torch.ones(3, 40, requires_grad=True) for _ in range(2))
    torch.compile(lambda v: layer(v).square(), backend=backend, fullgraph=True)(x).sum().backward()
    grad = layer.bias.grad.clone()
    layer.bias.grad = None
    layer(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(grad, layer.bias.grad)


def test_tilewright_compile_accepts_it_strictly_and_says_so(model: Network) -> None:
    compiled = tilewright.compile(model, strict=True)
    with torch.no_grad():
        assert torch.equal(compiled(indices()), model(indices()))
        assert torch.equal(compiled(indices(3, 4)), model(indices(3, 4)))
    text = str(compiled.explain())
    assert "products with quantised weights have kernels of their own" in text
    assert "quantized_linear" in text and "1 x quantized_embedding" in text
    assert "self.embed(indices)" in text  # the line of the model, not of the layer


def test_a_compiled_model_sees_a_loaded_state(model: Network) -> None:
    torch.manual_seed(5)
    other = Network().eval()
    tilewright.quantize(other, "u4", group=16, plan={"head": "u6"}, activation="int8")
    compiled = tilewright.compile(model)
    with torch.no_grad():
        before = compiled(indices())
        model.load_state_dict(other.state_dict())
        assert not torch.equal(compiled(indices()), before)
        assert torch.equal(compiled(indices()), tilewright.compile(other)(indices()))


@pytest.mark.parametrize("dynamic", [None, True])
def test_other_weights_of_a_compiled_function_are_not_mixed_up(dynamic: bool | None) -> None:
    """Same shapes of all tensors: only the form tells these apart."""

    def product(x: torch.Tensor, q: object) -> torch.Tensor:
        return tilewright.linear(x, q)  # type: ignore[arg-type]

    compiled = torch.compile(product, backend="eager", fullgraph=True, dynamic=dynamic)
    x = torch.randn(3, 64)
    for form in ("f4e2m1", "nf4", "i4"):
        q = weight(6, 64, form)
        assert torch.equal(compiled(x, q), tilewright.linear(x, q))


def test_export(model: Network) -> None:
    program = torch.export.export(model, (indices(),))
    torch.testing.assert_close(program.module()(indices()), model(indices()))


def test_tracing_sees_one_op() -> None:
    layer = QuantizedLinear(weight(6, 40))
    graph = make_fx(layer)(torch.randn(3, 40)).graph
    assert [str(node.target) for node in graph.nodes if node.op == "call_function"] == [
        "tilewright.linear.default"
    ]
