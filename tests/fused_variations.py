"""More programs of the kind of ``fused_programs``: statistics, results that are rows, other
spellings, and what needs two kernels because a result is as long as the row but lies in columns."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.fused_programs import CASES
from tests.fused_text import (
    COUNT,
    QK,
    QKV,
    RMS_NORM,
    SCORES,
    Case,
    D,
    K,
    const,
    lse,
    p_of,
    reduce,
    rms_norm,
    softmax,
    weighted,
)

XY = "%x: tensor<N x M x f32>, %y: tensor<N x M x f32>"
DEVIATIONS = (
    COUNT
    + reduce("sum", "x")
    + "%mean = math.div %sum, %n\n%d = math.sub %x, %mean\n%d2 = math.mul %d, %d\n"
    + reduce("squares", "d2")
)

LAYER_NORM = (
    DEVIATIONS
    + const("eps", 1e-5)
    + "%var = math.div %squares, %n\n%below = math.add %var, %eps\n"
    + "%r = math.rsqrt %below\n%y = math.mul %d, %r\n"
)
COLUMNS = "%o = tensor.transpose %{} {{permutation = [1, 0]}}"

VARIATIONS: dict[str, Case] = {
    "softmax": Case("%x: tensor<N x M x f32>", softmax("x", "o"), lambda x: x.softmax(-1)),
    "LayerNorm": Case(
        "%x: tensor<N x M x f32>",
        LAYER_NORM,
        lambda x: F.layer_norm(x, x.shape[-1:]),
        results="%y",
    ),
    "attention whose values are its keys": Case(
        QK,
        SCORES + softmax("s") + '%o = tensor.contract %p, %k {equation = "nm,me->ne"}',
        lambda q, k: p_of(q @ k.T) @ k,
    ),
    "attention by squared scores": Case(
        QKV,
        SCORES
        + "%w = math.mul %s, %s\n"
        + reduce("l", "w")
        + "%p = math.div %w, %l\n"
        + weighted("p"),
        lambda q, k, v: (q @ k.T) ** 2 / ((q @ k.T) ** 2).sum(-1, keepdim=True) @ v,
    ),
    "square of a log-sum-exp": Case(
        QK,
        SCORES + lse() + "%o = math.mul %lse, %lse",
        lambda q, k: torch.logsumexp(q @ k.T, -1, keepdim=True) ** 2,
    ),
    "gated products of a normalised row": Case(
        f"%x: tensor<N x {K} x f32>, %g: tensor<{K} x f32>, %w: tensor<M x {K} x f32>, "
        f"%u: tensor<M x {K} x f32>",
        RMS_NORM
        + '%a = tensor.contract %z, %w {equation = "nk,mk->nm"}\n'
        + '%b = tensor.contract %z, %u {equation = "nk,mk->nm"}\n'
        + "%c = math.sigmoid %a\n%d = math.mul %a, %c\n%o = math.mul %d, %b",
        lambda x, g, w, u: F.silu(rms_norm(x) * g @ w.T) * (rms_norm(x) * g @ u.T),
    ),
    "root mean square": Case(
        "%x: tensor<N x M x f32>",
        COUNT
        + "%x2 = math.mul %x, %x\n"
        + reduce("sum", "x2")
        + "%mean = math.div %sum, %n\n%o = math.sqrt %mean",
        lambda x: (x * x).mean(-1, keepdim=True).sqrt(),
    ),
    "cosine of two rows": Case(
        XY,
        "%xy = math.mul %x, %y\n%x2 = math.mul %x, %x\n%y2 = math.mul %y, %y\n"
        + reduce("a", "xy")
        + reduce("b", "x2")
        + reduce("c", "y2")
        + "%bc = math.mul %b, %c\n%r = math.rsqrt %bc\n%o = math.mul %a, %r",
        lambda x, y: F.cosine_similarity(x, y, -1)[:, None],
    ),
    "weights of two maxima": Case(
        f"{QKV}, %r: tensor<N x {D} x f32>",
        SCORES
        + '%z = tensor.contract %r, %k {equation = "nd,md->nm"}\n'
        + softmax("s")
        + softmax("z", "pz")
        + "%both = math.mul %p, %pz\n"
        + weighted("both"),
        lambda q, k, v, r: (p_of(q @ k.T) * p_of(r @ k.T)) @ v,
    ),
}
ALL: dict[str, Case] = {**CASES, **VARIATIONS}

# a result as long as the row, or a sum that cannot be one: each with its number of kernels
BORDERS: dict[str, tuple[int, Case]] = {
    "softmax, written in columns": (
        2,
        Case(
            "%x: tensor<N x M x f32>",
            softmax("x") + COLUMNS.format("p"),
            lambda x: x.softmax(-1).T,
        ),
    ),
    "LayerNorm, written in columns": (
        2,
        Case(
            "%x: tensor<N x M x f32>",
            LAYER_NORM + COLUMNS.format("y"),
            lambda x: F.layer_norm(x, x.shape[-1:]).T,
        ),
    ),
    "attention and its weights": (
        2,
        Case(
            QKV,
            SCORES + softmax("s") + weighted("p"),
            lambda q, k, v: (p_of(q @ k.T) @ v, p_of(q @ k.T)),
            results="%o, %p",
        ),
    ),
    "distance of two softmaxes": (
        2,
        Case(
            f"{QK}, %r: tensor<N x {D} x f32>",
            SCORES
            + '%z = tensor.contract %r, %k {equation = "nd,md->nm"}\n'
            + softmax("s")
            + softmax("z", "pz")
            + "%a = math.sub %p, %pz\n%b = math.abs %a\n"
            + reduce("o", "b"),
            lambda q, k, r: (p_of(q @ k.T) - p_of(r @ k.T)).abs().sum(-1, keepdim=True),
        ),
    ),
    "variance under a softmax": (
        2,
        Case(
            f"{QK}, %y: tensor<1 x M x f32>",
            SCORES
            + softmax("s")
            + "%t = math.mul %p, %y\n"
            + reduce("mean", "t")
            + "%d = math.sub %y, %mean\n%d2 = math.mul %d, %d\n%w = math.mul %p, %d2\n"
            + reduce("o", "w"),
            lambda q, k, y: (
                p_of(q @ k.T) * (y - (p_of(q @ k.T) * y).sum(-1, keepdim=True)) ** 2
            ).sum(-1, keepdim=True),
        ),
    ),
}
