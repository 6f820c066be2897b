"""Forms of ``tilewright.attention`` as the modules that they become: for tests that compile what
they cannot run here."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tilewright.frontend.attention.build import build
from tilewright.frontend.attention.closure import Closure
from tilewright.frontend.attention.form import DENSE, PAGED, RAGGED, CacheSide, Form
from tilewright.ir.cache_form import CacheForm
from tilewright.ir.core import Module


def cached(
    bits: tuple[int, int],
    by: str = "token",
    dtype: torch.dtype = torch.bfloat16,
    width: int = 128,
    causal: bool = False,
) -> Form:
    """Keys and values in a cache of so many bits; keys by token or channel."""
    keys = CacheForm("lanes", bits[0], width, by, 128 if by == "channel" else width)
    values = CacheForm("codes", bits[1], width, "token", width)
    sides = (CacheSide(form, torch.float16, True, 0) for form in (keys, values))
    widths = width, width
    return Form(DENSE, dtype, 4, widths, None, causal, keys=next(sides), values=next(sides))


def _paged() -> Form:
    table = torch.int32
    widths = (128, 128)
    return Form(PAGED, torch.bfloat16, 4, widths, None, True, page=16, used=table, table=table)


FORMS = {
    "decode": Form(DENSE, torch.bfloat16, 4, (128, 128), None, False),
    "pages": _paged(),
    "ragged": Form(RAGGED, torch.bfloat16, 4, (128, 128), None, True),
    "cache u8, u4": cached((8, 4)),
    "cache u3, u5": cached((3, 5)),
    "cache u4 by channel, u2": cached((4, 2), "channel"),
}


def module_of(name: str) -> Module:
    """The program of a form, in bf16, heads of 128, four of which share a key head."""
    return module_of_form(FORMS[name])


def module_of_form(form: Form, mask_mod: Callable[..., torch.Tensor] | None = None) -> Module:
    """The program of a form."""
    return build(form, None, mask_mod, Closure(), torch.device("cpu")).module
