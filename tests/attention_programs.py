"""Texts of attention programs with every kind of mask, for tests of kernels and of passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Attention:
    """softmax(q k' * scale, masked) v with grouped heads; ``mask`` is none, bool, add or rows."""

    head: int
    value_head: int
    dtype: str = "f32"
    causal: bool = False
    mask: str = "none"
    safe: bool = True

    @property
    def scale(self) -> float:
        return float(self.head**-0.5)

    def text(self) -> str:
        """The program: %q [B, K*G, N, D], %k [B, K, M, D], %v [B, K, M, E], %mask [B, 1, N, M]."""
        d, e, t = self.head, self.value_head, self.dtype
        mask = {"bool": "bool", "add": t, "none": "", "rows": "bool"}[self.mask]
        shape = "B x 1 x 1 x 1 x M" if self.mask == "rows" else "B x 1 x 1 x N x M"
        extra = f", %mask: tensor<{shape} x {mask}>" if mask else ""
        lines = [
            f"graph attention<B, K, G, N, M>(%q: tensor<B x (K*G) x N x {d} x {t}>, "
            f"%k: tensor<B x K x M x {d} x {t}>, %v: tensor<B x K x M x {e} x {t}>{extra}) {{",
            f"%q5 = tensor.reshape %q {{shape = [size(B), size(K), size(G), size(N), {d}]}}",
            "%qw = math.cast %q5 {dtype = f32}",
            "%kw = math.cast %k {dtype = f32}",
            "%vw = math.cast %v {dtype = f32}",
            '%s0 = tensor.contract %qw, %kw {equation = "bkgnd,bkmd->bkgnm"}',
            f"%scale = math.const {{value = {self.scale}, type = tensor<f32>}}",
            "%s1 = math.mul %s0, %scale",
            "%ninf = math.const {value = -inf, type = tensor<f32>}",
            *self._masked(),
            f"%p = tensor.softmax %s3 {{axis = 4, safe = {str(self.safe).lower()}}}",
            *self._rounded(),
            '%o = tensor.contract %pw, %vw {equation = "bkgnm,bkme->bkgne"}',
            f"%o4 = tensor.reshape %o {{shape = [size(B), size(K*G), size(N), {e}]}}",
            f"%out = math.cast %o4 {{dtype = {t}}}",
            "return %out }",
        ]
        return "\n".join(lines)

    def _masked(self) -> list[str]:
        lines = []
        last = "%s1"
        if self.causal:
            lines += [
                "%i = tensor.iota {axis = 0, type = tensor<N x 1 x i64>}",
                "%j = tensor.iota {axis = 1, type = tensor<1 x M x i64>}",
                '%below = math.compare %j, %i {relation = "le"}',
                f"%s2 = math.select %below, {last}, %ninf",
            ]
            last = "%s2"
        if self.mask in ("bool", "rows"):
            lines.append(f"%s3 = math.select %mask, {last}, %ninf")
        elif self.mask == "add":
            lines += ["%mw = math.cast %mask {dtype = f32}", f"%s3 = math.add {last}, %mw"]
        else:
            lines += [
                "%one = math.const {value = 1.0, type = tensor<f32>}",
                f"%s3 = math.mul {last}, %one",
            ]
        return lines

    def _rounded(self) -> list[str]:
        if self.dtype != "bf16":
            return [
                "%one_ = math.const {value = 1.0, type = tensor<f32>}",
                "%pw = math.mul %p, %one_",
            ]
        return ["%pn = math.cast %p {dtype = bf16}", "%pw = math.cast %pn {dtype = f32}"]

    def reference(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The same in float64, written out plainly."""
        groups = q.shape[1] // max(1, k.shape[1])
        q, k, v = q.double(), k.double(), v.double()
        k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
        s = q @ k.transpose(-1, -2) * self.scale
        if self.causal:
            below = torch.ones(s.shape[-2:], dtype=torch.bool).tril()
            s = s.masked_fill(~below, -torch.inf)
        if mask is not None:
            m = mask[:, 0]
            s = s.masked_fill(~m, -torch.inf) if m.dtype == torch.bool else s + m.double()
        p = torch.softmax(s, -1)
        if self.safe:
            p = torch.where((s == -torch.inf).all(-1, keepdim=True), 0.0, p)
        return p @ v


def distances(head: int, value_head: int) -> str:
    """Scores less the squared norms of their keys: %q [N, D], %k [M, D], %v [M, E]."""
    return f"""graph near<N, M>(%q: tensor<N x {head} x f32>, %k: tensor<M x {head} x f32>,
                                %v: tensor<M x {value_head} x f32>) {{
      %s = tensor.contract %q, %k {{equation = "nd,md->nm"}}
      %square = math.mul %k, %k
      %norm = tensor.reduce %square {{kind = "sum", axis = 1}}
      %row = tensor.reshape %norm {{shape = [1, size(M)]}}
      %t = math.sub %s, %row
      %p = tensor.softmax %t {{axis = 1}}
      %o = tensor.contract %p, %v {{equation = "nm,me->ne"}}
      return %o
    }}"""
