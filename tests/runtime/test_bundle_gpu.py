"""Bundles for GPUs, made without one: machine code and PTX, and calls that a driver in Python
(fake_gpu.py) takes, which reads what it was given out of memory and computes with it."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import bundle_programs as programs
from tests.attention_programs import Attention
from tests.runtime.fake_gpu import FakeDriver, Kernel, fake_gpu, view
from tilewright.backends.cuda.compile import compiler_missing
from tilewright.ir.errors import BindError, BundleError, UnsupportedError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.ir.types import BufferType
from tilewright.runtime.bundle.active import use_bundle
from tilewright.runtime.bundle.bundle import Bundle
from tilewright.runtime.bundle.collect_gpu import GpuCollector
from tilewright.runtime.bundle.export import Exporter
from tilewright.runtime.bundle.folder import write_folder
from tilewright.runtime.bundle.header import HEADER
from tilewright.runtime.bundle.manifest import ABI, SCHEMA, digest_of
from tilewright.runtime.bundle.manifest_reading import read_manifest
from tilewright.runtime.kernel import TORCH_DTYPES

if compiler_missing():
    pytest.skip(str(compiler_missing()), allow_module_level=True)
FORM = Attention(16, 16, "bf16", causal=True)
MASKED = Attention(16, 16, "bf16", mask="add")


def inputs(queries: int = 20, keys: int = 20) -> list[torch.Tensor]:
    shapes = (1, 4, queries, 16), (1, 2, keys, 16), (1, 2, keys, 16)
    return [programs.numbers(*x, dtype=torch.bfloat16, seed=at) for at, x in enumerate(shapes)]


class Made:
    """A bundle for a GPU, and the programs that its kernels were made of."""

    def __init__(self, path: Path, target: str, form: Attention, *calls: list[Any]) -> None:
        exporter = Exporter(named_target(target), "test")
        for call in calls:
            empty = [
                torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta") for x in call
            ]
            exporter.add(parse(form.text()), empty)
        made = exporter.made()
        write_folder(path, made.manifest, made.files)
        assert isinstance(exporter.collector, GpuCollector)
        self.bundle, self.path = Bundle(path), path
        self.programs = exporter.collector.programs


@pytest.fixture(scope="module", params=["cuda-sm80", "cuda-sm90"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp(request.param) / "b", request.param, FORM, inputs())


@pytest.fixture
def driver(made: Made) -> Iterator[FakeDriver]:
    with gpu_for(made) as driver:
        yield driver


@contextmanager
def gpu_for(made: Made) -> Iterator[FakeDriver]:
    """A GPU of the bundle's kind, which knows its kernels."""
    chip = int(made.bundle.target.cpu[3:])
    with fake_gpu(chip) as driver:
        for code in made.bundle.manifest.codes:
            assert code.image is not None
            strides, sizes = list(code.image.strides), list(code.sizes)
            source: Any = SimpleNamespace(strides=strides, sizes=sizes, symbol=code.symbol)
            widths = [8] * (len(code.params) + len(strides) + len(sizes))
            kernel = Kernel(widths, made.programs[code.symbol], source)
            ptx = made.bundle.file(code.image.ptx)
            assert len(re.findall(rb"\.param \.[us]64[^\n]*_param_\d+", ptx)) == len(widths)
            driver.images[made.bundle.file(code.image.cubin)] = kernel
            driver.images[ptx + b"\0"] = kernel
        driver._run = computed  # type: ignore[method-assign]
        yield driver


def computed(kernel: Kernel, values: list[Any]) -> None:
    """Runs the program on blocks on the memory that a launch's parameters point to."""
    program, source = kernel.program, kernel.source
    types = [p.type for p in program.params if isinstance(p.type, BufferType)]
    rest = values[len(types) :]
    steps = dict(zip(source.strides, rest, strict=False))
    sizes = dict(zip(source.sizes, rest[len(steps) :], strict=True))
    tensors = []
    for i, (type_, address) in enumerate(zip(types, values, strict=False)):
        shape = [size.evaluate(sizes) for size in type_.shape]
        strides = [steps.get((i, d), 1) for d in range(len(shape))]
        tensors.append(view(address, shape, strides, TORCH_DTYPES[type_.dtype.name]))
    *given, out = tensors
    arrays = [x.float().numpy() for x in given]
    out.copy_(torch.from_numpy(evaluate_graph(program, *arrays, sizes=sizes)[0]))


def check(bundle: Bundle, *given: torch.Tensor) -> None:
    (got,) = bundle["attention"](*given)
    q, k, v, *mask = given
    want = (MASKED if mask else FORM).reference(q, k, v, mask[0] if mask else None)
    assert got.dtype == torch.bfloat16
    assert float((got.double() - want).abs().max()) < 2e-2


def test_calls(made: Made, driver: FakeDriver) -> None:
    for queries, keys in ((20, 20), (31, 50)):
        check(made.bundle, *inputs(queries, keys))
    q, k, v = inputs()
    check(made.bundle, q.transpose(1, 2).contiguous().transpose(1, 2), k, v)
    aligned = {x.symbol for x in made.bundle.manifest.codes if x.image and x.image.vectors}
    assert {kernel.source.symbol for kernel in driver.kernels} == aligned
    (launch, *_) = driver.launches
    code = next(c for c in made.bundle.manifest.codes if c.symbol in aligned)
    assert code.image is not None and launch.block == (code.image.threads, 1, 1)
    assert launch.shared_bytes == code.image.shared_bytes and launch.stream == 77


