"""``tilewright compile --emit``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tilewright.ir.parser import parse

Example = Callable[[str], str]
Refused = Callable[..., str]
Write = Callable[[str, str], str]

V3 = ("--target", "x86-64-v3")
SHOWS = {
    "tensor": "tensor.contract",
    "stream": "stream.scan",
    "tile": 'target = "x86-64-v3"',
    "mlir": "func.func",
    "llvm": "define void @attention",
    "asm": "vfmadd",
}
GPU_SHOWS = {
    "tile": "tile.product",
    "triton": "@triton.jit",
    "threads": "tile.matrix_product",
    "cuda": "TW_KERNEL(attention",
}
TWO_KERNELS = """
graph softmax<N, M>(%x: tensor<N x M x f32>) {
  %half = math.const {value = 0.5, type = tensor<f32>}
  %y = math.mul %x, %half
  %p = tensor.softmax %y {axis = 1}
  %o = tensor.transpose %p {permutation = [1, 0]}
  return %o
}
"""


@pytest.mark.parametrize("stage", SHOWS)
def test_every_stage(tilewright: Command, example: Example, stage: str) -> None:
    done = tilewright("compile", example("attention"), "--emit", stage, *V3)
    assert done.code == 0, done
    assert SHOWS[stage] in done.out


@pytest.mark.parametrize("stage", GPU_SHOWS)
def test_every_stage_for_a_gpu(tilewright: Command, example: Example, stage: str) -> None:
    given = ("compile", example("attention"), "--emit", stage, "--target", "cuda-sm80")
    done = tilewright(*given)
    assert done.code == 0 and GPU_SHOWS[stage] in done.out, done


@pytest.mark.parametrize(
    ("stage", "target", "says"),
    [
        ("mlir", "cuda-sm80", "is a GPU; it has triton, threads, cuda, asm"),
        ("cuda", "x86-64-v3", "name a GPU"),
        ("cuda", "hip-gfx942", "there is triton only"),
    ],
)
def test_stages_of_other_targets_are_refused(
    example: Example, refused: Refused, stage: str, target: str, says: str
) -> None:
    assert says in refused("compile", example("attention"), "--emit", stage, "--target", target)


@pytest.mark.parametrize("stage", ["tensor", "stream", "tile"])
def test_ir_can_be_read_in_again(tilewright: Command, example: Example, stage: str) -> None:
    text = tilewright("compile", example("attention"), "--emit", stage, *V3).out
    assert str(parse(text)) == text
    again = tilewright("compile", "-", "--emit", stage, *V3, stdin=text)
    assert again.out == text


def test_a_tile_program_goes_on_from_where_it_is(tilewright: Command, example: Example) -> None:
    tile = tilewright("compile", example("log_sum_exp"), "--emit", "tile", *V3).out
    direct = tilewright("compile", example("log_sum_exp"), "--emit", "mlir", *V3).out
    assert tilewright("compile", "-", "--emit", "mlir", *V3, stdin=tile).out == direct


def test_rows_choose_the_layout(tilewright: Command, example: Example) -> None:
    def text(rows: int) -> str:
        arguments = ("--emit", "tile", *V3, "--rows", str(rows))
        return tilewright("compile", example("attention"), *arguments).out

    assert text(3) == text(4) != text(0)
    assert text(1000) == text(0)


def test_the_target_decides_the_width(tilewright: Command, example: Example) -> None:
    wide = tilewright("compile", example("attention"), "--target", "x86-64-v4").out
    narrow = tilewright("compile", example("attention"), *V3).out
    assert "zmm" in wide and "zmm" not in narrow and "ymm" in narrow


def test_output_to_a_file(tilewright: Command, example: Example, tmp_path: Path) -> None:
    out = tmp_path / "attention.s"
    done = tilewright("compile", example("attention"), *V3, "-o", str(out))
    assert done.out == "" and f"wrote {out}" in done.err
    assert "retq" in out.read_text()


def test_several_kernels_follow_each_other(tilewright: Command, write: Write) -> None:
    path = write("softmax.tw", TWO_KERNELS)
    done = tilewright("compile", path, "--emit", "mlir", *V3)
    assert done.out.count("// ---- kernel softmax_") == done.out.count("func.func") > 1
    assert "# ---- kernel softmax_1" in tilewright("compile", path, *V3).out


def test_sizes_inside_an_element_can_be_given(
    tilewright: Command, refused: Refused, write: Write
) -> None:
    text = (Path(__file__).parent.parent.parent / "examples/attention.tw").read_text()
    path = write("d.tw", text.replace("64", "D").replace("N, M>", "N, M, D>", 1))
    path = write("d.tw", Path(path).read_text().replace(", D]", ", size(D)]"))
    assert "D" in refused("compile", path, "--emit", "tile", *V3)
    done = tilewright("compile", path, "--emit", "tile", *V3, "--size", "D=32")
    assert done.code == 0 and "32 x f32" in done.out, done


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--emit", "ptx"], "'ptx' is not one of 'tensor'"),
        (["--target", "pentium"], "unknown target 'pentium'; known targets: host"),
        (["--rows", "-1"], "Invalid value for '--rows'"),
        (["--size", "Q=1"], "has no size Q; its sizes: N, M"),
        (["-o", "/no/such/folder/x.s"], "cannot write '/no/such/folder/x.s': No such file"),
    ],
)
def test_options_that_mean_nothing(
    refused: Refused, example: Example, options: list[str], message: str
) -> None:
    assert message in refused("compile", example("log_sum_exp"), "--target", "x86-64-v3", *options)


def test_there_is_no_way_back(tilewright: Command, refused: Refused, example: Example) -> None:
    stream = tilewright("compile", example("log_sum_exp"), "--emit", "stream").out
    message = refused("compile", "-", "--emit", "tensor", stdin=stream)
    assert "the file is past it, it holds stream IR" in message
