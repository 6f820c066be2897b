// Functions of generated kernels that are plain C++, the same on the device and on the host.
#pragma once

#ifndef __CUDACC_RTC__
#include <cmath>
#endif

namespace tw {

TW_DEVICE float nan() { return bits_to_float(0x7fffffffu); }
TW_DEVICE float infinity() { return bits_to_float(0x7f800000u); }

// NaN if one of them is; fmaxf and fminf give the other.
TW_DEVICE float maximum(float a, float b) { return a != a || b != b ? nan() : fmaxf(a, b); }
TW_DEVICE float minimum(float a, float b) { return a != a || b != b ? nan() : fminf(a, b); }

template <class T>
TW_DEVICE T larger(T a, T b) { return a < b ? b : a; }
template <class T>
TW_DEVICE T smaller(T a, T b) { return b < a ? b : a; }

TW_DEVICE long long larger(long long a, long long b) { return a < b ? b : a; }
TW_DEVICE long long smaller(long long a, long long b) { return b < a ? b : a; }

// Division that rounds down, as Python's and torch's; 0 by convention where b is 0. The least number
// by -1 is itself, where hosts would trap.
template <class T>
TW_DEVICE T floor_div(T a, T b) {
  if (b == 0) return 0;
  if (b == T(-1) && T(-1) < T(0)) return static_cast<T>(0ull - static_cast<unsigned long long>(a));
  const T quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}
template <class T>
TW_DEVICE T floor_mod(T a, T b) { return a - floor_div(a, b) * b; }

// Element i of floats of 16 bits held two in a word.
template <class T>
TW_DEVICE float half_of(uint32_t word, int i) {
  return to_float(T{static_cast<uint16_t>(i % 2 ? word >> 16 : word)});
}

// Neighbouring registers of a tile as the array that an instruction takes.
template <int N, class T>
TW_DEVICE T (&group(T* registers, int at))[N] { return *reinterpret_cast<T(*)[N]>(registers + at); }

// d += a * b with four neighbours of k in a thread: the instruction takes two of them, then rows.
template <class T>
TW_DEVICE void mma_fours_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const uint32_t ordered[4] = {a[0], a[2], a[1], a[3]};
  mma_16816<T>(d, ordered, b);
}

// d += a * b with sides exchanged: a's eight rows are an instruction's columns. A thread has R
// neighbours of k and R / 2 columns of b, two of which an instruction takes; of d two rows of each.
template <class T, int R>
TW_DEVICE void mma_turned_16816(float (&d)[R], const uint32_t (&a)[R / 2], const uint32_t (&b)[R * R / 4]) {
#pragma unroll
  for (int k = 0; k < R / 4; ++k) {
    const uint32_t right[2] = {a[2 * k], a[2 * k + 1]};
#pragma unroll
    for (int n = 0; n < R / 4; ++n) {
      const int at = k * R + 4 * n;
      const uint32_t left[4] = {b[at], b[at + 2], b[at + 1], b[at + 3]};
      mma_16816<T>(group<4>(d, 4 * n), left, right);
    }
  }
}

// Sums of such a product, two rows in a word, as the left side of the next: R neighbours of a row.
template <int R>
TW_DEVICE void turn(uint32_t (&row)[R / 2], const uint32_t (&sums)[R / 2]) {
  uint32_t far[R / 2];  // neighbours R / 2 apart
#pragma unroll
  for (int i = 0; i < R / 2; ++i) far[i] = movmatrix(sums[i]);
#pragma unroll
  for (int i = 0; i < R / 2; i += 2) {
    row[i / 2] = prmt(far[i], far[i + 1], 0x5410);
    row[R / 4 + i / 2] = prmt(far[i], far[i + 1], 0x7632);
  }
}

// A byte of a word as f32: its bits below those of 2^23 are a number larger by that.
TW_DEVICE float byte_to_float(uint32_t word, int byte) {
  return bits_to_float(prmt(word, 0x4b000000u, 0x7440u | byte)) - 8388608.0f;
}
// Bytes At and At + 1 (0 or 2) of a word as floats of 16 bits: their bits below those of 128 (bf16 has
// seven there) or 1024 are numbers larger by that.
template <int At, int Bits>
TW_DEVICE uint32_t bytes_to_bf16(uint32_t word) {
  if constexpr (Bits < 8) return hsub2_bf16(prmt(word, 0x43434343u, At ? 0x4342u : 0x4140u), 0x43004300u);
  const uint32_t both = prmt(word, 0, At ? 0x4342u : 0x4140u);
  const uint32_t twos = ~(both << 7) & 0x40004000u;  // where bit 7 is not set: 128 less, by -64 times 2
  return hfma2_bf16(twos, 0xc280c280u, (both & 0x007f007fu) | 0x43004300u);
}
template <int At, int Bits>
TW_DEVICE uint32_t bytes_to_f16(uint32_t word) {
  return hsub2_f16(prmt(word, 0x64646464u, At ? 0x4342u : 0x4140u), 0x64006400u);
}

// A number that the compiler takes for a new one: what is made of it is not kept across a loop.
TW_DEVICE float anew(float x) {
#if !TW_HOST
  asm volatile("" : "+f"(x));
#endif
  return x;
}
TW_DEVICE int anew(int x) {
#if !TW_HOST
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// d += a * b for f32 by three products of halves of their bits. Registers are in the order of sums,
// neighbours of k side by side; the instruction counts rows before k.
TW_DEVICE void mma_split_1688(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  uint32_t high_a[4], low_a[4], high_b[2], low_b[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float x = anew(a[i % 2 * 2 + i / 2]);
    high_a[i] = to_tf32(x);
    low_a[i] = to_tf32(x - bits_to_float(high_a[i]));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    high_b[i] = to_tf32(b[i]);
    low_b[i] = to_tf32(b[i] - bits_to_float(high_b[i]));
  }
  mma_1688_tf32(d, low_a, high_b);
  mma_1688_tf32(d, high_a, low_b);
  mma_1688_tf32(d, high_a, high_b);
}

// Sixteen of k, four neighbours of them in a thread.
TW_DEVICE void mma_split_fours(float (&d)[4], const float (&a)[8], const float (&b)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const float left[4] = {a[i], a[i + 1], a[i + 4], a[i + 5]}, right[2] = {b[i], b[i + 1]};
    mma_split_1688(d, left, right);
  }
}

template <class T>
TW_DEVICE T shuffle_xor_any(T x, int mask) {
  if constexpr (sizeof(T) == 4) {
    return shuffle_xor(x, mask);
  } else {
    const uint64_t bits = static_cast<uint64_t>(x);
    const uint32_t low = shuffle_xor(static_cast<uint32_t>(bits), mask);
    const uint32_t high = shuffle_xor(static_cast<uint32_t>(bits >> 32), mask);
    return static_cast<T>(uint64_t(high) << 32 | low);
  }
}

}  // namespace tw
