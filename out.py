"""attention: items lo <= item < hi of the grid [B/1, K/1, G*N/4]."""

from math import inf
import numpy as np
from numpy import float32 as f32, int64 as i64
from tilewright.backends.numba.build import jit
from tilewright.backends.numba.numerics import bf16_to_f32, f32_to_bf16, floor_div, floor_mod, fraction_f32, largest_number, round_bf16, scale2_f32


@jit
def zero_loop(tile, kf_block, qf_packed):
    s_0_0 = s_0_1 = s_0_2 = s_0_3 = f32(0.0)
    s_1_0 = s_1_1 = s_1_2 = s_1_3 = f32(0.0)
    s_2_0 = s_2_1 = s_2_2 = s_2_3 = f32(0.0)
    s_3_0 = s_3_1 = s_3_2 = s_3_3 = f32(0.0)
    for k in range(3):
        at = tile * 3 + k
        kf_0 = kf_block[at]
        kf_1 = kf_block[at + 3]
        kf_2 = kf_block[at + 6]
        kf_3 = kf_block[at + 9]
        at1 = k * 4
        rows_0 = qf_packed[at1]
        rows_1 = qf_packed[at1 + 1]
        rows_2 = qf_packed[at1 + 2]
        rows_3 = qf_packed[at1 + 3]
        s_0_0 = s_0_0 + kf_0 * rows_0
        s_0_1 = s_0_1 + kf_0 * rows_1
        s_0_2 = s_0_2 + kf_0 * rows_2
        s_0_3 = s_0_3 + kf_0 * rows_3
        s_1_0 = s_1_0 + kf_1 * rows_0
        s_1_1 = s_1_1 + kf_1 * rows_1
        s_1_2 = s_1_2 + kf_1 * rows_2
        s_1_3 = s_1_3 + kf_1 * rows_3
        s_2_0 = s_2_0 + kf_2 * rows_0
        s_2_1 = s_2_1 + kf_2 * rows_1
        s_2_2 = s_2_2 + kf_2 * rows_2
        s_2_3 = s_2_3 + kf_2 * rows_3
        s_3_0 = s_3_0 + kf_3 * rows_0
        s_3_1 = s_3_1 + kf_3 * rows_1
        s_3_2 = s_3_2 + kf_3 * rows_2
        s_3_3 = s_3_3 + kf_3 * rows_3
    return s_0_0, s_0_1, s_0_2, s_0_3, s_1_0, s_1_1, s_1_2, s_1_3, s_2_0, s_2_1, s_2_2, s_2_3, s_3_0, s_3_1, s_3_2, s_3_3


@jit
def zero_loop1(kf_block, qf_packed, s2_log2_kept):
    max1_0 = max1_1 = max1_2 = max1_3 = f32(-inf)
    for tile in range(0, 32, 4):
        (
            s_0_0, s_0_1, s_0_2, s_0_3, s_1_0, s_1_1, s_1_2, s_1_3, s_2_0, s_2_1, s_2_2, s_2_3,
            s_3_0, s_3_1, s_3_2, s_3_3,
        ) = zero_loop(tile, kf_block, qf_packed)
        s1_0_0 = s_0_0 * f32(0.8329403702157812)
        s1_0_1 = s_0_1 * f32(0.8329403702157812)
        s1_0_2 = s_0_2 * f32(0.8329403702157812)
        s1_0_3 = s_0_3 * f32(0.8329403702157812)
        s1_1_0 = s_1_0 * f32(0.8329403702157812)
        s1_1_1 = s_1_1 * f32(0.8329403702157812)
        s1_1_2 = s_1_2 * f32(0.8329403702157812)
        s1_1_3 = s_1_3 * f32(0.8329403702157812)
        s1_2_0 = s_2_0 * f32(0.8329403702157812)
        s1_2_1 = s_2_1 * f32(0.8329403702157812)
        s1_2_2 = s_2_2 * f32(0.8329403702157812)
        s1_2_3 = s_2_3 * f32(0.8329403702157812)
        s1_3_0 = s_3_0 * f32(0.8329403702157812)
        s1_3_1 = s_3_1 * f32(0.8329403702157812)
        s1_3_2 = s_3_2 * f32(0.8329403702157812)
        s1_3_3 = s_3_3 * f32(0.8329403702157812)
        at = tile * 4
        s2_log2_kept[at] = s1_0_0
        s2_log2_kept[at + 1] = s1_0_1
        s2_log2_kept[at + 2] = s1_0_2
        s2_log2_kept[at + 3] = s1_0_3
        s2_log2_kept[at + 4] = s1_1_0
        s2_log2_kept[at + 5] = s1_1_1
        s2_log2_kept[at + 6] = s1_1_2
        s2_log2_kept[at + 7] = s1_1_3
        s2_log2_kept[at + 8] = s1_2_0
        s2_log2_kept[at + 9] = s1_2_1
        s2_log2_kept[at + 10] = s1_2_2
        s2_log2_kept[at + 11] = s1_2_3
        s2_log2_kept[at + 12] = s1_3_0
        s2_log2_kept[at + 13] = s1_3_1
        s2_log2_kept[at + 14] = s1_3_2
        s2_log2_kept[at + 15] = s1_3_3
        max2_0 = largest_number(largest_number(largest_number(s1_0_0, s1_1_0), s1_2_0), s1_3_0)
        max2_1 = largest_number(largest_number(largest_number(s1_0_1, s1_1_1), s1_2_1), s1_3_1)
        max2_2 = largest_number(largest_number(largest_number(s1_0_2, s1_1_2), s1_2_2), s1_3_2)
        max2_3 = largest_number(largest_number(largest_number(s1_0_3, s1_1_3), s1_2_3), s1_3_3)
        max1_0 = max2_0 if max2_0 > max1_0 else max1_0
        max1_1 = max2_1 if max2_1 > max1_1 else max1_1
        max1_2 = max2_2 if max2_2 > max1_2 else max1_2
        max1_3 = max2_3 if max2_3 > max1_3 else max1_3
    return max1_0, max1_1, max1_2, max1_3


