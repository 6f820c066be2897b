"""Operations that stay with torch by design in this version, each group with its reason.

``strict=True`` accepts these; an operation that is neither here nor in the op map is unknown.
"""

from __future__ import annotations

from torch.fx import Node

BOOKKEEPING = "Python's bookkeeping, not a computation on tensors"
# reason -> names of functions and methods, separated by blanks
KEPT: dict[str, str] = {
    "a contraction with a parameter stays with torch": (
        "bilinear addmm addbmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d lstm gru"
    ),
    "products with quantised weights have kernels of their own": (
        "quantized_linear quantized_linears quantized_gated_linear quantized_embedding"
    ),
    "layers of experts have kernels of their own": (
        "experts_layer route_experts.default grouped_linear.default"
    ),
    "a table look-up or gather stays with torch": (
        "embedding embedding_bag index_select gather take take_along_dim index_copy index_put "
        "scatter scatter_add index_add index_copy_ index_put_ scatter_ scatter_add_ index_add_ "
        "masked_select nonzero argmax argmin topk sort argsort one_hot bincount bucketize "
        "unique cumsum cumprod tril_indices triu_indices"
    ),
    "copies and joins of tensors stay with torch": (
        "cat concat concatenate stack hstack vstack split chunk unbind tensor_split narrow select "
        "roll pad repeat tile copy_ fill_ zero_ setitem numpy cpu cuda flip rot90 unfold fold "
        "pixel_shuffle pixel_unshuffle empty empty_like new_empty rand randn randint rand_like "
        "randn_like new_tensor linspace movedim moveaxis as_strided diagonal block_diag meshgrid "
        "resolve_conj resolve_neg requires_grad_"
    ),
    "pointwise work outside a kernel region stays with torch": (
        "mish elu selu celu softplus softsign hardswish hardsigmoid hardtanh relu6 "
        "leaky_relu prelu logsigmoid erfc expm1 log1p log10 sin cos tan sinh cosh asin acos "
        "atan atan2 floor ceil round trunc frac fmod sign polar view_as_real view_as_complex isinf "
        "isfinite lerp addcmul addcdiv addcmul_ addcdiv_ iadd isub imul itruediv ior iand add_ "
        "sub_ mul_ div_ relu_ exp_ sigmoid_ tanh_ clamp_ masked_fill_ ixor bitwise_xor logical_xor "
        "glu real imag conj complex threshold hypot deg2rad isin isneginf isposinf"
    ),
    "norms, losses and poolings stay with torch": (
        "group_norm batch_norm instance_norm local_response_norm normalize "
        "nll_loss mse_loss l1_loss smooth_l1_loss kl_div binary_cross_entropy "
        "binary_cross_entropy_with_logits log_softmax var std var_mean std_mean norm vector_norm "
        "linalg_vector_norm linalg_norm prod any all max_pool1d max_pool2d avg_pool1d avg_pool2d "
        "adaptive_avg_pool1d adaptive_avg_pool2d interpolate cosine_similarity count_nonzero median"
    ),
    BOOKKEEPING: (
        "item size dim numel sym_sum sym_sqrt _sym_sqrt sym_min sym_max sym_float sym_int sym_ite "
        "sym_not _log_api_usage_once _set_grad_enabled _enter_autocast _exit_autocast getattr "
        "is_contiguous stride storage_offset element_size _vmap_increment_nesting "
        "_vmap_decrement_nesting _add_batch_dim _remove_batch_dim _saved_tensors_hooks_disable "
        "_saved_tensors_hooks_enable lazy_load_decompositions is_grad_enabled data_ptr "
        "_assert_async _check _check_is_size"
    ),
}

_REASONS = {name: reason for reason, names in KEPT.items() for name in names.split()}


def operation_name(node: Node) -> str:
    """The bare name of what an FX node calls."""
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", node.target))
    return str(node.target)


def kept_reason(node: Node) -> str | None:
    """Why this operation stays with torch by design, or None if it is unknown."""
    return _REASONS.get(operation_name(node))
