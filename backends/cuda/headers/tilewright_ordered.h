// Arithmetic of programs in a fixed order: IEEE 754, every operation rounded once. Intrinsics, since
// a compiler of device code may fuse a plain product and sum; the host's is told not to.
#pragma once

#include "tilewright_kernel.h"

namespace tw::ordered {

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
TW_DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
TW_DEVICE float sub(float a, float b) { return __fsub_rn(a, b); }
TW_DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }
TW_DEVICE float div(float a, float b) { return __fdiv_rn(a, b); }
TW_DEVICE float root(float a) { return __fsqrt_rn(a); }
TW_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
TW_DEVICE double product(double a, double b) { return __dmul_rn(a, b); }
TW_DEVICE double of_bits(long long bits) { return __longlong_as_double(bits); }
#else
TW_DEVICE float add(float a, float b) { return a + b; }
TW_DEVICE float sub(float a, float b) { return a - b; }
TW_DEVICE float mul(float a, float b) { return a * b; }
TW_DEVICE float div(float a, float b) { return a / b; }
TW_DEVICE float root(float a) { return __builtin_sqrtf(a); }
TW_DEVICE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
TW_DEVICE double product(double a, double b) { return a * b; }
TW_DEVICE double of_bits(long long bits) { return __builtin_bit_cast(double, bits); }
#endif

// x - floor(x) rounded down; 0 for infinities.
TW_DEVICE float fraction(float x) {
  if (fabsf(x) == infinity()) return 0.0f;
  const float below = floorf(x), near = sub(x, below);
  return add(near, below) > x ? bits_to_float(float_to_bits(near) - 1) : near;
}

// x * 2^floor(n), rounded once: the product is exact in f64.
TW_DEVICE float scaled(float x, float n) {
  if (n != n) return n;
  const float most = n < -300.0f ? -300.0f : n > 300.0f ? 300.0f : n;
  const long long power = static_cast<long long>(floorf(most));
  const double factor = of_bits((power + 1023) << 52);
  // of infinite n the limit: 0 or infinity, NaN of 0 * infinity
  if (fabsf(n) == infinity()) return n > 0.0f ? mul(x, n) : mul(x, 0.0f);
  return static_cast<float>(product(static_cast<double>(x), factor));
}

// Integers that wrap around.
TW_DEVICE int plus(int a, int b) { return static_cast<int>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }
TW_DEVICE int less(int a, int b) { return static_cast<int>(static_cast<uint32_t>(a) - static_cast<uint32_t>(b)); }
TW_DEVICE int up(int a, int n) { return static_cast<int>(static_cast<uint32_t>(a) << n); }

}  // namespace tw::ordered