@jit
def e_element(max1, s2_log):
    empty = max1 == f32(-inf)
    reference = f32(0.0) if empty else max1
    shifted = s2_log - reference
    fraction = fraction_f32(shifted)
    poly = f32(0.00021702255449076974) * fraction + f32(0.0012439687830286198)
    poly1 = poly * fraction + f32(0.009678840995823189)
    poly2 = poly1 * fraction + f32(0.05548334198469722)
    poly3 = poly2 * fraction + f32(0.24022983627393932)
    poly4 = poly3 * fraction + f32(0.6931469838406203)
    poly5 = poly4 * fraction + f32(1.0)
    e = scale2_f32(poly5, shifted)
    e1 = round_bf16(e)
    return e, e1


@jit
def zero_loop2(s2_log2_kept, max1_0, max1_1, max1_2, max1_3, e_kept):
    sum1_0 = sum1_1 = sum1_2 = sum1_3 = f32(0.0)
    for tile in range(32):
        at = tile * 4
        s2_log_0 = s2_log2_kept[at]
        s2_log_1 = s2_log2_kept[at + 1]
        s2_log_2 = s2_log2_kept[at + 2]
        s2_log_3 = s2_log2_kept[at + 3]
        e_0, e1_0 = e_element(max1_0, s2_log_0)
        e_1, e1_1 = e_element(max1_1, s2_log_1)
        e_2, e1_2 = e_element(max1_2, s2_log_2)
        e_3, e1_3 = e_element(max1_3, s2_log_3)
        at1 = tile * 4
        e_kept[at1] = e1_0
        e_kept[at1 + 1] = e1_1
        e_kept[at1 + 2] = e1_2
        e_kept[at1 + 3] = e1_3
        sum1_0 = e_0 + sum1_0
        sum1_1 = e_1 + sum1_1
        sum1_2 = e_2 + sum1_2
        sum1_3 = e_3 + sum1_3
    return sum1_0, sum1_1, sum1_2, sum1_3


@jit
def sum_element(max1, before, before1, zero):
    empty = max1 == f32(-inf)
    reference = f32(0.0) if empty else max1
    grown = before - reference
    fraction = fraction_f32(grown)
    poly = f32(0.00021702255449076974) * fraction + f32(0.0012439687830286198)
    poly1 = poly * fraction + f32(0.009678840995823189)
    poly2 = poly1 * fraction + f32(0.05548334198469722)
    poly3 = poly2 * fraction + f32(0.24022983627393932)
    poly4 = poly3 * fraction + f32(0.6931469838406203)
    poly5 = poly4 * fraction + f32(1.0)
    rescale = scale2_f32(poly5, grown)
    scaled = before1 * rescale
    sum1 = zero + scaled
    return rescale, sum1


