"""Writing a checkpoint anew: quantised weights as tilewright's, the rest as it is.

All is written under a temporary name beside the target and renamed at the end: what fails leaves
nothing behind.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from tilewright.frontend.checkpoints.reader import Checkpoint, read_json
from tilewright.frontend.checkpoints.saved import EXTRA, WEIGHT
from tilewright.frontend.quantize.form import PARTS, Form, parts_of
from tilewright.frontend.quantize.from_settings import quantized
from tilewright.frontend.quantize.plan import Plan, Settings
from tilewright.ir.errors import DataError, SettingError
from tilewright.runtime.quantized.storage import save, to_state
from tilewright.runtime.quantized.tensor import QuantizedTensor

_SHARD = 4 << 30  # bytes of one file
_LARGEST_SIDE_FILE = 256 << 20
_SIDE_FILES = (".json", ".txt", ".model", ".jinja", ".md", ".tiktoken", "LICENSE", "NOTICE")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WEIGHT_KEY = ".weight"


@dataclass(frozen=True)
class Row:
    """One weight of the result: where it comes from, what it has become."""

    name: str
    source: str  # the format it had, or the dtype of a plain tensor
    dtype: str
    group: int
    bytes_before: int
    bytes_after: int


@dataclass
class Converted:
    """What became of a checkpoint. ``kept`` are tensors written as they were, ``unread`` those of
    them that could not be read, with the reason; ``not_copied`` are files beside the weights that
    are links out of the folder, or too large."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    unused_patterns: list[str] = field(default_factory=list)
    not_copied: list[str] = field(default_factory=list)


def convert_checkpoint(
    checkpoint: Checkpoint,
    out: str | Path,
    plan: Plan | None = None,
    *,
    keep_unread: bool = False,
) -> Converted:
    """Writes ``checkpoint`` with its quantised weights as tilewright's; values stay what they are.

    ``out`` is a folder, which ``from_pretrained`` loads if the checkpoint is that of a model of
    transformers, or a ``.safetensors`` file. ``plan`` quantises plain weights [N, K], too; a row
    that names a quantised one quantises it anew, from its values.

    Raises DataError if something cannot be read (with ``keep_unread``, its tensors are kept as they
    are), and SettingError if ``out`` is there already. Then nothing is written.
    """
    target = Path(out)
    if target.exists():
        raise SettingError(f"{target} is there already; name another place")
    if not target.parent.is_dir():
        raise SettingError(f"{target.parent} is not a folder")
    _check_plan(plan)
    problems = checkpoint.problems
    if problems and not keep_unread:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in list(problems.items())[:20])
        more = f"\n  and {len(problems) - 20} more" * (len(problems) > 20)
        raise DataError(f"{len(problems)} cannot be read; nothing was written:\n{listed}{more}")
    report = Converted(target, unread=problems)
    if plan is not None:
        bases = [name.removesuffix(_WEIGHT_KEY) for name in checkpoint.plain]
        report.unused_patterns = plan.unused([*checkpoint.weights, *bases])
    items = _items(checkpoint, plan, report)
    if target.suffix == ".safetensors":
        save(target, dict(items))
    else:
        with _folder(target) as made:
            _write(made, items)
            report.not_copied = _copy_beside(checkpoint.source.path, made, plan)
    return report


def _check_plan(plan: Plan | None) -> None:
    settings = [] if plan is None else [plan.default, *(row for _, row in plan.rows)]
    if any(item is not None and item.method == "gptq" for item in settings):
        raise SettingError("method 'gptq' needs inputs of the model; convert has none")


def _items(
    checkpoint: Checkpoint, plan: Plan | None, report: Converted
) -> Iterator[tuple[str, QuantizedTensor | torch.Tensor]]:
    """Every tensor of the result, one at a time."""
    entries = checkpoint.source.entries
    for name, weight in checkpoint.weights.items():
        if weight.problem:
            for part in weight.tensors:
                if part not in report.kept:  # of two formats under one name
                    report.kept.append(part)
                    yield part, checkpoint.tensor(part)
            continue
        before = sum(entries[part].nbytes for part in weight.tensors)
        tensor, settings = weight.read(), _row_of(plan, name)
        made = tensor if settings is None else _quantized(name, tensor.dequantize(), settings)
        report.rows.append(_row(weight.name, weight.format, made, before))
        yield name, made
    for name in (*checkpoint.plain, *checkpoint.unknown):
        value = checkpoint.tensor(name)
        settings = _settings(plan, name, value)
        if settings is None or name in checkpoint.unknown:
            report.kept.append(name)
            yield name, value
            continue
        base = name.removesuffix(_WEIGHT_KEY)
        made = _quantized(name, value, settings)
        report.rows.append(_row(base, entries[name].dtype, made, entries[name].nbytes))
        yield base, made


def _row(name: str, source: str, made: QuantizedTensor, before: int) -> Row:
    return Row(name, source, made.dtype.name, made.group, before, made.nbytes)


def _row_of(plan: Plan | None, name: str) -> Settings | None:
    """The settings of a row that names a weight; the plan's default is for plain ones only."""
    choice = None if plan is None else plan.choose(name)
    return choice.settings if choice is not None and choice.pattern is not None else None


