"""Plans: which layer gets which settings, by the layer's name. Knows nothing of torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from tilewright.ir.errors import SettingError
from tilewright.runtime.quantized.dtype_names import scale_dtype_named, weight_dtype

ACTIVATIONS = ("float", "int8")
METHODS = ("minmax", "mse", "hqq", "gptq")
REGEX = "re:"  # as in torchao's FqnToConfig


@dataclass(frozen=True)
class Settings:
    """How one layer is quantised: arguments of ``QuantizedTensor.from_float``, and how its input is
    taken (``activation``: "float" as it is, "int8" rounded per row and group in every call).

    ``group`` is a number, "channel" or "tensor". Raises SettingError for what means nothing.
    """

    dtype: str
    group: int | str = 64
    activation: str = "float"
    method: str = "minmax"
    symmetric: bool | None = None
    zero: str | None = None
    scale_dtype: str = "f16"

    def __post_init__(self) -> None:
        weight_dtype(self.dtype)  # here, too: a model may have no weight that would meet it
        scale_dtype_named(self.scale_dtype)
        _one_of("activation", self.activation, ACTIVATIONS)
        _one_of("method", self.method, METHODS)
        _one_of("zero", self.zero, (None, "int", "float"))
        _one_of("symmetric", self.symmetric, (None, True, False))
        whole = isinstance(self.group, int) and not isinstance(self.group, bool)
        if not (whole and int(self.group) > 0) and self.group not in ("channel", "tensor"):
            raise SettingError(
                f"group={self.group!r} must be a number of at least 1, 'channel' or 'tensor'"
            )

    def __str__(self) -> str:
        """``u4 group 64``, then whatever is not the default."""
        usual = {item.name: item.default for item in fields(self)}
        extra = [
            f"{name} {value}"
            for name, value in asdict(self).items()
            if name not in ("dtype", "group") and value != usual[name]
        ]
        return ", ".join([f"{self.dtype} group {self.group}", *extra])

    def to_dict(self) -> dict[str, Any]:
        """Plain data that gives the same settings back: the dtype, and what is not the default."""
        usual = {item.name: item.default for item in fields(self)}
        return {k: v for k, v in asdict(self).items() if k == "dtype" or v != usual[k]}


Row = str | Mapping[str, Any] | Settings | None


@dataclass(frozen=True)
class Choice:
    """What a plan says of one layer, and the pattern that says it (None: the default)."""

    settings: Settings | None
    pattern: str | None


@dataclass(frozen=True)
class Plan:
    """Settings by layer name.

    A row with exactly the layer's name wins; then the first row whose pattern matches, in the order
    in which they are written; then the default. Patterns are those of ``fnmatch`` (``*`` stands for
    any characters, dots included, and ``*.down_proj`` matches a ``down_proj`` at the top, too), or
    regular expressions behind ``re:`` that match the whole name.
    """

    default: Settings | None
    rows: tuple[tuple[str, Settings | None], ...] = ()
    _exact: dict[str, Settings | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_exact", dict(self.rows))
        for pattern, _ in self.rows:
            _checked(pattern)

    @staticmethod
    def of(
        dtype: str | None,
        rows: Mapping[str, Row] | Iterable[tuple[str, Row]] | None = None,
        **settings: Any,
    ) -> Plan:
        """``dtype`` and ``settings`` for every layer without a row; None leaves those alone.

        A row's value is a dtype, a dictionary of settings (missing ones as for the others),
        ``Settings``, or None for a layer to leave alone. Raises SettingError.
        """
        base = _settings({"dtype": dtype or "u4", **settings}, "quantize")
        pairs = rows.items() if isinstance(rows, Mapping) else rows or ()
        made = tuple((str(pattern), _row(str(pattern), value, base)) for pattern, value in pairs)
        return Plan(None if dtype is None else base, made)

    def choose(self, name: str, *others: str) -> Choice:
        """What holds for the layer ``name``, which is also called by the ``others``."""
        names = (name, *others)
        for each in names:
            if each in self._exact:
                return Choice(self._exact[each], each)
        for pattern, settings in self.rows:
            if any(_matches(pattern, each) for each in names):
                return Choice(settings, pattern)
        return Choice(self.default, None)

    def unused(self, names: Iterable[str]) -> list[str]:
        """The patterns that match none of the names."""
        known = list(names)
        return [p for p, _ in self.rows if not any(n == p or _matches(p, n) for n in known)]

    def leaving(self, names: Iterable[str]) -> Plan:
        """The same plan with rows, before all others, that leave these layers alone."""
        left = {name: None for name in names}
        kept = tuple((p, s) for p, s in self.rows if p not in left)
        return Plan(self.default, (*left.items(), *kept))


def _row(pattern: str, value: Row, base: Settings) -> Settings | None:
    if value is None or isinstance(value, Settings):
        return value
    if isinstance(value, str):
        try:
            return replace(base, dtype=value)
        except SettingError as error:
            raise SettingError(f"plan[{pattern!r}]: {error.message}") from None
    if isinstance(value, Mapping):
        return _settings({**asdict(base), **value}, f"plan[{pattern!r}]")
    raise SettingError(
        f"plan[{pattern!r}] is {value!r}; it must be a dtype such as 'u4', a dictionary of "
        "settings, or None to leave the layers alone"
    )


def _settings(values: Mapping[str, Any], where: str) -> Settings:
    known = [item.name for item in fields(Settings)]
    wrong = [name for name in values if name not in known]
    if wrong:
        raise SettingError(f"{where} has no setting {wrong[0]!r}; known: {', '.join(known)}")
    return Settings(**values)


def _one_of(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise SettingError(f"{name}={value!r} must be one of {', '.join(map(repr, known))}")


def _checked(pattern: str) -> None:
    if pattern.startswith(REGEX):
        try:
            re.compile(pattern.removeprefix(REGEX))
        except re.error as error:
            raise SettingError(f"plan: {pattern!r} is no regular expression: {error}") from None


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith(REGEX):
        return re.fullmatch(pattern.removeprefix(REGEX), name) is not None
    return fnmatchcase(name, pattern) or (
        pattern.startswith("*.") and fnmatchcase(name, pattern[2:])
    )