@jit
def zero_loop3(vf_block, e_kept1):
    o_0_0 = o_0_1 = o_0_2 = o_0_3 = f32(0.0)
    o_1_0 = o_1_1 = o_1_2 = o_1_3 = f32(0.0)
    o_2_0 = o_2_1 = o_2_2 = o_2_3 = f32(0.0)
    for k in range(32):
        at = k * 3
        vf_0 = vf_block[at]
        vf_1 = vf_block[at + 1]
        vf_2 = vf_block[at + 2]
        at1 = k * 4
        e_kept_0 = e_kept1[at1]
        e_kept_1 = e_kept1[at1 + 1]
        e_kept_2 = e_kept1[at1 + 2]
        e_kept_3 = e_kept1[at1 + 3]
        o_0_0 = o_0_0 + vf_0 * e_kept_0
        o_0_1 = o_0_1 + vf_0 * e_kept_1
        o_0_2 = o_0_2 + vf_0 * e_kept_2
        o_0_3 = o_0_3 + vf_0 * e_kept_3
        o_1_0 = o_1_0 + vf_1 * e_kept_0
        o_1_1 = o_1_1 + vf_1 * e_kept_1
        o_1_2 = o_1_2 + vf_1 * e_kept_2
        o_1_3 = o_1_3 + vf_1 * e_kept_3
        o_2_0 = o_2_0 + vf_2 * e_kept_0
        o_2_1 = o_2_1 + vf_2 * e_kept_1
        o_2_2 = o_2_2 + vf_2 * e_kept_2
        o_2_3 = o_2_3 + vf_2 * e_kept_3
    return o_0_0, o_0_1, o_0_2, o_0_3, o_1_0, o_1_1, o_1_2, o_1_3, o_2_0, o_2_1, o_2_2, o_2_3


@jit
def block_loop(
    at, at1, k1, block1, k_stride_0, block2, k_stride_1, k_stride_2, kf_block, v1, v_stride_0,
    v_stride_1, v_stride_2, vf_block, qf_packed, s2_log2_kept, running_state, e_kept, sum_state,
    o_state,
):
    for block in range(at, at1, 32):
        for position in range(32):
            at2 = block + position
            at3 = at1 - 1
            at4 = min(at2, at3)
            for d in range(3):
                k = bf16_to_f32(k1[block1 * k_stride_0 + block2 * k_stride_1 + at4 * k_stride_2 + d])
                kf_block[position * 3 + d] = k
        for position1 in range(32):
            at5 = block + position1
            at6 = at1 - 1
            at7 = min(at5, at6)
            for d1 in range(3):
                v = bf16_to_f32(v1[block1 * v_stride_0 + block2 * v_stride_1 + at7 * v_stride_2 + d1])
                vf_block[position1 * 3 + d1] = v
        (max1_0, max1_1, max1_2, max1_3) = zero_loop1(kf_block, qf_packed, s2_log2_kept)
        before_0 = running_state[0]
        before_1 = running_state[1]
        before_2 = running_state[2]
        before_3 = running_state[3]
        max2_0 = max1_0 if max1_0 > before_0 else before_0
        max2_1 = max1_1 if max1_1 > before_1 else before_1
        max2_2 = max1_2 if max1_2 > before_2 else before_2
        max2_3 = max1_3 if max1_3 > before_3 else before_3
        running_state[0] = max2_0
        running_state[1] = max2_1
        running_state[2] = max2_2
        running_state[3] = max2_3
        (sum1_0, sum1_1, sum1_2, sum1_3) = zero_loop2(
            s2_log2_kept, max2_0, max2_1, max2_2, max2_3, e_kept,
        )
        before1_0 = sum_state[0]
        before1_1 = sum_state[1]
        before1_2 = sum_state[2]
        before1_3 = sum_state[3]
        rescale_0, sum2_0 = sum_element(max2_0, before_0, before1_0, sum1_0)
        rescale_1, sum2_1 = sum_element(max2_1, before_1, before1_1, sum1_1)
        rescale_2, sum2_2 = sum_element(max2_2, before_2, before1_2, sum1_2)
        rescale_3, sum2_3 = sum_element(max2_3, before_3, before1_3, sum1_3)
        sum_state[0] = sum2_0
        sum_state[1] = sum2_1
        sum_state[2] = sum2_2
        sum_state[3] = sum2_3
        (o_0_0, o_0_1, o_0_2, o_0_3, o_1_0, o_1_1, o_1_2, o_1_3, o_2_0, o_2_1, o_2_2, o_2_3) = zero_loop3(
            vf_block, e_kept,
        )
        o1_0_0 = o_state[0]
        o1_0_1 = o_state[1]
        o1_0_2 = o_state[2]
        o1_0_3 = o_state[3]
        o1_1_0 = o_state[4]
        o1_1_1 = o_state[5]
        o1_1_2 = o_state[6]
        o1_1_3 = o_state[7]
        o1_2_0 = o_state[8]
        o1_2_1 = o_state[9]
        o1_2_2 = o_state[10]
        o1_2_3 = o_state[11]
        o2_0_0 = o1_0_0 * rescale_0 + o_0_0
        o2_0_1 = o1_0_1 * rescale_1 + o_0_1
        o2_0_2 = o1_0_2 * rescale_2 + o_0_2
        o2_0_3 = o1_0_3 * rescale_3 + o_0_3
        o2_1_0 = o1_1_0 * rescale_0 + o_1_0
        o2_1_1 = o1_1_1 * rescale_1 + o_1_1
        o2_1_2 = o1_1_2 * rescale_2 + o_1_2
        o2_1_3 = o1_1_3 * rescale_3 + o_1_3
        o2_2_0 = o1_2_0 * rescale_0 + o_2_0
        o2_2_1 = o1_2_1 * rescale_1 + o_2_1
        o2_2_2 = o1_2_2 * rescale_2 + o_2_2
        o2_2_3 = o1_2_3 * rescale_3 + o_2_3
        o_state[0] = o2_0_0
        o_state[1] = o2_0_1
        o_state[2] = o2_0_2
        o_state[3] = o2_0_3
        o_state[4] = o2_1_0
        o_state[5] = o2_1_1
        o_state[6] = o2_1_2
        o_state[7] = o2_1_3
        o_state[8] = o2_2_0
        o_state[9] = o2_2_1
        o_state[10] = o2_2_2
        o_state[11] = o2_2_3