def test_odd_addresses_and_strides_take_the_other_kernel(made: Made, driver: FakeDriver) -> None:
    _, k, v = inputs()
    wide = programs.numbers(1, 4, 20, 17, dtype=torch.bfloat16)
    for odd in (wide[..., 1:], wide[..., :16]):
        check(made.bundle, odd, k, v)
    (kernel,) = {kernel.source.symbol for kernel in driver.kernels}
    (code,) = (c for c in made.bundle.manifest.codes if c.symbol == kernel)
    assert code.image is not None and not code.image.vectors


def test_only_what_lies_oddly_is_moved_by_elements(tmp_path: Path) -> None:
    """A mask is read by elements anyway, how ever it lies; a call that the bundle was made for has
    a kernel for how its tensors step; all others have the one for any memory."""
    q, k, v = inputs(20, 49)
    mask = programs.numbers(1, 1, 1, 20, 49, dtype=torch.bfloat16)
    stepping = torch.zeros(1, 2, 49, 17, dtype=torch.bfloat16)[..., :16].copy_(k)
    moved = torch.zeros(k.numel() + 1, dtype=torch.bfloat16)[1:].view(k.shape).copy_(k)
    made = Made(tmp_path / "b", "cuda-sm80", MASKED, [q, k, v, mask], [q, stepping, v, mask])
    names = [p.name for p in made.bundle.manifest.codes[0].params]
    assert names == ["q", "k", "v", "mask", "out_out"]
    wide = {c.symbol: c.image.wide for c in made.bundle.manifest.codes if c.image}
    assert sorted(wide.values()) == [(), (0, 1, 2, 4), (0, 2, 4)]
    assert b"at multiples of 16 bytes: q, v, out_out\n" in made.bundle.file(HEADER)
    with gpu_for(made) as driver:
        for given in ((q, k, v), (q, stepping, v), (q, moved, v), (q, k, moved), (q, k, v)):
            check(made.bundle, *given, mask)
        sources = [wide[kernel.source.symbol] for kernel in driver.kernels]
    assert sources == [(0, 1, 2, 4), (0, 2, 4), ()]  # each was loaded once


def test_manifests_that_do_not_say_which_buffers_are_wide(made: Made) -> None:
    """Those of 0.1: all are, or none. What contradicts itself is refused."""

    def changed(**fields: object) -> list[tuple[int, ...]]:
        body = {"abi": ABI, **json.loads(json.dumps(asdict(made.bundle.manifest)))}
        for code in body["codes"]:
            code["image"].update(fields)
            if not fields:
                del code["image"]["wide"]
        head = {"schema": SCHEMA, "version": 1, "sha256": digest_of(body), "bundle": body}
        read = read_manifest(json.dumps(head).encode(), "manifest.json")
        return sorted(c.image.wide for c in read.codes if c.image)

    assert changed() == [(), (0, 1, 2, 3)]
    with pytest.raises(BundleError, match="'wide' does not go with 'vectors'"):
        changed(wide=[0])
    with pytest.raises(BundleError, match=r"'wide'.* 4"):
        changed(wide=[4])


def test_other_chips(made: Made) -> None:
    chip = int(made.bundle.target.cpu[3:])
    with fake_gpu(120) as driver:
        driver.runs = False
        for code in made.bundle.manifest.codes:
            if code.image is not None:
                source: Any = SimpleNamespace(symbol=code.symbol)
                count = len(code.params) + len(code.image.strides) + len(code.sizes)
                kernel = Kernel([8] * count, made.programs[code.symbol], source)
                driver.images[made.bundle.file(code.image.ptx) + b"\0"] = kernel
        fresh = Bundle(made.path)
        if chip == 80:  # its PTX, which the driver compiles
            fresh["attention"](*inputs())
            assert len(driver.launches) == 1
        else:
            with pytest.raises(BundleError, match=r"for compute capability 9\.0, this GPU has 12"):
                fresh["attention"](*inputs())


def test_refusals(made: Made, driver: FakeDriver) -> None:
    with pytest.raises(BindError, match="called with torch tensors on a GPU"):
        made.bundle["attention"](*(x.float().numpy() for x in inputs()))
    with pytest.raises(BindError, match="%k must have dtype bf16, the input has f32"):
        made.bundle["attention"](*(x.float() if at else x for at, x in enumerate(inputs())))
    with pytest.raises(BundleError, match=r"size class: any number of rows\); .* up to 64 rows"):
        made.bundle["attention"](*inputs(100))
    with pytest.raises(BundleError, match=r"for cuda-sm\d+: call its programs by name"):
        use_bundle(made.path)
    assert not driver.launches


def test_what_has_no_bundle_for_gpus() -> None:
    with pytest.raises(UnsupportedError, match="bundles are for CPUs and CUDA devices, not hip"):
        Exporter(named_target("hip-gfx942"), "test")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_the_header_compiles(made: Made, tmp_path: Path) -> None:
    (code, _) = made.bundle.manifest.codes
    names = sorted("BKGN")
    text = f"""
    #include "tilewright_kernels.h"
    int main(void) {{
      return {code.symbol}_blocks({", ".join(str(" BGKN".index(n)) for n in names)}) > 0
        && {code.symbol}_THREADS % 32 == 0 ? 0 : 1;
    }}"""
    (tmp_path / "main.c").write_text(text)
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{made.path}"]
    subprocess.run(["gcc", *strict, "main.c", "-o", "main"], cwd=tmp_path, check=True)
    subprocess.run([str(tmp_path / "main")], check=True)


def test_machine_code_is_for_the_chip(made: Made) -> None:
    for code in made.bundle.manifest.codes:
        assert code.image is not None
        cubin, ptx = made.bundle.file(code.image.cubin), made.bundle.file(code.image.ptx)
        assert cubin.startswith(b"\x7fELF") and struct.unpack_from("<H", cubin, 18)[0] == 190
        assert f".target {made.bundle.target.cpu}".encode() in ptx
        assert code.symbol.encode() in cubin and f".entry {code.symbol}".encode() in ptx
