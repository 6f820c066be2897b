"""The text of the programs that the figures are measured on. Compiles and runs nothing."""

from __future__ import annotations

_MASK = """\
  %n = tensor.iota {axis = 0, type = tensor<N x 1 x i64>}
  %m = tensor.iota {axis = 1, type = tensor<1 x M x i64>}
  %seen = math.compare %m, %n {relation = "le"}
  %never = math.const {value = -inf, type = tensor<f32>}
  %scores = math.select %seen, %scaled, %never
"""


def attention_text(head: int, *, causal: bool = False, dtype: str = "f32") -> str:
    """Attention over heads of ``head`` numbers, in the words that PyTorch's own is captured in.

    q is (B, K·G, N, head), k and v are (B, K, M, head), all of ``dtype``; scores and sums are f32,
    and the weights are rounded to ``dtype`` as torch rounds them.
    Causal: query n sees the keys 0 … n.
    """
    narrow = dtype != "f32"

    def widened(name: str) -> str:
        return f"  %{name}_f32 = math.cast %{name} {{dtype = f32}}\n" if narrow else ""

    suffix = "_f32" if narrow else ""
    operand = f"x {head} x {dtype}>"
    scores = "%scores" if causal else "%scaled"
    rounded = f"  %p_rounded = math.cast %p {{dtype = {dtype}}}\n" if narrow else ""
    weights = "%p_rounded_f32" if narrow else "%p"
    last = "%out_rounded" if narrow else "%out"
    rounded_out = f"  {last} = math.cast %out {{dtype = {dtype}}}\n" if narrow else ""
    return f"""\
graph attention<B, K, G, N, M>(%q: tensor<B x (K*G) x N {operand},
                               %k: tensor<B x K x M {operand}, %v: tensor<B x K x M {operand}) {{
  %heads = tensor.reshape %q {{shape = [size(B), size(K), size(G), size(N), {head}]}}
{widened("heads")}{widened("k")}{widened("v")}\
  %dots = tensor.contract %heads{suffix}, %k{suffix} {{equation = "bkgnd,bkmd->bkgnm"}}
  %scale = math.const {{value = {head**-0.5}, type = tensor<f32>}}
  %scaled = math.mul %dots, %scale
{_MASK if causal else ""}\
  %p = tensor.softmax {scores} {{axis = 4, safe = true}}
{rounded}{widened("p_rounded")}\
  %sum = tensor.contract {weights}, %v{suffix} {{equation = "bkgnm,bkmd->bkgnd"}}
  %out = tensor.reshape %sum {{shape = [size(B), size(K*G), size(N), {head}]}}
{rounded_out}  return {last}
}}
"""


def cross_entropy_text() -> str:
    """The loss of every row of ``x @ weight.T`` for its label: log-sum-exp less the label's logit.

    x is (N, D), weight is (V, D), labels are (N) below V. D is known when a call is compiled.
    """
    return """\
graph cross_entropy<N, V, D>(%x: tensor<N x D x f32>, %weight: tensor<V x D x f32>,
                             %labels: tensor<N x i64>) {
  %logits = tensor.contract %x, %weight {equation = "nd,vd->nv"}
  %max = tensor.reduce %logits {kind = "max", axis = 1, keep = true}
  %shifted = math.sub %logits, %max
  %e = math.exp %shifted
  %sum = tensor.reduce %e {kind = "sum", axis = 1, keep = true}
  %log = math.log %sum
  %lse = math.add %log, %max
  %v = tensor.iota {axis = 1, type = tensor<1 x V x i64>}
  %label = tensor.reshape %labels {shape = [size(N), 1]}
  %hit = math.compare %v, %label {relation = "eq"}
  %zero = math.const {value = 0.0, type = tensor<f32>}
  %at_label = math.select %hit, %logits, %zero
  %picked = tensor.reduce %at_label {kind = "sum", axis = 1, keep = true}
  %difference = math.sub %lse, %picked
  %loss = tensor.reshape %difference {shape = [size(N)]}
  return %loss
}
"""