@jit
def s2_log2_element(zero, cc):
    s = zero * f32(0.8329403702157812)
    s2_log = s if cc else f32(-inf)
    return s2_log


@jit
def zero_loop4(at, block, at2, n_at_0, n_at_1, n_at_2, n_at_3, kf_block, qf_packed, s2_log2_kept):
    max1_0 = max1_1 = max1_2 = max1_3 = f32(-inf)
    for tile in range(0, at, 4):
        at1 = block + tile
        position_0 = 0 + at1
        position_1 = 1 + at1
        position_2 = 2 + at1
        position_3 = 3 + at1
        valid_0 = position_0 < at2
        valid_1 = position_1 < at2
        valid_2 = position_2 < at2
        valid_3 = position_3 < at2
        cc_0_0 = position_0 <= n_at_0
        cc_0_1 = position_0 <= n_at_1
        cc_0_2 = position_0 <= n_at_2
        cc_0_3 = position_0 <= n_at_3
        cc_1_0 = position_1 <= n_at_0
        cc_1_1 = position_1 <= n_at_1
        cc_1_2 = position_1 <= n_at_2
        cc_1_3 = position_1 <= n_at_3
        cc_2_0 = position_2 <= n_at_0
        cc_2_1 = position_2 <= n_at_1
        cc_2_2 = position_2 <= n_at_2
        cc_2_3 = position_2 <= n_at_3
        cc_3_0 = position_3 <= n_at_0
        cc_3_1 = position_3 <= n_at_1
        cc_3_2 = position_3 <= n_at_2
        cc_3_3 = position_3 <= n_at_3
        (
            s_0_0, s_0_1, s_0_2, s_0_3, s_1_0, s_1_1, s_1_2, s_1_3, s_2_0, s_2_1, s_2_2,
            s_2_3, s_3_0, s_3_1, s_3_2, s_3_3,
        ) = zero_loop(tile, kf_block, qf_packed)
        s2_log_0_0 = s2_log2_element(s_0_0, cc_0_0)
        s2_log_0_1 = s2_log2_element(s_0_1, cc_0_1)
        s2_log_0_2 = s2_log2_element(s_0_2, cc_0_2)
        s2_log_0_3 = s2_log2_element(s_0_3, cc_0_3)
        s2_log_1_0 = s2_log2_element(s_1_0, cc_1_0)
        s2_log_1_1 = s2_log2_element(s_1_1, cc_1_1)
        s2_log_1_2 = s2_log2_element(s_1_2, cc_1_2)
        s2_log_1_3 = s2_log2_element(s_1_3, cc_1_3)
        s2_log_2_0 = s2_log2_element(s_2_0, cc_2_0)
        s2_log_2_1 = s2_log2_element(s_2_1, cc_2_1)
        s2_log_2_2 = s2_log2_element(s_2_2, cc_2_2)
        s2_log_2_3 = s2_log2_element(s_2_3, cc_2_3)
        s2_log_3_0 = s2_log2_element(s_3_0, cc_3_0)
        s2_log_3_1 = s2_log2_element(s_3_1, cc_3_1)
        s2_log_3_2 = s2_log2_element(s_3_2, cc_3_2)
        s2_log_3_3 = s2_log2_element(s_3_3, cc_3_3)
        at3 = tile * 4
        s2_log2_kept[at3] = s2_log_0_0
        s2_log2_kept[at3 + 1] = s2_log_0_1
        s2_log2_kept[at3 + 2] = s2_log_0_2
        s2_log2_kept[at3 + 3] = s2_log_0_3
        s2_log2_kept[at3 + 4] = s2_log_1_0
        s2_log2_kept[at3 + 5] = s2_log_1_1
        s2_log2_kept[at3 + 6] = s2_log_1_2
        s2_log2_kept[at3 + 7] = s2_log_1_3
        s2_log2_kept[at3 + 8] = s2_log_2_0
        s2_log2_kept[at3 + 9] = s2_log_2_1
        s2_log2_kept[at3 + 10] = s2_log_2_2
        s2_log2_kept[at3 + 11] = s2_log_2_3
        s2_log2_kept[at3 + 12] = s2_log_3_0
        s2_log2_kept[at3 + 13] = s2_log_3_1
        s2_log2_kept[at3 + 14] = s2_log_3_2
        s2_log2_kept[at3 + 15] = s2_log_3_3
        s2_log1_0_0 = s2_log_0_0 if valid_0 else f32(-inf)
        s2_log1_0_1 = s2_log_0_1 if valid_0 else f32(-inf)
        s2_log1_0_2 = s2_log_0_2 if valid_0 else f32(-inf)
        s2_log1_0_3 = s2_log_0_3 if valid_0 else f32(-inf)
        s2_log1_1_0 = s2_log_1_0 if valid_1 else f32(-inf)
        s2_log1_1_1 = s2_log_1_1 if valid_1 else f32(-inf)
        s2_log1_1_2 = s2_log_1_2 if valid_1 else f32(-inf)
        s2_log1_1_3 = s2_log_1_3 if valid_1 else f32(-inf)
        s2_log1_2_0 = s2_log_2_0 if valid_2 else f32(-inf)
        s2_log1_2_1 = s2_log_2_1 if valid_2 else f32(-inf)
        s2_log1_2_2 = s2_log_2_2 if valid_2 else f32(-inf)
        s2_log1_2_3 = s2_log_2_3 if valid_2 else f32(-inf)
        s2_log1_3_0 = s2_log_3_0 if valid_3 else f32(-inf)
        s2_log1_3_1 = s2_log_3_1 if valid_3 else f32(-inf)
        s2_log1_3_2 = s2_log_3_2 if valid_3 else f32(-inf)
        s2_log1_3_3 = s2_log_3_3 if valid_3 else f32(-inf)
        max2_0 = largest_number(largest_number(largest_number(s2_log1_0_0, s2_log1_1_0), s2_log1_2_0), s2_log1_3_0)
        max2_1 = largest_number(largest_number(largest_number(s2_log1_0_1, s2_log1_1_1), s2_log1_2_1), s2_log1_3_1)
        max2_2 = largest_number(largest_number(largest_number(s2_log1_0_2, s2_log1_1_2), s2_log1_2_2), s2_log1_3_2)
        max2_3 = largest_number(largest_number(largest_number(s2_log1_0_3, s2_log1_1_3), s2_log1_2_3), s2_log1_3_3)
        max1_0 = max2_0 if max2_0 > max1_0 else max1_0
        max1_1 = max2_1 if max2_1 > max1_1 else max1_1
        max1_2 = max2_2 if max2_2 > max1_2 else max1_2
        max1_3 = max2_3 if max2_3 > max1_3 else max1_3
    return max1_0, max1_1, max1_2, max1_3


