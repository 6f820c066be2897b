"""``tilewright compile``: the text of a program at one of its stages."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tilewright.cli.output import note, say
from tilewright.cli.programs import read_program
from tilewright.cli.sizes import SizeOption, parse_sizes, with_sizes
from tilewright.ir.core import Graph, Module
from tilewright.ir.errors import SettingError
from tilewright.ir.printer import print_graph
from tilewright.ir.target import Target


class Stage(StrEnum):
    """The stages in the order in which a program passes through them."""

    tensor = "tensor"
    stream = "stream"
    tile = "tile"
    mlir = "mlir"
    llvm = "llvm"
    triton = "triton"
    threads = "threads"
    cuda = "cuda"
    asm = "asm"


ORDER = tuple(Stage)
CPU_ONLY, GPU_ONLY = (Stage.mlir, Stage.llvm), (Stage.triton, Stage.threads, Stage.cuda)
LEVEL_STAGE = {"graph": Stage.tensor, "stream": Stage.stream, "tile": Stage.tile}
COMMENT = {Stage.llvm: ";", Stage.asm: "#"}  # elsewhere //


def compile_(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A program at any level; - is stdin.")
    ],
    emit: Annotated[Stage, typer.Option(help="The stage to print.")] = Stage.asm,
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Processor: host, x86-64-v3 …, aarch64, NAME:LANES (x86-64-v3:16), cuda-sm90 …",
        ),
    ] = "host",
    rows: Annotated[
        int,
        typer.Option(min=0, help="Rows that share a read: chooses the layout; 0 is any number."),
    ] = 0,
    size: SizeOption = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="File to write.")
    ] = None,
) -> None:
    """Print a program as tensor, stream or tile IR, as MLIR, LLVM IR or assembly; for a GPU as
    Triton, as the tile IR of its threads, as CUDA C++ or as SASS (--emit asm)."""
    module = with_sizes(read_program(file), parse_sizes(size))
    text = emitted(module, emit, target, rows)
    if out is None:
        say(text.rstrip("\n"))
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingError(f"cannot write {str(out)!r}: {error.strerror}") from None
    note(f"wrote {out} ({len(text.splitlines())} lines)")


def emitted(module: Module, stage: Stage, target: str, rows: int) -> str:
    """The module's text at a stage; several kernels follow each other."""
    from tilewright.passes.pipeline import kernel_passes, run_passes
    from tilewright.passes.to_tile import to_tile

    have = LEVEL_STAGE[module.main.level]
    if ORDER.index(stage) < ORDER.index(have):
        raise SettingError(f"--emit {stage.value}: the file is past it, it holds {have.value} IR")
    if stage == have:
        return str(module)
    chosen = load_target(target)
    if have == Stage.tensor:
        module = run_passes(module, kernel_passes(chosen))
    if stage == Stage.stream:
        return str(module)
    check_stage(stage, chosen)
    module = to_tile(module, chosen, 0 if chosen.gpu else row_class(rows, chosen))
    texts = [_text(graph, stage, chosen) for graph in module.graphs]
    if len(texts) == 1:
        return texts[0]
    mark = COMMENT.get(stage, "//")
    parts = zip(module.graphs, texts, strict=True)
    return "\n".join(f"{mark} ---- kernel {graph.name}\n{text}" for graph, text in parts)


def _text(program: Graph, stage: Stage, target: Target) -> str:
    """A tile program as it is, or made by the mlir back end."""
    if stage == Stage.tile:
        return print_graph(program) + "\n"
    if target.gpu:
        return _gpu_text(program, stage, target)
    from tilewright.backends.mlir.build import to_llvm_ir
    from tilewright.backends.mlir.emit import emit_module
    from tilewright.runtime.native import assembly

    mlir = emit_module(program, target, program.name)
    if stage == Stage.mlir:
        return mlir
    llvm_ir = to_llvm_ir(mlir)
    if stage == Stage.llvm:
        return llvm_ir
    return assembly(llvm_ir, target.cpu, target.features, target.triple)


def _gpu_text(program: Graph, stage: Stage, target: Target) -> str:
    """A program on whole blocks in Triton, or through its threads to CUDA C++ and SASS."""
    if stage == Stage.triton:
        from tilewright.backends.triton.emit import emit_source

        return emit_source(program, program.name, bulk=bool(program.attrs.get("bulk"))).text
    from tilewright.backends.cuda.compile import architecture_of, compile_kernel
    from tilewright.backends.cuda.emit import emit_cuda
    from tilewright.backends.gpu.machine_code import assembly
    from tilewright.passes.to_threads.roles import best_program

    threads, _ = best_program(program, target)
    if stage == Stage.threads:
        return print_graph(threads) + "\n"
    text = emit_cuda(threads, program.name).text
    if stage == Stage.cuda:
        return text
    return assembly(compile_kernel(text, architecture_of(target.cpu), program.name))


def check_stage(stage: Stage, target: Target) -> None:
    """Raises SettingError for a stage that programs for the target do not have."""
    if stage in CPU_ONLY and target.gpu:
        known = ", ".join([*GPU_ONLY, Stage.asm])
        raise SettingError(f"--emit {stage.value}: {target.name} is a GPU; it has {known}")
    if stage in GPU_ONLY and not target.gpu:
        raise SettingError(
            f"--emit {stage.value}: programs for {target.name} have {', '.join(CPU_ONLY)} and asm; "
            "name a GPU (--target cuda-sm90)"
        )
    if target.gpu == "hip" and stage in (Stage.threads, Stage.cuda, Stage.asm):
        raise SettingError(f"--emit {stage.value}: for {target.name} there is triton only")


def load_target(name: str) -> Target:
    """The processor of that name; ``host`` asks LLVM. Raises TargetError, BackendMissingError."""
    from tilewright.runtime.targets import resolve_target

    return resolve_target(name)


def row_class(rows: int, target: Target) -> int:
    """The layout class that a call with so many rows gets (0: any number of rows)."""
    from tilewright.passes.to_tile.schedule import row_classes

    return next((c for c in row_classes(target) if c and 0 < rows <= c), 0)
