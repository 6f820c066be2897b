"""A bundle in use: programs and public functions take their kernels from it and give the same bits;
what is not in it is compiled, or refused by the key that differs where nothing compiles."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tilewright
from tests import bundle_programs as programs
from tests.bundle_programs import numbers
from tilewright.ir.errors import BackendMissingError, BundleError, NotInBundleError
from tilewright.ir.parser import parse
from tilewright.runtime import backends, native, native_code
from tilewright.runtime.bundle import active
from tilewright.runtime.bundle.active import bundle_in_use, use_bundle
from tilewright.runtime.bundle.bundle import Bundle
from tilewright.runtime.bundle.collect import Collector, collecting
from tilewright.runtime.bundle.export import Exporter
from tilewright.runtime.bundle.folder import write_folder
from tilewright.runtime.bundle.manifest import Sized
from tilewright.runtime.program import Program
from tilewright.runtime.settings import settings
from tilewright.runtime.targets import host_target
from tilewright.runtime.tracing.recorder import recording
from tilewright.runtime.tuned import BySize

HEAD = programs.Attention(64, 32)


def attention_inputs(rows: int = 40, kind: torch.dtype = torch.float32) -> list[torch.Tensor]:
    shapes = (1, 2, rows, 64), (1, 2, 50, 64), (1, 2, 50, 32)
    return [numbers(*shape, dtype=kind) for shape in shapes]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attention in f32, for many rows and contiguous inputs."""
    path = tmp_path_factory.mktemp("in_use") / "bundle"
    programs.write(path, [(HEAD.text(), attention_inputs())])
    return path


@pytest.fixture(autouse=True)
def nothing_after() -> Iterator[None]:
    yield
    use_bundle(None)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLIR and LLVM as if they were not installed, and nothing in the disk cache."""

    def missing(*_: Any) -> Any:
        raise BackendMissingError("not installed")

    monkeypatch.setattr(native_code, "machine_code", missing)
    monkeypatch.setattr(native, "_llvm", missing)
    monkeypatch.setattr(native_code, "kernel_cache", lambda: native_code.Cache(limit=0))
    monkeypatch.setattr(native_code, "_loaded", {})


def test_programs_take_its_kernels(path: Path, no_compiler: None) -> None:
    bundle = use_bundle(path)
    assert bundle is not None and bundle_in_use() is bundle
    program = Program(parse(HEAD.text()))
    given = attention_inputs(37)
    assert torch.equal(program(*given)[0], bundle["attention"](*given)[0])
    assert [v.backend for k in program.explain().kernels for v in k.variants] == ["bundle"]


@pytest.mark.parametrize(
    ("text", "given", "difference"),
    [
        (HEAD.text(), attention_inputs(1), "size class: the bundle has any number of rows"),
        (HEAD.text(), [x.mT.contiguous().mT for x in attention_inputs()], "strides: "),
        (
            programs.Attention(64, 32, "bf16").text(),
            attention_inputs(kind=torch.bfloat16),
            "dtype of %q: bf16, the bundle has f32",
        ),
        (
            programs.Attention(64, 64).text(),
            [*attention_inputs()[:2], numbers(1, 2, 50, 64)],
            "size of %v: 64, the bundle has 32",
        ),
        (
            programs.Attention(64, 32, causal=True).text(),
            attention_inputs(),
            "program: its attention computes something else",
        ),
        (programs.ROW_SUMS, [numbers(40, 40)], "program: it has attention"),
    ],
)
def test_what_is_not_in_it_is_refused_by_the_key_that_differs(
    path: Path, no_compiler: None, text: str, given: list[torch.Tensor], difference: str
) -> None:
    use_bundle(path)
    program = Program(parse(text))
    with pytest.raises(NotInBundleError) as caught:
        program(*given)
    assert difference in str(caught.value)
    assert "no compiler is installed" in str(caught.value)


def test_what_is_not_in_it_is_compiled_where_that_works(path: Path) -> None:
    use_bundle(path)
    program = Program(parse(HEAD.text()))
    given = attention_inputs(1)
    found = program(*given)[0]
    assert [v.backend for k in program.explain().kernels for v in k.variants] == ["mlir"]
    use_bundle(None)
    assert torch.equal(found, Program(parse(HEAD.text()))(*given)[0])


def test_a_program_for_another_target_is_no_matter_of_the_bundle(
    path: Path, no_compiler: None
) -> None:
    use_bundle(path)
    program = Program(parse(HEAD.text()), backend="numba")  # for scalars
    program._asked = (None, "mlir")
    family = program.steps[0].family
    assert family is not None
    family.make = backends.make_mlir
    with pytest.raises(NotInBundleError, match="target: the program's is scalar, the bundle's"):
        program(*attention_inputs())


def test_the_bundle_says_what_the_process_compiles_for(tmp_path: Path) -> None:
    x = numbers(40, 40)
    programs.write(tmp_path / "v3", [(programs.ROW_SUMS, (x,))], "x86-64-v3")
    before = host_target()
    try:
        use_bundle(tmp_path / "v3")
    except BundleError as error:
        pytest.skip(f"this machine cannot run x86-64-v3: {error}")
    assert host_target().name == "x86-64-v3"
    assert torch.equal(
        Program(parse(programs.ROW_SUMS))(x)[0], Bundle(tmp_path / "v3")["sums"](x)[0]
    )
    use_bundle(None)
    assert host_target() == before


def test_a_bundle_that_cannot_be_used_changes_nothing(path: Path, tmp_path: Path) -> None:
    bundle = use_bundle(path)
    with pytest.raises(BundleError, match="cannot open the bundle"):
        use_bundle(tmp_path / "none")
    assert bundle_in_use() is bundle


def test_the_environment_names_a_bundle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_BUNDLE", str(path))
    settings.cache_clear()
    monkeypatch.setattr(active, "_state", active._State())
    bundle = bundle_in_use()
    assert bundle is not None and bundle.path == path


def test_choices_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that tuning found two schedules for: each size class gets its own code."""
    monkeypatch.setattr(native_code, "kernel_cache", lambda: native_code.Cache(limit=0))
    exporter = Exporter(host_target(), "test")
    program = exporter._program(parse(HEAD.text()))
    family = program.steps[0].family
    assert family is not None
    given = [x.to("meta") for x in attention_inputs()]
    choices = {(0, 2, 0, 6, 6): {}, (0, 2, 0, 10, 10): {"width": 1}}
    with collecting(exporter.collector):
        key = family.key(tuple(given))
        variant = family.variant(key)

        def made(choice: Any) -> Any:
            lower = backends.lower_variant(variant, host_target())
            monkeypatch.setattr("tilewright.runtime.bundle.collect.lower_variant", lambda *_: lower)
            return Collector.form(exporter.collector, replace(variant, choice=choice))

        dimensions = ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2))
        family.forms[key] = by_size = BySize(choices, dimensions, made)
        by_size.make_all()
    bundle_made = exporter.made()
    (sized,) = bundle_made.manifest.sized
    assert isinstance(sized, Sized) and len({symbol for _, symbol in sized.codes}) == 2
    by_symbol = {c.symbol: c for c in bundle_made.manifest.codes}
    assert by_symbol[sized.pick([(1, 2, 60, 64), (1, 2, 60, 64)])].choice == {}
    assert by_symbol[sized.pick([(1, 2, 900, 64), (1, 2, 900, 64)])].choice == {"width": 1}
    write_folder(tmp_path / "b", bundle_made.manifest, bundle_made.files)
    bundle = use_bundle(tmp_path / "b")
    assert bundle is not None
    found = Program(parse(HEAD.text()))(*attention_inputs())
    assert torch.equal(found[0], bundle["attention"](*attention_inputs())[0])


