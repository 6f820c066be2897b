"""What fuzzing found in the readers of files, each as it was found."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.fuzz.checkpoint_target import samples
from tests.fuzz.file_targets import CORPUS, sample
from tilewright.frontend.checkpoints import open_checkpoint
from tilewright.frontend.quantize.form import Form
from tilewright.ir.errors import DataError, TargetError, TilewrightError, UnsupportedError
from tilewright.runtime.native import load_object
from tilewright.runtime.tracing.file import read_trace
from tilewright.runtime.tuning.database import Database
from tilewright.runtime.tuning.exchange import take_file
from tilewright.runtime.tuning.task import KernelTask


@pytest.mark.parametrize("name", ["trace.json", "export.json"])
def test_half_a_character(tmp_path: Path, name: str) -> None:
    """JSON can spell it, UTF-8 and SQLite cannot."""
    value = json.loads(json.dumps(sample(name)).replace("twice", "\ud800"))
    (tmp_path / name).write_text(json.dumps(value))
    with pytest.raises(TilewrightError, match="surrogates not allowed"):
        if name == "trace.json":
            read_trace(tmp_path / name)
        else:
            take_file(Database(tmp_path / "database"), tmp_path / name)


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (40, "<Q", (1 << 63) - 1),  # where section headers are: beyond all memory
        (58, "<H", 1),  # how long one is
        (60, "<H", 60_000),  # how many there are
        (0, "", 0),  # a section's place
    ],
)
def test_object_files_that_end_llvm_are_refused_before(at: int, form: str, value: int) -> None:
    data = bytearray((CORPUS / "kernel.o").read_bytes())
    if form:
        struct.pack_into(form, data, at, value)
    else:
        headers = struct.unpack_from("<Q", data, 40)[0]
        struct.pack_into("<Q", data, headers + 64 + 24, 1 << 40)
    with pytest.raises(TargetError, match="not an object file"):
        load_object(bytes(data), "kernel")


def test_blocks_of_no_rows(tmp_path: Path) -> None:
    data = samples()["Q4_0.gguf"]
    shape = struct.pack("<IQQ", 2, 32, 2)
    assert data.count(shape) == 3
    (tmp_path / "m.gguf").write_bytes(data.replace(shape, struct.pack("<IQQ", 2, 32, 0)))
    opened = open_checkpoint(tmp_path / "m.gguf")
    assert len(opened.problems) == 3
    for name in opened.weights:
        with pytest.raises(DataError, match="none of them 0"):
            opened.read(name)


def test_a_name_of_data_that_no_file_can_have(tmp_path: Path) -> None:
    data = samples()["external.onnx"].replace(b"external.data", b"external.\0ata")
    (tmp_path / "m.onnx").write_bytes(data)
    opened = open_checkpoint(tmp_path / "m.onnx")
    (name,) = opened.weights
    with pytest.raises(DataError, match="must lie in a file within"):
        opened.read(name)


@pytest.mark.parametrize("text", ["[" * 100_000, "3", '{"inputs": 3}', '{"inputs": []}'])
def test_descriptions_of_kernels(text: str) -> None:
    with pytest.raises(TilewrightError, match="no description of a kernel"):
        KernelTask.from_json(text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"shape": [1e999, 2]}', "[]", "3"])
def test_forms_of_matrices(text: str) -> None:
    with pytest.raises(UnsupportedError, match="not the form"):
        Form.parse(text)
