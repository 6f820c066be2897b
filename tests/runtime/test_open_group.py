"""By channel: a token that joins an open group changes its scales, its own codes, and the codes of
channels whose scales it changes; the bits are those of quantising the whole group again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tilewright.ir.cache_form import CacheForm
from tilewright.ir.errors import BindError
from tilewright.runtime.kv_cache import quantise
from tilewright.runtime.kv_cache.quantise import _by_torch
from tilewright.runtime.kv_cache.side import Side

FORMS = st.builds(
    CacheForm,
    st.sampled_from(["lanes", "codes"]),
    st.integers(1, 8),
    st.integers(2, 40),
    st.just("channel"),
    st.sampled_from([32, 64]),
)
PORTIONS = st.lists(st.integers(1, 3) | st.integers(1, 40), min_size=2, max_size=12)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


def drawn(tokens: int, width: int, drift: float, seed: int = 0) -> torch.Tensor:
    """With channels of zeros, of one number, and ones that never repeat their range."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((2, 3, tokens, width), generator=generator)
    x += drift * torch.arange(tokens)[:, None]
    x[0, 0, :, 0], x[1, 2, :, -1] = 0, 2.5
    return x


def as_a_whole(side: Side, x: torch.Tensor) -> None:
    """Codes, scales and zeros are what torch makes of the tokens' whole groups."""
    form, seen = side.form, side.tokens()
    codes = seen.codes()
    for first in range(0, x.shape[2], form.group):
        group = x[:, :, None, first : first + form.group].float()
        want = _by_torch(group, form, side.symmetric, side.scales.dtype, "k")
        at = slice(first, first + form.group)
        assert torch.equal(codes[:, :, at], want[0][:, :, 0])
        got = seen.scales if seen.zeros is None else torch.cat((seen.scales, seen.zeros), 3)
        row = first // form.group
        assert torch.equal(got[:, :, row], torch.cat(want[1:], 4)[:, :, 0, 0])
    words = torch.from_numpy(form.pack(codes.numpy()))
    assert torch.equal(seen.words[:, :, : words.shape[2]], words)
    assert not seen.words[:, :, words.shape[2] :].any()


@given(FORMS, st.booleans(), DTYPES, PORTIONS, st.sampled_from([0, 0.3]))
@settings(max_examples=40, deadline=None)
def test_tokens_that_join(
    form: CacheForm, symmetric: bool, dtype: torch.dtype, portions: list[int], drift: float
) -> None:
    assume(not symmetric or form.bits > 1)
    side = Side(form, symmetric, (2, 3), torch.float16, "k")
    x = drawn(sum(portions), form.width, drift).to(dtype)
    at = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantise, "_by_kernel", lambda *_: None)  # nothing to compile for each form
        for count in portions:
            side.append(side.code(x[:, :, at : at + count]))
            at += count
            as_a_whole(side, x[:, :, :at])
            if at % 3 == 0 and at % form.group > 1:  # a token that is refused and comes again
                side.truncate(at - 1)
                as_a_whole(side, x[:, :, : at - 1])
                side.append(side.code(x[:, :, at - 1 : at]))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens are quantised as whole groups, call by call."""
    calls: list[int] = []
    whole: Callable[..., object] = quantise.quantise

    def noted(x: torch.Tensor, *rest: object) -> object:
        calls.append(x.shape[2])
        return whole(x, *rest)

    monkeypatch.setattr("tilewright.runtime.kv_cache.side.quantise", noted)
    return calls


@pytest.mark.parametrize("tokens", ["lanes", "codes"])
def test_a_group_is_not_quantised_again_for_each_token(
    tokens: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    side = Side(CacheForm(tokens, 4, 64, "channel", 64), False, (2, 3), torch.float16, "k")
    x = drawn(130, 64, 0)
    for at in range(130):
        side.append(side.code(x[:, :, at : at + 1]))
    as_a_whole(side, x)
    assert calls == [1, 1, 1]  # what begins a group


def test_where_most_channels_change_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    side = Side(CacheForm("lanes", 4, 16, "channel", 32), False, (2, 3), torch.float16, "k")
    x = drawn(32, 16, 1)
    for at in range(32):
        side.append(side.code(x[:, :, at : at + 1]))
    as_a_whole(side, x)
    assert calls[0] == 1 and calls[-1] == 32 and len(calls) > 20


def test_another_dtype_takes_the_group_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept becomes numbers of the dtype of the tokens that come."""
    calls = counted(monkeypatch)
    side = Side(CacheForm("lanes", 8, 16, "channel", 32), False, (2, 3), torch.float32, "k")
    x = drawn(12, 16, 0)
    side.append(side.code(x[:, :, :10]))
    side.append(side.code(x[:, :, 10:11].bfloat16()))
    side.append(side.code(x[:, :, 11:].bfloat16()))
    as_a_whole(side, x.bfloat16())
    assert calls == [10, 11]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_token_that_no_code_holds_changes_nothing(bad: float) -> None:
    side = Side(CacheForm("lanes", 8, 16, "channel", 64), False, (2, 3), torch.float16, "k")
    x = drawn(41, 16, 0)
    side.append(side.code(x[:, :, :39]))
    wrong = x[:, :, 39:40].clone()
    wrong[1, 1, 0, 7] = bad
    with pytest.raises(BindError, match="float32" if bad == 1e30 else "NaN or infinite"):
        side.code(wrong)
    as_a_whole(side, x[:, :, :39])
    for at in (39, 40):
        side.append(side.code(x[:, :, at : at + 1]))
    as_a_whole(side, x)


def test_other_tensors_may_be_made_elsewhere() -> None:
    """A model's script sets torch's default device; a cache on the CPU stays there."""
    side = Side(CacheForm("lanes", 3, 24, "channel", 32), False, (2, 3), torch.float16, "k")
    x = drawn(20, 24, 0)
    with torch.device("meta"):
        for at in range(20):
            side.append(side.code(x[:, :, at : at + 1]))
    as_a_whole(side, x)
