// c = a · b in f32 from bf16: a is rows × depth, b is depth × columns, both in rows; depth and
// columns are multiples of 8. 64 × 64 outputs by four warps, 32 of depth at a time in three stages.
#include "tilewright_kernel.h"

constexpr int kRows = 64, kColumns = 64, kDepth = 32, kStages = 3;
constexpr int kStageA = kRows * kDepth * 2, kStageB = kDepth * kColumns * 2;

// Where 16 bytes lie in a tile: chunks of a row change places so that the eight rows that ldmatrix
// reads at once are in different banks. Rows of a have 4 chunks, rows of b have 8.
TW_DEVICE int place_a(int row, int chunk) { return row * 64 + ((chunk ^ (row >> 1 & 3)) << 4); }
TW_DEVICE int place_b(int row, int chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }

TW_DEVICE void fetch(unsigned char* shared, const tw::bf16* a, const tw::bf16* b, int rows,
                     int columns, int depth, int row0, int column0, int k0) {
  const int thread = tw::thread();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int item = thread + i * 128, row = item / 4, chunk = item % 4;
    const int r = row0 + row, k = k0 + chunk * 8;
    tw::copy_async<16>(shared + place_a(row, chunk), a + (long long)r * depth + k, r < rows && k < depth);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int item = thread + i * 128, row = item / 8, chunk = item % 8;
    const int k = k0 + row, c = column0 + chunk * 8;
    tw::copy_async<16>(shared + kStageA + place_b(row, chunk), b + (long long)k * columns + c, k < depth && c < columns);
  }
}

TW_KERNEL(product, 128, 2)
(const tw::bf16* a, const tw::bf16* b, float* c, int rows, int columns, int depth) {
  TW_SHARED(kStages * (kStageA + kStageB));
  const int lane = tw::lane(), warp = tw::warp();
  const int across = (columns + kColumns - 1) / kColumns;
  const int row0 = tw::block() / across * kRows, column0 = tw::block() % across * kColumns;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
  const int steps = (depth + kDepth - 1) / kDepth;
  float sums[2][4][4] = {};
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < steps)
      fetch(tw_shared + stage * (kStageA + kStageB), a, b, rows, columns, depth, row0, column0, stage * kDepth);
    tw::commit();
  }
  for (int step = 0; step < steps; ++step) {
    tw::wait<kStages - 2>();
    tw::barrier();
    const int ahead = step + kStages - 1;
    if (ahead < steps)
      fetch(tw_shared + ahead % kStages * (kStageA + kStageB), a, b, rows, columns, depth, row0, column0, ahead * kDepth);
    tw::commit();
    const unsigned char* tile = tw_shared + step % kStages * (kStageA + kStageB);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      uint32_t left[2][4], right[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        tw::ldmatrix_x4(left[i], tile + place_a(warp_row + 16 * i + lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int j = 0; j < 2; ++j)
        tw::ldmatrix_x4_trans(right[j], tile + kStageA + place_b(16 * k + lane % 16, warp_column / 8 + 2 * j + lane / 16));
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t pair[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
          tw::mma_16816<tw::bf16>(sums[i][j], left[i], pair);
        }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = row0 + warp_row + 16 * i + 8 * half + lane / 4;
        const int column = column0 + warp_column + 8 * j + lane % 4 * 2;
        if (r < rows && column < columns) {
          tw::Vec<8> two;
          two.words[0] = tw::float_to_bits(sums[i][j][2 * half]);
          two.words[1] = tw::float_to_bits(sums[i][j][2 * half + 1]);
          tw::global_store_vec<8>(c + (long long)r * columns + column, two);
        }
      }
}