@jit
def zero_loop5(at, block, at2, s2_log2_kept, max1_0, max1_1, max1_2, max1_3, e_kept):
    sum1_0 = sum1_1 = sum1_2 = sum1_3 = f32(0.0)
    for tile in range(at):
        at1 = block + tile
        position = 0 + at1
        valid = position < at2
        at3 = tile * 4
        s2_log_0 = s2_log2_kept[at3]
        s2_log_1 = s2_log2_kept[at3 + 1]
        s2_log_2 = s2_log2_kept[at3 + 2]
        s2_log_3 = s2_log2_kept[at3 + 3]
        e_0, e1_0 = e_element(max1_0, s2_log_0)
        e_1, e1_1 = e_element(max1_1, s2_log_1)
        e_2, e1_2 = e_element(max1_2, s2_log_2)
        e_3, e1_3 = e_element(max1_3, s2_log_3)
        at4 = tile * 4
        e_kept[at4] = e1_0
        e_kept[at4 + 1] = e1_1
        e_kept[at4 + 2] = e1_2
        e_kept[at4 + 3] = e1_3
        e2_0 = e_0 if valid else f32(0.0)
        e2_1 = e_1 if valid else f32(0.0)
        e2_2 = e_2 if valid else f32(0.0)
        e2_3 = e_3 if valid else f32(0.0)
        sum1_0 = e2_0 + sum1_0
        sum1_1 = e2_1 + sum1_1
        sum1_2 = e2_2 + sum1_2
        sum1_3 = e2_3 + sum1_3
    return sum1_0, sum1_1, sum1_2, sum1_3


