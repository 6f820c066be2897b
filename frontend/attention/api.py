"""``tilewright.attention``: checks, the layout of a call, the plan for it, and its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._C._dynamo.eval_frame import (
    _FrameAction,
    _FrameExecStrategy,
    set_code_exec_strategy,
)
from torch._subclasses.fake_tensor import FakeTensor
from torch.compiler import is_dynamo_compiling

from tilewright.frontend.attention.again import cached_again, called_again
from tilewright.frontend.attention.form import DENSE, PAGED, RAGGED, Form
from tilewright.frontend.attention.low_bit import (
    cached_inputs,
    opened,
    require_dense,
    side_of,
)
from tilewright.frontend.attention.plans import GATHERED, closure_of, plan_for
from tilewright.frontend.attention.varlen import (
    check_table,
    check_used,
    copied,
    row_ranges,
)
from tilewright.frontend.region_call import GRADIENTS, refusal
from tilewright.ir.errors import BindError, DeterminismError, UnsupportedError
from tilewright.runtime.determinism import Level, in_force, level, using
from tilewright.runtime.kv_cache.cache import KVCache
from tilewright.runtime.kv_cache.tokens import CachedTokens

Function = Callable[..., Any]
Result = torch.Tensor | tuple[torch.Tensor, ...]
Side = torch.Tensor | CachedTokens
_NO_TENSORS = (None, None, None, False)  # sinks, mask, bias, heads last: a form has them elsewhere
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def attention(  # noqa: PLR0913  (FlexAttention's and FlashAttention's arguments)
    q: torch.Tensor,
    k: torch.Tensor | CachedTokens | KVCache,
    v: torch.Tensor | CachedTokens | None = None,
    *,
    score_mod: Function | None = None,
    mask_mod: Function | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    return_max: bool = False,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None,
    deterministic: str | None = None,
    reproducible: bool | None = None,
) -> Result:
    """softmax(score_mod(q k^T * scale), masked by mask_mod) v on the CPU, without the N x M matrix.

    Layouts, all inputs of one dtype (f32, bf16, f16, f64); scores and sums are in f32 (f64):

    - dense: q [B, H, N, D], k [B, K, M, D], v [B, K, M, E] give [B, H, N, E];
    - ragged, with ``cu_seqlens_q`` and ``cu_seqlens_k`` [S + 1] (int32 or int64) as in
      FlashAttention: q [total_q, H, D], k and v [total_k, K, …] give [total_q, H, E]; row i belongs
      to the sequence s with cu_seqlens_q[s] <= i < cu_seqlens_q[s + 1];
    - paged, with ``block_table`` [B, T] as in vLLM: q [B, H, N, D], k and v [pages, P, K, …]; key m
      of sequence b lies in ``k[block_table[b, m // P], m % P]``.

    ``k`` may be a ``tilewright.KVCache``, v is then left out; or k its ``keys``, v its ``values``
    (dense only, see docs/kv_cache.md). ``seqused_k`` [B] says how many keys of each sequence count
    (dense and paged). H may be a multiple of K with ``enable_gqa=True``.

    ``score_mod(score, b, h, q_idx, kv_idx)`` changes a scaled score, ``mask_mod(b, h, q_idx,
    kv_idx)`` says whether it takes part; both as for torch's flex_attention, closures over tensors
    included. They are traced once per code and closed-over numbers, not once per length; tensors
    are read in every call. In ragged batches b is the sequence's number, indices count from 0
    within it. ``is_causal`` lets query i see keys up to i (as torch's
    scaled_dot_product_attention); in ragged batches, over caches and with ``seqused_k`` the last
    query sees the last key (FlashAttention). mask_mod joins by "and". ``scale`` is 1/sqrt(D).

    Returns the result, and with ``return_lse`` or ``return_max`` a tuple of it, the natural
    logarithm of the sum of exponentials and the largest score, f32 (f64) [B, H, N], ragged [H,
    total_q]. Rows that see no key are 0, their logarithm and maximum -inf.

    ``deterministic`` ("run", "threads", "batch") and ``reproducible``: docs/determinism.md.

    Raises UnsupportedError for functions that cannot be traced (with the line and how to write it)
    and inputs that require gradients, BindError for shapes, offsets and tables that do not fit,
    DeterminismError for what cannot keep a level.

    Source: He et al., "FlexAttention" (2024); Dao, "FlashAttention-2" (2023).
    """
    options = is_causal, scale, enable_gqa, return_lse, return_max
    lengths = cu_seqlens_q, cu_seqlens_k, block_table, seqused_k
    if deterministic is not None or reproducible is not None:
        functions, chosen = (score_mod, mask_mod), level(deterministic, reproducible)
        return _at_level(chosen, q, k, v, functions, lengths, options)
    return _in_force(q, k, v, (score_mod, mask_mod), lengths, options)


def _in_force(
    q: torch.Tensor,
    k: torch.Tensor | CachedTokens | KVCache,
    v: torch.Tensor | CachedTokens | None,
    functions: tuple[Function | None, Function | None],
    lengths: tuple[torch.Tensor | None, ...],
    options: tuple[bool, float | None, bool, bool, bool],
) -> Result:
    """The call at the level in force: in a graph, as one before, or with everything made."""
    if is_dynamo_compiling() or type(q) is not torch.Tensor:
        if isinstance(k, torch.Tensor) and isinstance(v, torch.Tensor) and _is_traced(q):
            return _as_operator(q, k, v, functions, lengths, options)
    elif lengths[0] is lengths[1] is lengths[2] is lengths[3] is None:
        again = called_again if type(k) is torch.Tensor else cached_again
        found = again(q, k, v, *functions, options)
        if found is not None:
            return found[0] if len(found) == 1 else tuple(found)
    return _first_call(q, k, v, functions, lengths, options)


def _at_level(chosen: Level, q: torch.Tensor, *rest: Any) -> Result:
    """The call at a level of its own. A graph has one level, which ``compile`` is told."""
    if is_dynamo_compiling() or (type(q) is not torch.Tensor and _is_traced(q)):
        raise UnsupportedError(
            "tilewright.attention(deterministic=…) in a function that torch.compile captures: say "
            "it to tilewright.compile(…, deterministic=…), whose whole graph keeps the level"
        )
    with using(chosen):
        return _in_force(q, *rest)


def _is_traced(q: object) -> bool:
    """Whether torch is making a graph of what it calls with a tensor."""
    return is_dynamo_compiling() or isinstance(q, FakeTensor)


def _as_operator(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *facts: Any) -> Result:
    """The call as an operator in torch's graph, which is defined when first needed."""
    from tilewright.frontend.attention.in_graph import attention_in_graph

    return attention_in_graph(q, k, v, *facts)


def _first_call(
    q: torch.Tensor,
    k: torch.Tensor | CachedTokens | KVCache,
    v: torch.Tensor | CachedTokens | None,
    functions: tuple[Function | None, Function | None],
    lengths: tuple[torch.Tensor | None, ...],
    options: tuple[bool, float | None, bool, bool, bool],
) -> Result:
    """A call with everything checked, traced and compiled that has to be."""
    (score_mod, mask_mod), (cu_seqlens_q, cu_seqlens_k, block_table, seqused_k) = functions, lengths
    keys, values = opened(k, v)
    call = _Call(q, keys, values, *options)
    if cu_seqlens_q is not None or cu_seqlens_k is not None:
        _require_alone(block_table, seqused_k)
        _require_own_axis()
        call.ragged(cu_seqlens_q, cu_seqlens_k, score_mod is not None or mask_mod is not None)
    elif block_table is not None:
        call.paged(block_table, seqused_k)
    else:
        call.dense(seqused_k)
    return call.run(score_mod, mask_mod)


def keep_dynamo_out(function: Any) -> None:
    """torch.compile leaves calls of a function and everything below them alone: a graph break.

    What torch.compiler.disable does, without its import of Dynamo (over a second).
    """
    skip = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)
    set_code_exec_strategy(function.__code__, skip)
    function._torchdynamo_disable = True
    function._torchdynamo_disable_msg = "its kernel is called as it is"


keep_dynamo_out(_first_call)


def _require_own_axis() -> None:
    """DeterminismError where a sequence's bits must not depend on its place in the batch."""
    kept = in_force()
    if kept.promises("batch"):
        raise DeterminismError(
            f"tilewright.attention with cu_seqlens cannot keep the level {kept.name!r}: blocks of "
            "keys are counted from the first sequence's first key; pad to [B, H, N, D] and say how "
            "many keys count by seqused_k"
        )


def _require_alone(block_table: object, seqused_k: object) -> None:
    if block_table is not None or seqused_k is not None:
        given = "block_table" if block_table is not None else "seqused_k"
        raise UnsupportedError(
            f"cu_seqlens_q together with {given}; pad the queries to [B, H, N, D] and leave "
            "cu_seqlens out, or gather the keys"
        )


class _Call:
    """One call: its tensors by parameter name, and the facts that decide its program."""

    def __init__(
        self,
        q: torch.Tensor,
        k: torch.Tensor | CachedTokens,
        v: torch.Tensor | CachedTokens,
        causal: bool,
        scale: float | None,
        gqa: bool,
        lse: bool,
        largest: bool,
    ) -> None:
        plain = {n: x for n, x in (("q", q), ("k", k), ("v", v)) if not isinstance(x, CachedTokens)}
        for name, x in plain.items():
            if not isinstance(x, torch.Tensor):
                raise BindError(f"{name} must be a tensor, it is {type(x).__name__}")
        if len({x.dtype for x in plain.values()}) > 1 or q.dtype not in _DTYPES:
            given = ", ".join(f"{name} is {x.dtype}" for name, x in plain.items())
            raise BindError(f"{given}; they must have one dtype, float32, bfloat16 or float16")
        self.q, self.k, self.v = q, k, v
        self.given: dict[str, torch.Tensor] = dict(plain)
        for name, side in (("k", k), ("v", v)):
            if isinstance(side, CachedTokens) and not (name == "v" and v is k):
                self.given |= cached_inputs(name, side)
        self.causal, self.gqa, self.lse, self.largest = bool(causal), gqa, bool(lse), bool(largest)
        self.scale = None if scale is None else float(scale)
        self.layout = DENSE
        self.one_batch = False
        self.page = 0

    def dense(self, used: torch.Tensor | None) -> None:
        """Checks [B, H, N, D] queries and [B, K, M, …] keys."""
        q, k, v = self._require_rank(4)
        batch = q.shape[0]
        if k.shape[:3] != v.shape[:3] or k.shape[0] not in (batch, 1):
            self._refuse("k and v must have q's batch and the same heads and length")
        self._heads(1, 1)
        self.one_batch = k.shape[0] == 1 and batch != 1
        if self.one_batch:
            require_dense(k, v, "queries of another batch")
        if used is not None:
            self.given["seqused_k"] = check_used(used, batch, k.shape[2], q.device)

    def ragged(self, cu_q: torch.Tensor | None, cu_k: torch.Tensor | None, positions: bool) -> None:
        """Checks [total, heads, width] tensors with their offsets; ``positions``: some function
        asks for them."""
        require_dense(self.k, self.v, "cu_seqlens")
        q, k, v = self._require_rank(3)
        if cu_q is None or cu_k is None:
            missing = "cu_seqlens_q" if cu_q is None else "cu_seqlens_k"
            raise BindError(f"{missing} is missing: ragged batches need cu_seqlens_q and _k")
        if k.shape[:2] != v.shape[:2]:
            self._refuse("k and v must have the same length and heads")
        self._heads(1, 1)
        assert isinstance(k, torch.Tensor)
        self.layout = RAGGED
        self.given |= row_ranges(cu_q, cu_k, q, k, self.causal, positions)

    def paged(self, table: torch.Tensor, used: torch.Tensor | None) -> None:
        """Checks [B, H, N, D] queries and [pages, page size, K, …] keys."""
        require_dense(self.k, self.v, "block_table")
        q, k, v = self._require_rank(4)
        if k.shape[:3] != v.shape[:3]:
            self._refuse("k and v must have the same pages and heads")
        self._heads(1, 2)
        self.layout, self.page = PAGED, k.shape[1]
        if not self.page:
            self._refuse("pages must hold at least one key")
        if used is not None and isinstance(table, torch.Tensor) and table.dim() == 2:
            most = table.shape[1] * self.page
            self.given["seqused_k"] = check_used(used, q.shape[0], most, q.device)
        self.given["block_table"] = check_table(table, used, q, k.shape[0], self.page)

    def _require_rank(self, rank: int) -> tuple[torch.Tensor, Side, Side]:
        tensors = self.q, self.k, self.v
        if any(len(x.shape) != rank for x in tensors):
            self._refuse(f"they must have {rank} dimensions here")
        return tensors

    def _refuse(self, rule: str) -> None:
        shapes = ", ".join(str(tuple(x.shape)) for x in (self.q, self.k, self.v))
        raise BindError(f"q, k, v have shapes {shapes}: {rule}")

    def _heads(self, query_dim: int, key_dim: int) -> None:
        q, k = self.q, self.k
        heads, shared = q.shape[query_dim], k.shape[key_dim]
        if q.shape[-1] != k.shape[-1]:
            self._refuse("q and k must have the same head size")
        if heads != shared and (not shared or heads % shared):
            self._refuse(f"{heads} query heads are no multiple of {shared} key heads")
        if heads != shared and not self.gqa:
            self._refuse(f"{heads} query heads share {shared} key heads: pass enable_gqa=True")
        self.groups = heads // shared if shared and heads else 1

    def run(self, score_mod: Function | None, mask_mod: Function | None) -> Result:
        """The results, by the plan for this form and these functions."""
        closure = closure_of(score_mod, mask_mod)
        refuse_unfit((*self.given.values(), *closure.tensors))
        facts = self._facts()
        plan = plan_for(facts, lambda: Form(*facts), score_mod, mask_mod, closure)
        try:
            results = plan(self.given, closure.tensors, interpret=self.layout != PAGED)
        except UnsupportedError as error:
            if self.layout != PAGED:
                raise
            GATHERED[error.message] += 1
            self._copy_pages()
            return self.run(score_mod, mask_mod)
        return results[0] if len(results) == 1 else tuple(results)

    def _copy_pages(self) -> None:
        """The call as a dense one, with keys and values copied together by torch."""
        table, used = self.given.pop("block_table"), self.given.get("seqused_k")
        for name in "kv":
            self.given[name] = copied(self.given[name], table, used if name == "v" else None)
        self.k, self.v = self.given["k"], self.given["v"]
        self.layout, self.page = DENSE, 0

    def _facts(self) -> tuple[Any, ...]:
        """The fields of the form."""
        q, v = self.q, self.v
        used, table = self.given.get("seqused_k"), self.given.get("block_table")
        return (
            self.layout,
            q.dtype,
            self.groups,
            (q.shape[-1], v.shape[-1]),
            self.scale,
            self.causal,
            self.lse,
            self.largest,
            self.one_batch,
            self.page,
            None if used is None else used.dtype,
            None if table is None else table.dtype,
            *_NO_TENSORS,
            side_of(self.k),
            side_of(v, self.k),
        )


def refuse_unfit(tensors: Sequence[torch.Tensor]) -> None:
    """UnsupportedError if a kernel must not get these tensors, with what to do."""
    reason = refusal(tuple(tensors))
    if reason == GRADIENTS:
        raise UnsupportedError(
            "tilewright.attention has no backward yet and an input requires gradients; call it "
            "under torch.no_grad() or torch.inference_mode(), pass x.detach(), or train with "
            "torch.nn.functional.scaled_dot_product_attention"
        )
    if reason is not None:
        raise UnsupportedError(f"tilewright.attention: {reason.replace(': stays with torch', '')}")
