// Arithmetic with one rounding, and the device's approximate functions (exact here, but for flushing
// subnormal numbers, as their .ftz forms do).
#include <cmath>

#include "emulator.h"

namespace tw {
static float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

float exp2(float x) { return flushed(std::exp2(flushed(x))); }
float log2(float x) { return std::log2(flushed(x)); }
float divide(float x, float y) { return x / y; }
float rcp(float x) { return flushed(1.0f / flushed(x)); }
float rsqrt(float x) { return float(1.0 / std::sqrt(double(flushed(x)))); }
float tanh(float x) { return std::tanh(x); }

namespace emu {
// To a float of 16 bits in one rounding: rounding to odd on the way keeps f32 from deciding ties.
static float to_odd(double x) {
  const float near = float(x);
  if (double(near) == x || x != x) return near;
  uint32_t bits = as_bits(near);
  if (std::fabs(double(near)) > std::fabs(x)) --bits;
  return as_float(bits | 1);
}

// a · b + c, rounded to odd in f64: the product of 16-bit floats is exact there, the sum need not be.
static double fma_to_odd(double a, double b, double c) {
  const double product = a * b, sum = product + c;
  if (!std::isfinite(sum)) return sum;
  const double part = sum - product, error = (product - (sum - part)) + (c - part);
  uint64_t bits;
  std::memcpy(&bits, &sum, 8);
  if (error == 0 || bits & 1) return sum;
  bits += (error > 0) == (sum > 0) ? 1 : -1;
  double odd;
  std::memcpy(&odd, &bits, 8);
  return odd;
}

uint32_t half_fma2(uint32_t a, uint32_t b, uint32_t c, bool is_bf16) {
  uint32_t result = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const uint16_t x = uint16_t(a >> shift), y = uint16_t(b >> shift), z = uint16_t(c >> shift);
    uint16_t bits;
    if (is_bf16) bits = to_bf16(to_odd(fma_to_odd(to_float(bf16{x}), to_float(bf16{y}), to_float(bf16{z})))).bits;
    else bits = to_f16(to_odd(fma_to_odd(to_float(f16{x}), to_float(f16{y}), to_float(f16{z})))).bits;
    result |= uint32_t(bits) << shift;
  }
  return result;
}
}  // namespace emu
}  // namespace tw