@jit
def zero_loop6(at, vf_block, e_kept1):
    o_0_0 = o_0_1 = o_0_2 = o_0_3 = f32(0.0)
    o_1_0 = o_1_1 = o_1_2 = o_1_3 = f32(0.0)
    o_2_0 = o_2_1 = o_2_2 = o_2_3 = f32(0.0)
    for k in range(at):
        at1 = k * 3
        vf_0 = vf_block[at1]
        vf_1 = vf_block[at1 + 1]
        vf_2 = vf_block[at1 + 2]
        at2 = k * 4
        e_kept_0 = e_kept1[at2]
        e_kept_1 = e_kept1[at2 + 1]
        e_kept_2 = e_kept1[at2 + 2]
        e_kept_3 = e_kept1[at2 + 3]
        o_0_0 = o_0_0 + vf_0 * e_kept_0
        o_0_1 = o_0_1 + vf_0 * e_kept_1
        o_0_2 = o_0_2 + vf_0 * e_kept_2
        o_0_3 = o_0_3 + vf_0 * e_kept_3
        o_1_0 = o_1_0 + vf_1 * e_kept_0
        o_1_1 = o_1_1 + vf_1 * e_kept_1
        o_1_2 = o_1_2 + vf_1 * e_kept_2
        o_1_3 = o_1_3 + vf_1 * e_kept_3
        o_2_0 = o_2_0 + vf_2 * e_kept_0
        o_2_1 = o_2_1 + vf_2 * e_kept_1
        o_2_2 = o_2_2 + vf_2 * e_kept_2
        o_2_3 = o_2_3 + vf_2 * e_kept_3
    return o_0_0, o_0_1, o_0_2, o_0_3, o_1_0, o_1_1, o_1_2, o_1_3, o_2_0, o_2_1, o_2_2, o_2_3


