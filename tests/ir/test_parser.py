"""What the parser says of a wrong text: where, what stands there, what was expected."""

from __future__ import annotations

import pytest

from tilewright.ir.errors import ParseError, TilewrightError, VerifyError
from tilewright.ir.parser import parse

HEAD = "graph f<N, M>(%x: tensor<N x M x f32>, %b: tensor<N x 1 x bool>) {\n"


def error_of(text: str, kind: type[TilewrightError] = ParseError) -> TilewrightError:
    with pytest.raises(TilewrightError) as caught:
        parse(text, "prog.tw")
    assert type(caught.value) is kind, caught.value
    return caught.value


def check_place(error: TilewrightError, text: str, line: int, column: int) -> None:
    """Line and column are right in the message, and the caret stands under the column."""
    message = str(error)
    assert message.startswith(f"prog.tw:{line}:{column}: "), message
    shown, caret = message.split("\n")[-2:]
    assert caret.strip() == "^"
    source = text.split("\n")[line - 1]
    under = shown[caret.index("^") :][:1]
    assert under == source[column - 1 : column]


GRAMMAR = [
    ("graph f(", 1, 9, "text ends here; expected .*a value"),
    ("graph f(%x: tensor<4 x f32>) { return %x", 1, 41, "text ends here"),
    ("graph f(%x tensor<4 x f32>) { return %x }", 1, 12, "unexpected 'tensor'; expected ':'"),
    ("graph f(%x: tensor<4 f32>) { return %x }", 1, 22, "unexpected 'f32'; expected 'x'"),
    ("graph f(%x: tensor<4 x f32>) { %y = exp %x\nreturn %y }", 1, 37, "expected an operation"),
    (HEAD + "%y = math.exp %x {a 1}\nreturn %y }", 2, 21, "unexpected '1'; expected '='"),
    (HEAD + "return %x }\n}", 3, 1, "unexpected '}'"),
    (HEAD + "return %x @ }", 2, 11, "unexpected '@'"),
    (HEAD + "%y = math.exp %x }", 2, 18, "unexpected '}'; expected"),
    ("stream f(%x: stream<n=N f32>) { return }", 1, 25, "expected"),
    ("", 1, 1, "text ends here"),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), GRAMMAR)
def test_grammar_errors(text: str, line: int, column: int, message: str) -> None:
    error = error_of(text)
    if text:
        check_place(error, text, line, column)
    with pytest.raises(ParseError, match=message):
        raise error


MEANING = [
    (HEAD + "%y = math.exp %z\nreturn %y }", 2, 15, r"%z is not defined here.*%x, %b"),
    (HEAD + "%y = math.exp %x\n%y = math.exp %x\nreturn %y }", 3, 1, "%y is defined twice"),
    (HEAD + "%x = math.exp %x\nreturn %x }", 2, 1, "%x is defined twice"),
    ("graph f(%x: index, %x: index) { return }", 1, 20, "%x is defined twice"),
    (
        HEAD + "%y = math.foo %x\nreturn %y }",
        2,
        6,
        "operation math.foo; .*known: .*math.exp",
    ),
    (HEAD + "%y = math.sqtr %x\nreturn %y }", 2, 6, "math.sqtr; did you mean 'math.sqrt'"),
    (HEAD + "%y = tensor.exp %x\nreturn %y }", 2, 6, "tensor.exp; did you mean 'math.exp'"),
    ("graph f(%x: tensor<4 x bfloat16>) { return %x }", 1, 24, "bfloat16; did you mean 'bf16'"),
    (HEAD + "return %y }", 2, 8, "%y is not defined here"),
    ("graph f(%x: tensor<4 x q9>) { return %x }", 1, 24, "unknown dtype q9; known: .*bf16"),
    (
        HEAD + "%y = math.cast %x {dtype = f33}\nreturn %y }",
        2,
        28,
        "dtype f33; did you mean 'f32'",
    ),
    (
        HEAD + "%y = math.exp %x : tensor<M x N x f32>\nreturn %y }",
        *(2, 6, "type written after math.exp differs from its result: tensor<N x M x f32>"),
    ),
    (
        HEAD + "%y = math.exp %x : tensor<N x M x f32>, tensor<N x M x f32>\nreturn %y }",
        *(2, 6, "type written after math.exp differs"),
    ),
    (HEAD + "%y, %z = math.exp %x\nreturn %y }", 2, 10, "math.exp has 1 results"),
    (HEAD + "math.exp %x\nreturn %x }", 2, 1, "math.exp has 1 results"),
    ("graph f(%x: tensor<9999999999999999999 x f32>) { return }", 1, 20, "more than 18 digits"),
    ("tile f(%x: reg<2 x f32, local(0, 2)>) { return }", 1, 25, "positive"),
    ("tile f(%x: reg<2 x f32, local(2).spatial(1, 1)>) { return }", 1, 25, "one rank"),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), MEANING)
def test_errors_of_meaning(text: str, line: int, column: int, message: str) -> None:
    error = error_of(text)
    check_place(error, text, line, column)
    with pytest.raises(ParseError, match=message):
        raise error