PUBLIC = """
import sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"mlir", "torch_mlir", "numba", "llvmlite", "lark", "triton"}:
            raise ModuleNotFoundError(name, name=name)
if sys.argv[2] == "without":
    sys.meta_path.insert(0, Forbidden())
import torch, tilewright
torch.manual_seed(0)
q, k, v = (torch.randn(1, 2, 40, 32) for _ in "qkv")
w = torch.randint(-9, 9, (32, 64)).float() / 8
weight = tilewright.QuantizedTensor.from_float(w, "u4", group=32)

@tilewright.compile(strict=True)
def block(x, y):
    return torch.softmax(x @ y.transpose(-1, -2), -1) @ y

with torch.no_grad():
    found = [
        tilewright.attention(q, k, v, is_causal=True),
        tilewright.linear(q[0, 0, :, :].repeat(1, 2), weight, activation="int8"),
        block(q, k),
    ]
torch.save(found, sys.argv[1])
if sys.argv[2] == "without":
    try:
        tilewright.parse
    except tilewright.BackendMissingError as error:
        assert "pip install lark" in str(error) and "load_bundle" in str(error)
    else:
        raise AssertionError("parsed without Lark")
"""


def test_public_functions_without_a_compiler(tmp_path: Path) -> None:
    def run(out: str, how: str, **variables: str) -> list[torch.Tensor]:
        place = tmp_path / out
        command = [sys.executable, "-c", PUBLIC, str(place), how]
        subprocess.run(command, env={**os.environ, **variables}, check=True)
        found: list[torch.Tensor] = torch.load(place)
        return found

    trace, bundle = tmp_path / "trace", tmp_path / "bundle"
    want = run("compiled", "with", TILEWRIGHT_TRACE=str(trace))
    exporter = Exporter(host_target(), "test")
    for row in tilewright_trace(trace):
        exporter.add(row.module(), row.meta_inputs() if row.level == "graph" else None)
    made = exporter.made()
    write_folder(bundle, made.manifest, made.files)
    none = str(tmp_path / "no cache")
    found = run("bundled", "without", TILEWRIGHT_BUNDLE=str(bundle), TILEWRIGHT_CACHE_DIR=none)
    assert [torch.equal(a, b) for a, b in zip(found, want, strict=True)] == [True] * 3
    assert {p.name for p in made.manifest.programs} >= {"attention", "linear", "quantise_rows"}


def tilewright_trace(path: Path) -> list[Any]:
    from tilewright.runtime.tracing.file import read_trace

    return [row for row in read_trace(path).kernels if row.level != "stream"]


def test_kernels_of_a_bundle_are_traced_too(path: Path) -> None:
    use_bundle(path)
    program = Program(parse(HEAD.text()))
    with recording() as rows:
        program(*attention_inputs())
    assert [(r.level, r.backend, r.count) for r in rows] == [
        ("stream", "bundle", 1),
        ("graph", "mlir", 1),
    ]


def test_the_face_has_them() -> None:
    assert tilewright.use_bundle is use_bundle and tilewright.Bundle is Bundle