@jit
def block_loop1(
    at, at1, k1, block1, k_stride_0, block2, k_stride_1, k_stride_2, kf_block, v1, v_stride_0,
    v_stride_1, v_stride_2, vf_block, row_value_n_at, qf_packed, s2_log2_kept, running_state,
    e_kept, sum_state, o_state,
):
    for block in range(at, at1, 32):
        at2 = at1 - block
        at3 = min(at2, 32)
        at4 = at3 + 3
        at5 = at4 // 4
        at6 = at5 * 4
        for position in range(at6):
            at7 = block + position
            at8 = at1 - 1
            at9 = min(at7, at8)
            for d in range(3):
                k = bf16_to_f32(k1[block1 * k_stride_0 + block2 * k_stride_1 + at9 * k_stride_2 + d])
                kf_block[position * 3 + d] = k
        for position1 in range(at6):
            at10 = block + position1
            at11 = at1 - 1
            at12 = min(at10, at11)
            for d1 in range(3):
                v = bf16_to_f32(v1[block1 * v_stride_0 + block2 * v_stride_1 + at12 * v_stride_2 + d1])
                vf_block[position1 * 3 + d1] = v
        n_at_0 = row_value_n_at[0]
        n_at_1 = row_value_n_at[1]
        n_at_2 = row_value_n_at[2]
        n_at_3 = row_value_n_at[3]
        (max1_0, max1_1, max1_2, max1_3) = zero_loop4(
            at3, block, at1, n_at_0, n_at_1, n_at_2, n_at_3, kf_block, qf_packed, s2_log2_kept,
        )
        before_0 = running_state[0]
        before_1 = running_state[1]
        before_2 = running_state[2]
        before_3 = running_state[3]
        max2_0 = max1_0 if max1_0 > before_0 else before_0
        max2_1 = max1_1 if max1_1 > before_1 else before_1
        max2_2 = max1_2 if max1_2 > before_2 else before_2
        max2_3 = max1_3 if max1_3 > before_3 else before_3
        running_state[0] = max2_0
        running_state[1] = max2_1
        running_state[2] = max2_2
        running_state[3] = max2_3
        (sum1_0, sum1_1, sum1_2, sum1_3) = zero_loop5(
            at3, block, at1, s2_log2_kept, max2_0, max2_1, max2_2, max2_3, e_kept,
        )
        before1_0 = sum_state[0]
        before1_1 = sum_state[1]
        before1_2 = sum_state[2]
        before1_3 = sum_state[3]
        rescale_0, sum2_0 = sum_element(max2_0, before_0, before1_0, sum1_0)
        rescale_1, sum2_1 = sum_element(max2_1, before_1, before1_1, sum1_1)
        rescale_2, sum2_2 = sum_element(max2_2, before_2, before1_2, sum1_2)
        rescale_3, sum2_3 = sum_element(max2_3, before_3, before1_3, sum1_3)
        sum_state[0] = sum2_0
        sum_state[1] = sum2_1
        sum_state[2] = sum2_2
        sum_state[3] = sum2_3
        (
            o_0_0, o_0_1, o_0_2, o_0_3, o_1_0, o_1_1, o_1_2, o_1_3, o_2_0, o_2_1, o_2_2,
            o_2_3,
        ) = zero_loop6(at3, vf_block, e_kept)
        o1_0_0 = o_state[0]
        o1_0_1 = o_state[1]
        o1_0_2 = o_state[2]
        o1_0_3 = o_state[3]
        o1_1_0 = o_state[4]
        o1_1_1 = o_state[5]
        o1_1_2 = o_state[6]
        o1_1_3 = o_state[7]
        o1_2_0 = o_state[8]
        o1_2_1 = o_state[9]
        o1_2_2 = o_state[10]
        o1_2_3 = o_state[11]
        o2_0_0 = o1_0_0 * rescale_0 + o_0_0
        o2_0_1 = o1_0_1 * rescale_1 + o_0_1
        o2_0_2 = o1_0_2 * rescale_2 + o_0_2
        o2_0_3 = o1_0_3 * rescale_3 + o_0_3
        o2_1_0 = o1_1_0 * rescale_0 + o_1_0
        o2_1_1 = o1_1_1 * rescale_1 + o_1_1
        o2_1_2 = o1_1_2 * rescale_2 + o_1_2
        o2_1_3 = o1_1_3 * rescale_3 + o_1_3
        o2_2_0 = o1_2_0 * rescale_0 + o_2_0
        o2_2_1 = o1_2_1 * rescale_1 + o_2_1
        o2_2_2 = o1_2_2 * rescale_2 + o_2_2
        o2_2_3 = o1_2_3 * rescale_3 + o_2_3
        o_state[0] = o2_0_0
        o_state[1] = o2_0_1
        o_state[2] = o2_0_2
        o_state[3] = o2_0_3
        o_state[4] = o2_1_0
        o_state[5] = o2_1_1
        o_state[6] = o2_1_2
        o_state[7] = o2_1_3
        o_state[8] = o2_2_0
        o_state[9] = o2_2_1
        o_state[10] = o2_2_2
        o_state[11] = o2_2_3