VERIFIED = [
    ("%y = math.add %x, %b\nreturn %y }", r"math.add\(tensor<N x M x f32>, tensor<N x 1 x bool>\)"),
    ("%y = math.exp\nreturn %y }", r"math.exp\(\): takes 1 operands \(x\)"),
    ("%y = math.exp %x, %x\nreturn %y }", "takes 1 operands"),
    ("%y = math.exp %x {axis = 1}\nreturn %y }", "has no attribute 'axis'"),
    ("%y = tensor.softmax %x\nreturn %y }", "needs the attribute 'axis'"),
    ("%y = tensor.transpose %x {permutation = 3}\nreturn %y }", "must be a list of integers"),
    ("%y = tensor.contract %x, %x {equation = 3}\nreturn %y }", "must be a string"),
    ("%y = tensor.softmax %x {axis = 2}\nreturn %y }", "axis 2 is not a dimension of a rank-2"),
]


@pytest.mark.parametrize(("body", "message"), VERIFIED)
def test_broken_rules_point_at_the_operation(body: str, message: str) -> None:
    text = HEAD + "  " + body
    error = error_of(text, VerifyError)
    check_place(error, text, 2, 8)
    with pytest.raises(VerifyError, match=message):
        raise error


SHAPED = [
    ("tile f(\n%x: reg<2 x 3 x f32, local(3, 2)>) { return }", 2, 5, "has not the shape"),
    ("tile f(\n%x: scratch<N x f32>) { return }", 2, 5, "constant sizes"),
    (f"graph f(\n%x: tensor<({'*'.join('N' * 20)}) x f32>) {{ return }}", 2, 13, "16 factors"),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), SHAPED)
def test_wrong_types_are_parse_errors(text: str, line: int, column: int, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse(text)


@pytest.mark.parametrize(("text", "line", "column", "message"), SHAPED)
def test_wrong_types_are_located(text: str, line: int, column: int, message: str) -> None:
    assert str(error_of(text)).startswith(f"prog.tw:{line}:"), message


@pytest.mark.parametrize(
    "text", ["", "grph f() { return }", "graph f() { %x = math.exp %x {a = } }"]
)
def test_expectations_are_words_of_the_language(text: str) -> None:
    expected = str(error_of(text)).split("; expected ")[1].split("\n")[0]
    for terminal in ("LEVEL", "END", "ATOM", "ESCAPED_STRING", "NUMBER", "INTEGER"):
        assert terminal not in expected


def test_end_of_text_after_a_newline_shows_a_line_and_a_caret() -> None:
    assert "^" in str(error_of("graph f(\n"))


def test_caret_on_a_very_long_line() -> None:
    text = HEAD + " " * 3000 + "%y = math.exp %z" + " " * 3000 + "\nreturn %y }"
    error = error_of(text)
    check_place(error, text, 2, 3015)
    assert len(str(error)) < 500


ACCEPTED_NONSENSE = [
    "%y = math.const {value = 1, type = f32}",
    '%y = math.const {value = "a", type = tensor<f32>}',
    "%y = math.const {value = [1, 2], type = tensor<f32>}",
    "%y = math.const {value = 1.0, type = buffer<4 x f32, unit 0>}",
    "%y = math.exp %x () { yield }",
    '%y = tensor.contract %x, %x {equation = "nm,nm->nn"}',
    '%y = tensor.contract %x, %x {equation = "1.,1.->1"}',
    "%y = math.and %x, %x",
    "%y = math.neg %b",
    "%y = math.mod %x, %x",
    "%y = tensor.iota {axis = 0, type = tensor<Q x i64>}",
    "%y = tile.size {size = 3}",
    '%y = tile.block {dim = "a"}',
    "%y = tile.coordinate {dim = 7, layout = local(4, 1)}",
    "%y = tile.coordinate {dim = 0, layout = 5}",
    "%y = tile.block {dim = 0}",  # of another level
]


@pytest.mark.parametrize("body", ACCEPTED_NONSENSE)
def test_nonsense_is_refused(body: str) -> None:
    with pytest.raises((ParseError, VerifyError)):
        parse(HEAD + body + "\nreturn %y }")


def test_sizes_must_be_declared() -> None:
    with pytest.raises(TilewrightError, match="Q"):
        parse("graph f<N>(%x: tensor<Q x f32>) { return %x }")


def test_replicate_takes_one_number() -> None:
    with pytest.raises(ParseError):
        parse("tile f(%x: reg<1 x 1 x f32, replicate(2, 3)>) { return }")


def test_comments_and_spacing_do_not_matter() -> None:
    plain = parse("graph f<N>(%x: tensor<N x f32>) { %y = math.exp %x return %y }")
    spaced = parse(
        "// a comment }\ngraph f <N> ( %x:tensor< N x f32 > )\n{%y=math.exp %x//%z\nreturn %y}"
    )
    assert plain == spaced


def test_locations_stay_on_operations() -> None:
    module = parse("graph f(%x: tensor<4 x f32>) {\n  %y = math.exp %x\n  return %y }", "a.tw")
    assert str(module.main.body.ops[0].loc) == "a.tw:2:8"


def test_regions_nest_up_to_64_deep() -> None:
    def nested(depth: int) -> str:
        return (
            "tile f(%i: index) { "
            + "tile.if %i, %i () { " * depth
            + "yield }" * depth
            + " return }"
        )

    assert parse(nested(63)) == parse(nested(63))
    with pytest.raises(ParseError, match="nested more than 64"):
        parse(nested(64))


def test_inner_values_end_with_their_region() -> None:
    inner = "tile.if %i, %i () { %j = math.add %i, %i yield }"
    text = f"tile f(%i: index) {{ {inner}\n%k = math.neg %j return }}"
    error = error_of(text)
    assert "%j is not defined here" in str(error)