def _quantized(name: str, value: torch.Tensor, settings: Settings) -> QuantizedTensor:
    try:
        return quantized(value, settings)
    except DataError as error:
        raise DataError(f"{name}: {error.message}") from error


def _settings(plan: Plan | None, name: str, value: torch.Tensor) -> Settings | None:
    """How a plain tensor is to be quantised; None for one that is no weight [N, K]."""
    matrix = value.dim() == 2 and value.dtype in _FLOATS and min(value.shape) > 0
    if plan is None or not matrix or not name.endswith(_WEIGHT_KEY):
        return None
    return plan.choose(name.removesuffix(_WEIGHT_KEY)).settings


@contextmanager
def _folder(target: Path) -> Iterator[Path]:
    """A folder that gets its name when all is in it, and is removed if something fails."""
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield made
        made.chmod(0o755)
        os.rename(made, target)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _write(folder: Path, items: Iterator[tuple[str, QuantizedTensor | torch.Tensor]]) -> None:
    """Files of at most ``_SHARD`` bytes, or one, and their index if there are several."""
    from safetensors.torch import save_file

    files: list[tuple[Path, list[str]]] = []
    shard: dict[str, torch.Tensor] = {}

    def flush() -> None:
        path = folder / f"shard-{len(files)}"
        save_file(shard, path, {"format": "pt"})
        files.append((path, list(shard)))
        shard.clear()

    seen: set[str] = set()
    for name, item in items:
        for key, value in _state(name, item).items():
            if key in seen:
                raise DataError(f"two tensors would be written as {key!r}")
            seen.add(key)
            # a copy: parts of one mapped file share memory, which safetensors refuses
            shard[key] = value.detach().clone(memory_format=torch.contiguous_format)
        if sum(t.numel() * t.element_size() for t in shard.values()) > _SHARD:
            flush()
    if shard or not files:
        flush()
    _name_files(folder, files)


def _name_files(folder: Path, files: list[tuple[Path, list[str]]]) -> None:
    if len(files) == 1:
        files[0][0].rename(folder / "model.safetensors")
        return
    mapped: dict[str, str] = {}
    size = 0
    for i, (path, keys) in enumerate(files, 1):
        name = f"model-{i:05}-of-{len(files):05}.safetensors"
        size += path.stat().st_size
        path.rename(folder / name)
        mapped.update(dict.fromkeys(keys, name))
    index = {"metadata": {"total_size": size}, "weight_map": mapped}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _state(name: str, item: QuantizedTensor | torch.Tensor) -> Mapping[str, torch.Tensor]:
    """As the layers of a quantised model have them; stacked experts as ``storage`` has them."""
    if not isinstance(item, QuantizedTensor):
        return {name: item}
    if len(item.shape) != 2:
        return to_state(item, f"{name}.")
    form = torch.tensor(list(str(Form.of(item)).encode()), dtype=torch.uint8)
    parts = zip(PARTS, parts_of(item), strict=True)
    kept = {f"{name}{WEIGHT}{part}": value for part, value in parts if value is not None}
    return {f"{name}{WEIGHT}{EXTRA}": form, **kept}


def _copy_beside(source: Path, folder: Path, plan: Plan | None) -> list[str]:
    """Tokenizer and so on; config.json says that the model is quantised by tilewright.

    Gives the names of files that lie somewhere else (links), which are not copied: what looks like
    a part of a downloaded model may be a file of the user's that is not meant to be passed on.
    """
    beside = source.parent if source.name.endswith(".index.json") else source
    if not beside.is_dir():
        return []
    skipped = ("quantize_config.json", "quant_config.json")
    left = []
    for path in sorted(beside.iterdir()):
        wanted = path.is_file() and path.name.endswith(_SIDE_FILES) and path.name not in skipped
        if not wanted or path.name.endswith(".index.json"):
            continue
        if not _belongs(path, beside) or path.stat().st_size > _LARGEST_SIDE_FILE:
            left.append(path.name)
        elif path.name == "config.json":
            _write_config(path, folder, plan)
        else:
            shutil.copyfile(path, folder / path.name)
    return left


def _belongs(path: Path, folder: Path) -> bool:
    """Whether a file lies in the folder, or where the hub's cache keeps what folders link to."""
    real, home = path.resolve(), folder.resolve()
    return real.is_relative_to(home) or real.is_relative_to(home.parent.parent / "blobs")


def _write_config(path: Path, folder: Path, plan: Plan | None) -> None:
    config = read_json(path)
    config.pop("compression_config", None)
    default = None if plan is None else plan.default
    rows = () if plan is None else plan.rows
    # what TilewrightConfig.to_dict() gives, without importing transformers
    config["quantization_config"] = {
        "quant_method": "tilewright",
        "version": 1,
        **({"dtype": None} if default is None else default.to_dict()),
        "plan": [[pattern, None if row is None else asdict(row)] for pattern, row in rows],
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


__all__ = ["Converted", "Row", "convert_checkpoint"]
