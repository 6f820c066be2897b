"""Routing programs that tests of passes and of kernels share."""

from __future__ import annotations

SORTED = """graph sorted<T>(%ids: tensor<T x 3 x i32>, %given: tensor<9 x i64>) {
  %counts = tensor.segment_count %ids {segments = size(9)}
  %offsets = tensor.prefix_sum %counts {axis = 0, exclusive = true}
  %ends = tensor.prefix_sum %counts {axis = 0}
  %places = tensor.segment_rank %ids, %offsets
  %others = tensor.segment_rank %ids, %given
  return %counts, %offsets, %ends, %places, %others
}"""
ONE_SORT = (
    SORTED.replace(", %given: tensor<9 x i64>", "")
    .replace("  %others = tensor.segment_rank %ids, %given\n", "")
    .replace(", %others", "")
)
GIVEN = """graph given<T>(%ids: tensor<T x 3 x i32>, %given: tensor<9 x i64>) {
  %places = tensor.segment_rank %ids, %given
  return %places
}"""


def lowest(text: str) -> str:
    """With the ties that kernels on GPUs have."""
    return text.replace(', ties = "torch"', "").replace(", ordered = false", "")


def groups(biased: str, choice: str, results: str) -> str:
    """DeepSeek's choice of 12 experts in four groups: of the best two groups, by the sum of their
    two best, those that ``choice`` says. ``biased``: to what the bias is added, ``%s`` (sigmoids)
    or ``%x``."""
    return f"""graph groups<T>(%x: tensor<T x 12 x f32>, %b: tensor<12 x f32>) {{
  %s = math.sigmoid %x
  %biased = math.add {biased}, %b
  %apart = tensor.reshape %biased {{shape = [size(T), 4, 3]}}
  %two, %where = tensor.top_k %apart {{k = 2}}
  %best = tensor.reduce %two {{kind = "sum", axis = 2}}
  %value, %group = tensor.top_k %best {{k = 2, ties = "torch", ordered = false}}
  %zero = math.const {{value = 0.0, type = tensor<f32>}}
  %zeros = tensor.broadcast %zero {{shape = [size(T), 4]}}
  %one = math.const {{value = 1.0, type = tensor<f32>}}
  %ones = tensor.broadcast %one {{shape = [size(T), 2]}}
  %mask = tensor.scatter %zeros, %group, %ones {{axis = 1, kind = "set"}}
  %column = tensor.reshape %mask {{shape = [size(T), 4, 1]}}
  %wide = tensor.broadcast %column {{shape = [size(T), 4, 3]}}
  %all = tensor.reshape %wide {{shape = [size(T), 12]}}
  %in = math.compare %all, %one {{relation = "eq"}}
  %never = math.const {{value = -inf, type = tensor<f32>}}
  %allowed = math.select %in, %biased, %never
  %v, %ids = tensor.top_k %allowed {{{choice}}}
  %weights = tensor.take_along %s, %ids {{axis = 1}}
  %marked = tensor.scatter %allowed, %ids, %weights {{axis = 1, kind = "sum"}}
  return {results}
}}"""