@jit
def attention(
    lo, hi,
    B, K, G, N, M,
    q, q_stride_0, q_stride_1, q_stride_2, q_stride_3,
    k, k_stride_0, k_stride_1, k_stride_2, k_stride_3,
    v, v_stride_0, v_stride_1, v_stride_2, v_stride_3,
    out_ob, out_ob_stride_0, out_ob_stride_1, out_ob_stride_2, out_ob_stride_3,
):
    kf_block = np.empty(96, f32)
    vf_block = np.empty(96, f32)
    s2_log2_kept = np.empty(128, f32)
    e_kept = np.empty(128, f32)
    qf_packed = np.empty(12, f32)
    row_value_n_at = np.empty(4, i64)
    running_state = np.empty(4, f32)
    sum_state = np.empty(4, f32)
    o_state = np.empty(12, f32)
    size = G * N
    extent = (size + 3) // 4
    for item in range(lo, hi):
        block = item // (K * extent)
        block1 = item // (extent) % K
        block2 = item % extent
        at = block2 * 4
        size1 = G * N
        for row in range(4):
            at1 = at + row
            at2 = size1 - 1
            at3 = min(at1, at2)
            at4 = floor_div(at3, N)
            at5 = floor_mod(at3, N)
            for d in range(3):
                at6 = block1 * G
                at7 = at6 + at4
                q1 = bf16_to_f32(q[block * q_stride_0 + at7 * q_stride_1 + at5 * q_stride_2 + d])
                qf_packed[d * 4 + row] = q1
            row_value_n_at[row] = at5
        for i in range(1):
            at8 = i * 4
            running_state[at8] = f32(-inf)
            running_state[at8 + 1] = f32(-inf)
            running_state[at8 + 2] = f32(-inf)
            running_state[at8 + 3] = f32(-inf)
        for i1 in range(1):
            at9 = i1 * 4
            sum_state[at9] = f32(0.0)
            sum_state[at9 + 1] = f32(0.0)
            sum_state[at9 + 2] = f32(0.0)
            sum_state[at9 + 3] = f32(0.0)
        for i2 in range(3):
            at10 = i2 * 4
            o_state[at10] = f32(0.0)
            o_state[at10 + 1] = f32(0.0)
            o_state[at10 + 2] = f32(0.0)
            o_state[at10 + 3] = f32(0.0)
        at11 = at + 3
        at12 = size1 - 1
        at13 = min(at11, at12)
        at14 = floor_div(at, N)
        at15 = floor_mod(at, N)
        at16 = floor_div(at13, N)
        at17 = floor_mod(at13, N)
        at18 = at16 - at14
        at19 = 1 - at18
        at20 = max(at19, 0)
        at21 = 1 - at20
        at22 = at15 * at20
        at23 = at17 * at20
        at24 = N - 1
        at25 = at24 * at21
        at26 = at23 + at25
        at27 = at26 + 1
        at28 = max(at27, 0)
        at29 = min(M, at28)
        at30 = at22 + 1
        at31 = max(at30, 0)
        at32 = min(M, at31)
        at33 = min(0, at29)
        at34 = min(at32, at29)
        at35 = max(0, at33)
        at36 = min(at35, at29)
        at37 = at34 - at36
        at38 = max(at37, 0)
        at39 = at38 // 32
        at40 = at39 * 32
        at41 = at36 + at40
        block_loop(
            at36, at41, k, block, k_stride_0, block1, k_stride_1, k_stride_2, kf_block, v,
            v_stride_0, v_stride_1, v_stride_2, vf_block, qf_packed, s2_log2_kept, running_state,
            e_kept, sum_state, o_state,
        )
        block_loop1(
            at41, at29, k, block, k_stride_0, block1, k_stride_1, k_stride_2, kf_block, v,
            v_stride_0, v_stride_1, v_stride_2, vf_block, row_value_n_at, qf_packed, s2_log2_kept,
            running_state, e_kept, sum_state, o_state,
        )
        at75 = size1 - at
        at76 = min(at75, 4)
        for row1 in range(at76):
            at77 = at + row1
            at78 = floor_div(at77, N)
            at79 = floor_mod(at77, N)
            for d5 in range(3):
                o6 = o_state[d5 * 4 + row1]
                sum5 = sum_state[row1]
                at80 = block1 * G
                at81 = at80 + at78
                none = sum5 == f32(0.0)
                sum6 = f32(1.0) if none else sum5
                o7 = o6 / sum6
                ob = round_bf16(o7)
                out_ob[block * out_ob_stride_0 + at81 * out_ob_stride_1 + at79 * out_ob_stride_2 + d5] = f32_to_bf16(ob)
