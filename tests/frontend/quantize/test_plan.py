"""Plans: which row holds for a layer, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.frontend.quantize.plan import Plan, Settings
from tilewright.ir.errors import SettingError

PARTS = st.sampled_from(["model", "layers", "0", "1", "mlp", "up_proj", "down_proj", "lm_head"])
NAMES = st.lists(PARTS, min_size=1, max_size=5).map(".".join)
PATTERNS = NAMES | NAMES.map(lambda name: f"*.{name}") | st.sampled_from(["*", "re:.*proj", "?*"])
VALUES = st.none() | st.sampled_from(["u2", "i4", "nf4"])
ROWS = st.lists(st.tuples(PATTERNS, VALUES), max_size=6, unique_by=lambda row: row[0])


def chosen(plan: Plan, name: str) -> str | None:
    settings = plan.choose(name).settings
    return None if settings is None else settings.dtype


@given(ROWS, NAMES, VALUES)
def test_a_row_with_the_layer_s_own_name_wins(
    rows: list[tuple[str, str | None]], name: str, value: str | None
) -> None:
    others = [row for row in rows if row[0] != name]
    for at in range(len(others) + 1):
        plan = Plan.of("u8", [*others[:at], (name, value), *others[at:]])
        assert chosen(plan, name) == value


@given(ROWS, NAMES)
def test_else_the_first_pattern_that_matches_then_the_default(
    rows: list[tuple[str, str | None]], name: str
) -> None:
    choice = Plan.of("u8", rows).choose(name)
    if choice.pattern is None:
        assert choice.settings == Settings("u8")
        assert name not in dict(rows)
        assert all(Plan.of("u8", [row]).choose(name).pattern is None for row in rows)
    elif choice.pattern != name:
        matching = [row for row in rows if Plan.of("u8", [row]).choose(name).pattern is not None]
        assert choice.pattern == matching[0][0]


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*.down_proj", "model.layers.3.mlp.down_proj", True),
        ("*.down_proj", "down_proj", True),  # at the top of a model, too
        ("*.down_proj", "my_down_proj", False),
        ("*.down_proj", "model.down_proj.0", False),
        ("*.DOWN_proj", "a.down_proj", False),
        ("lm_head", "model.lm_head", False),
        ("model.layers.[01].*", "model.layers.1.mlp", True),
        ("model.layers.[01].*", "model.layers.11.mlp", False),
        (r"re:.*\.\d+\.mlp\..*", "model.layers.11.mlp.up", True),
        (r"re:mlp", "model.mlp", False),  # the whole name
    ],
)
def test_what_a_pattern_matches(pattern: str, name: str, matches: bool) -> None:
    assert (chosen(Plan.of("u8", {pattern: "u2"}), name) == "u2") is matches
    assert Plan.of("u8", {pattern: "u2"}).unused([name]) == ([] if matches else [pattern])


def test_values_take_what_they_do_not_say_from_the_arguments() -> None:
    plan = Plan.of(
        "u4",
        {
            "a": "u6",
            "b": {"group": "channel", "activation": "float"},
            "c": Settings("nf4"),
            "d": None,
        },
        group=32,
        activation="int8",
    )
    assert plan.choose("a").settings == Settings("u6", 32, "int8")
    assert plan.choose("b").settings == Settings("u4", "channel", "float")
    assert plan.choose("c").settings == Settings("nf4")
    assert plan.choose("d").settings is None
    assert Plan.of(None, {"a": "u6"}).choose("b").settings is None


def test_layers_that_are_left_come_before_all_patterns() -> None:
    plan = Plan.of("u4", {"*": "u6", "b": "u2"}).leaving(["a", "b"])
    assert [chosen(plan, name) for name in "abc"] == [None, None, "u6"]


@pytest.mark.parametrize(
    ("dtype", "arguments", "says"),
    [
        ("zz", {}, "dtype='zz' is no element type"),
        ("f32", {}, "dtype='f32' holds no weights"),
        (None, {"rows": {"a": "zz"}}, r"plan\['a'\]: dtype='zz' is no element type"),
        ("u4", {"scale_dtype": "u4"}, "scale_dtype='u4' must be one of"),
        ("u4", {"group": 0}, "group=0"),
        ("u4", {"group": -1}, "group=-1"),
        ("u4", {"group": True}, "group=True"),
        ("u4", {"group": "row"}, "'channel' or 'tensor'"),
        ("u4", {"activation": "int4"}, "'float', 'int8'"),
        ("u4", {"method": "awq"}, "'gptq'"),
        ("u4", {"zero": "none"}, "zero='none'"),
        ("u4", {"widht": 3}, "no setting 'widht'; known: dtype, group"),
        ("u4", {"rows": {"a": 4}}, r"plan\['a'\] is 4"),
        ("u4", {"rows": {"a": {"bits": 4}}}, r"plan\['a'\] has no setting 'bits'"),
        ("u4", {"rows": {"re:(": "u4"}}, "no regular expression"),
    ],
)
def test_what_means_nothing_is_refused(
    dtype: str | None, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(SettingError, match=says):
        Plan.of(dtype, **arguments)


@given(st.sampled_from(["u4", "i3"]), st.sampled_from([32, "channel"]), st.booleans())
def test_settings_are_plain_data(dtype: str, group: int | str, symmetric: bool) -> None:
    settings = Settings(dtype, group, "int8", symmetric=symmetric)
    assert Settings(**settings.to_dict()) == settings
    assert str(settings).startswith(f"{dtype} group {group}, activation int8")
