"""Programs that have to become one kernel each, whatever their spelling: texts and what they mean.

Rows are ``N``, the long axis is ``M``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.fused_text import (
    COUNT,
    LABELS,
    LAYER_NORM,
    LOG_SOFTMAX,
    QK,
    QKV,
    RMS_NORM,
    SCORES,
    Case,
    D,
    E,
    K,
    const,
    entropy_of,
    lse,
    p_of,
    reduce,
    rms_norm,
    softmax,
    weighted,
)

CASES: dict[str, Case] = {
    "attention": Case(
        QKV, SCORES + softmax("s") + weighted("p"), lambda q, k, v: p_of(q @ k.T) @ v
    ),
    "attention, safe": Case(
        QKV, SCORES + softmax("s", safe=True) + weighted("p"), lambda q, k, v: p_of(q @ k.T) @ v
    ),
    "attention, soft cap": Case(
        QKV,
        SCORES
        + const("cap", 2.0)
        + "%a = math.div %s, %cap\n%b = math.tanh %a\n%t = math.mul %b, %cap\n"
        + softmax("t")
        + weighted("p"),
        lambda q, k, v: p_of(2 * torch.tanh(q @ k.T / 2)) @ v,
    ),
    "attention, squared scores and a bias": Case(
        QKV + ", %bias: tensor<N x M x f32>",
        SCORES + "%a = math.mul %s, %s\n%t = math.add %a, %bias\n" + softmax("t") + weighted("p"),
        lambda q, k, v, bias: p_of((q @ k.T) ** 2 + bias) @ v,
    ),
    "attention and its statistics": Case(
        QKV,
        SCORES + lse() + "%p = math.div %e, %l\n" + weighted("p"),
        lambda q, k, v: (
            p_of(q @ k.T) @ v,
            torch.logsumexp(q @ k.T, -1, keepdim=True),
            (q @ k.T).amax(-1, keepdim=True),
        ),
        results="%o, %lse, %top",
    ),
    "attention from a log-sum-exp": Case(
        QKV,
        SCORES + LOG_SOFTMAX + "%p = math.exp %logp\n" + weighted("p"),
        lambda q, k, v: p_of(q @ k.T) @ v,
    ),
    "attention, temperature per row": Case(
        QKV + ", %t: tensor<N x 1 x f32>",
        SCORES + "%a = math.div %s, %t\n" + softmax("a") + weighted("p"),
        lambda q, k, v, t: p_of(q @ k.T / t) @ v,
        kinds=(("t", "positive"),),
    ),
    "attention, temperature after the maximum": Case(
        QKV + ", %t: tensor<N x 1 x f32>",
        SCORES
        + reduce("top", "s", "max")
        + "%d = math.sub %s, %top\n%a = math.div %d, %t\n%e = math.exp %a\n"
        + reduce("l", "e")
        + "%p = math.div %e, %l\n"
        + weighted("p"),
        lambda q, k, v, t: p_of(q @ k.T / t) @ v,
        kinds=(("t", "positive"),),
    ),
    "attention in powers of two": Case(
        QKV,
        SCORES
        + reduce("top", "s", "max")
        + "%d = math.sub %s, %top\n%e = math.exp2 %d\n"
        + reduce("l", "e")
        + "%p = math.div %e, %l\n"
        + weighted("p"),
        lambda q, k, v: p_of(q @ k.T * 0.6931471805599453) @ v,
    ),
    "attention, masked by a tensor": Case(
        QKV + ", %c: tensor<N x M x bool>",
        SCORES
        + const("no", "-inf")
        + "%t = math.select %c, %s, %no\n"
        + softmax("t", safe=True)
        + weighted("p"),
        lambda q, k, v, c: (
            torch.where(c.any(-1, keepdim=True), p_of((q @ k.T).masked_fill(~c, -torch.inf)), 0.0)
            @ v
        ),
        kinds=(("c", "mask"),),
    ),
    "attention, probabilities masked": Case(
        QKV + ", %c: tensor<N x M x bool>",
        SCORES
        + softmax("s")
        + const("zero", 0.0)
        + "%t = math.select %c, %p, %zero\n"
        + weighted("t"),
        lambda q, k, v, c: (p_of(q @ k.T) * c) @ v,
        kinds=(("c", "mask"),),
    ),
    "two values of one key": Case(
        QKV + f", %u: tensor<M x {E} x f32>",
        SCORES + softmax("s") + weighted("p") + weighted("p", "u", "o2"),
        lambda q, k, v, u: (p_of(q @ k.T) @ v, p_of(q @ k.T) @ u),
        results="%o, %o2",
    ),
    "two queries of one key": Case(
        QKV + f", %r: tensor<N x {D} x f32>, %u: tensor<M x {E} x f32>",
        SCORES
        + softmax("s")
        + weighted("p")
        + '%s2 = tensor.contract %r, %k {equation = "nd,md->nm"}\n'
        + softmax("s2", "p2")
        + weighted("p2", "u", "o2"),
        lambda q, k, v, r, u: (p_of(q @ k.T) @ v, p_of(r @ k.T) @ u),
        results="%o, %o2",
    ),
    "difference of two attentions": Case(
        QKV + f", %r: tensor<N x {D} x f32>",
        SCORES
        + softmax("s")
        + '%s2 = tensor.contract %r, %k {equation = "nd,md->nm"}\n'
        + softmax("s2", "p2")
        + "%w = math.sub %p, %p2\n"
        + weighted("w"),
        lambda q, k, v, r: (p_of(q @ k.T) - p_of(r @ k.T)) @ v,
    ),
    "sigmoid attention": Case(
        QKV,
        SCORES + "%p = math.sigmoid %s\n" + weighted("p"),
        lambda q, k, v: (q @ k.T).sigmoid() @ v,
    ),
    "normalised sigmoid attention": Case(
        QKV,
        SCORES
        + "%g = math.sigmoid %s\n"
        + reduce("l", "g")
        + "%p = math.div %g, %l\n"
        + weighted("p"),
        lambda q, k, v: (q @ k.T).sigmoid() @ v / (q @ k.T).sigmoid().sum(-1, keepdim=True),
    ),
    "log-sum-exp": Case(
        QK, SCORES + lse(), lambda q, k: torch.logsumexp(q @ k.T, -1, True), results="%lse"
    ),
    "cross-entropy": Case(
        QK + ", %labels: tensor<N x 1 x i64>",
        SCORES
        + lse()
        + LABELS
        + const("zero", 0.0)
        + "%at = math.select %hit, %s, %zero\n"
        + reduce("picked", "at")
        + "%o = math.sub %lse, %picked",
        lambda q, k, labels: F.cross_entropy(q @ k.T, labels[:, 0], reduction="none")[:, None],
        kinds=(("labels", "labels"),),
    ),
    "cross-entropy of a log-softmax": Case(
        QK + ", %labels: tensor<N x 1 x i64>",
        SCORES
        + LOG_SOFTMAX
        + LABELS
        + const("zero", 0.0)
        + "%at = math.select %hit, %logp, %zero\n"
        + reduce("picked", "at")
        + "%o = math.neg %picked",
        lambda q, k, labels: F.cross_entropy(q @ k.T, labels[:, 0], reduction="none")[:, None],
        kinds=(("labels", "labels"),),
    ),
    "cross-entropy, labels smoothed": Case(
        QK + ", %labels: tensor<N x 1 x i64>",
        SCORES
        + LOG_SOFTMAX
        + LABELS
        + const("most", 0.9)
        + const("rest", 0.1)
        + "%target = math.select %hit, %most, %rest\n"
        + "%at = math.mul %target, %logp\n"
        + reduce("picked", "at")
        + "%o = math.neg %picked",
        lambda q, k, labels: (
            -(
                torch.log_softmax(q @ k.T, -1)
                * (0.1 + 0.8 * F.one_hot(labels[:, 0], k.shape[0]).double())
            ).sum(-1, keepdim=True)
        ),
        kinds=(("labels", "labels"),),
    ),
    "entropy from the scores": Case(
        QK,
        SCORES
        + lse()
        + "%p = math.div %e, %l\n%ps = math.mul %p, %s\n"
        + reduce("mean", "ps")
        + "%o = math.sub %lse, %mean",
        lambda q, k: entropy_of(q @ k.T),
    ),
    "entropy from shifted scores": Case(
        QK,
        SCORES
        + lse()
        + "%p = math.div %e, %l\n%ps = math.mul %p, %d\n"
        + reduce("mean", "ps")
        + "%o = math.sub %logl, %mean",
        lambda q, k: entropy_of(q @ k.T),
    ),
    "entropy of a log-softmax": Case(
        QK,
        SCORES
        + LOG_SOFTMAX
        + "%p = math.exp %logp\n%t = math.mul %p, %logp\n"
        + reduce("sum", "t")
        + "%o = math.neg %sum",
        lambda q, k: entropy_of(q @ k.T),
    ),
    "entropy as it is defined": Case(
        QK,
        SCORES
        + softmax("s")
        + "%logp = math.log %p\n%t = math.mul %p, %logp\n"
        + reduce("sum", "t")
        + "%o = math.neg %sum",
        lambda q, k: entropy_of(q @ k.T),
    ),
    "expected value": Case(
        QK + ", %y: tensor<1 x M x f32>",
        SCORES + softmax("s") + "%t = math.mul %p, %y\n" + reduce("o", "t"),
        lambda q, k, y: (p_of(q @ k.T) * y).sum(-1, keepdim=True),
    ),
    "expected value and its square": Case(
        QK + ", %y: tensor<1 x M x f32>",
        SCORES
        + softmax("s")
        + "%t = math.mul %p, %y\n"
        + reduce("o", "t")
        + "%y2 = math.mul %y, %y\n%t2 = math.mul %p, %y2\n"
        + reduce("o2", "t2"),
        lambda q, k, y: (
            (p_of(q @ k.T) * y).sum(-1, keepdim=True),
            (p_of(q @ k.T) * y * y).sum(-1, keepdim=True),
        ),
        results="%o, %o2",
    ),
    "sum of squared probabilities": Case(
        QK,
        SCORES + softmax("s") + "%t = math.mul %p, %p\n" + reduce("o", "t"),
        lambda q, k: (p_of(q @ k.T) ** 2).sum(-1, keepdim=True),
    ),
    "divergence of two softmaxes": Case(
        QK + f", %r: tensor<N x {D} x f32>",
        SCORES
        + LOG_SOFTMAX
        + "%p = math.exp %logp\n"
        + '%z = tensor.contract %r, %k {equation = "nd,md->nm"}\n'
        + LOG_SOFTMAX.replace("%", "%z").replace("%zs", "%z")
        + "%diff = math.sub %logp, %zlogp\n%t = math.mul %p, %diff\n"
        + reduce("o", "t"),
        lambda q, k, r: (
            p_of(q @ k.T) * (torch.log_softmax(q @ k.T, -1) - torch.log_softmax(r @ k.T, -1))
        ).sum(-1, keepdim=True),
    ),
    "ratio of two sums": Case(
        "%a: tensor<N x M x f32>, %x: tensor<N x M x f32>, %b: tensor<N x M x f32>, "
        "%y: tensor<M x f32>",
        "%u = math.mul %a, %x\n%w = math.mul %b, %y\n"
        + reduce("top", "u")
        + reduce("below", "w")
        + "%o = math.div %top, %below",
        lambda a, x, b, y: (a * x).sum(-1, keepdim=True) / (b * y).sum(-1, keepdim=True),
        kinds=(("b", "positive"), ("y", "positive")),
    ),
    "ratio inside the sum": Case(
        f"%a: tensor<N x M x f32>, %v: tensor<M x {E} x f32>",
        "%b = math.abs %a\n" + reduce("l", "b") + "%w = math.div %a, %l\n" + weighted("w"),
        lambda a, v: a @ v / a.abs().sum(-1, keepdim=True),
    ),
    "mean and variance": Case(
        "%x: tensor<N x M x f32>",
        COUNT
        + reduce("sum", "x")
        + "%mean = math.div %sum, %n\n%d = math.sub %x, %mean\n%d2 = math.mul %d, %d\n"
        + reduce("squares", "d2")
        + "%var = math.div %squares, %n",
        lambda x: (x.mean(-1, True), x.var(-1, correction=0, keepdim=True)),
        results="%mean, %var",
    ),
    "covariance": Case(
        "%x: tensor<N x M x f32>, %y: tensor<N x M x f32>",
        COUNT
        + reduce("sx", "x")
        + reduce("sy", "y")
        + "%mx = math.div %sx, %n\n%my = math.div %sy, %n\n%dx = math.sub %x, %mx\n"
        "%dy = math.sub %y, %my\n%t = math.mul %dx, %dy\n"
        + reduce("sum", "t")
        + "%o = math.div %sum, %n",
        lambda x, y: ((x - x.mean(-1, True)) * (y - y.mean(-1, True))).mean(-1, True),
    ),
    "constant along the row": Case(
        "%x: tensor<N x M x f32>, %r: tensor<N x 1 x f32>",
        reduce("top", "x", "max")
        + "%e = math.exp %r\n%g = math.mul %e, %top\n%h = math.tanh %g\n%w = math.mul %x, %h\n"
        + reduce("o", "w"),
        lambda x, r: (x * torch.tanh(torch.exp(r) * x.amax(-1, True))).sum(-1, keepdim=True),
    ),
    "RMSNorm and a product": Case(
        f"%x: tensor<N x {K} x f32>, %g: tensor<{K} x f32>, %w: tensor<M x {K} x f32>",
        RMS_NORM + '%o = tensor.contract %z, %w {equation = "nk,mk->nm"}',
        lambda x, g, w: rms_norm(x) * g @ w.T,
    ),
    "LayerNorm and a product": Case(
        f"%x: tensor<N x {K} x f32>, %g: tensor<{K} x f32>, %b: tensor<{K} x f32>, "
        f"%w: tensor<M x {K} x f32>",
        LAYER_NORM + '%o = tensor.contract %zb, %w {equation = "nk,mk->nm"}',
        lambda x, g, b, w: F.layer_norm(x, x.shape[-1:], g, b, 1e-5) @ w.T,
    ),
    "cross-entropy of a normalised row": Case(
        f"%x: tensor<N x {K} x f32>, %g: tensor<{K} x f32>, %w: tensor<M x {K} x f32>, "
        "%labels: tensor<N x 1 x i64>",
        RMS_NORM
        + '%s = tensor.contract %z, %w {equation = "nk,mk->nm"}\n'
        + lse()
        + LABELS
        + const("zero", 0.0)
        + "%at = math.select %hit, %s, %zero\n"
        + reduce("picked", "at")
        + "%o = math.sub %lse, %picked",
        lambda x, g, w, labels: F.cross_entropy(
            rms_norm(x) * g @ w.T, labels[:, 0], reduction="none"
        )[:, None],
        kinds=(("labels", "labels"),),
    ),
    "RMSNorm of a long row and a product": Case(
        f"%x: tensor<N x M x f32>, %w: tensor<{E} x M x f32>, %count: tensor<1 x 1 x f32>",
        "%x2 = math.mul %x, %x\n"
        + reduce("sum", "x2")
        + "%mean = math.div %sum, %count\n%r = math.rsqrt %mean\n%y = math.mul %x, %r\n"
        '%o = tensor.contract %y, %w {equation = "nm,em->ne"}',
        lambda x, w, count: x / ((x * x).sum(-1, True) / count).sqrt() @ w.T,
        kinds=(("count", "positive"),),
    ),
    "LayerNorm of a long row and a product": Case(
        f"%x: tensor<N x M x f32>, %w: tensor<{E} x M x f32>",
        COUNT
        + reduce("sum", "x")
        + "%mean = math.div %sum, %n\n%d = math.sub %x, %mean\n%d2 = math.mul %d, %d\n"
        + reduce("squares", "d2")
        + "%var = math.div %squares, %n\n"
        + const("eps", 1e-5)
        + "%below = math.add %var, %eps\n%r = math.rsqrt %below\n%y = math.mul %d, %r\n"
        '%o = tensor.contract %y, %w {equation = "nm,em->ne"}',
        lambda x, w: F.layer_norm(x, x.shape[-1:], None, None, 1e-5) @ w.T,
    ),
}
