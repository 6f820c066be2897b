// c = a · b in f32 from bf16, for sm_90a: a is rows × depth, b is depth × columns, both in rows. A warp
// of its own asks the accelerator for tiles, two warp groups multiply; 128 × 128 outputs, 64 of depth
// at a time in four stages. Tiles are swizzled by 128 bytes: a's rows hold 64 of k, b's 64 columns.
#include "tilewright_kernel.h"

constexpr int kRows = 128, kColumns = 128, kDepth = 64, kStages = 4;
constexpr int kStageA = kRows * kDepth * 2, kHalfB = kDepth * 64 * 2;
constexpr int kStage = kStageA + 2 * kHalfB;

TW_KERNEL(product90, 384, 1)
(TW_TENSOR_MAP a, TW_TENSOR_MAP b, float* c, int rows, int columns, int depth) {
  TW_SHARED(kStages * kStage + 1024);
  unsigned char* const full = tw_shared + kStages * kStage;
  unsigned char* const empty = full + 8 * kStages;
  const int across = (columns + kColumns - 1) / kColumns;
  const int row0 = tw::block() / across * kRows, column0 = tw::block() % across * kColumns;
  const int steps = (depth + kDepth - 1) / kDepth;
  if (tw::thread() == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      tw::mbarrier_init(full + 8 * stage, 1);
      tw::mbarrier_init(empty + 8 * stage, 8);
    }
    tw::mbarrier_init_fence();
  }
  tw::barrier();
  if (tw::warp() >= 8) {
    tw::registers_down<40>();
    if (tw::thread() != 256) return;
    for (int step = 0; step < steps; ++step) {
      const int stage = step % kStages;
      tw::mbarrier_wait(empty + 8 * stage, step / kStages % 2 ^ 1);
      tw::mbarrier_arrive_expect(full + 8 * stage, kStage);
      unsigned char* const tile = tw_shared + stage * kStage;
      tw::tma_load(tile, a, full + 8 * stage, step * kDepth, row0);
      tw::tma_load(tile + kStageA, b, full + 8 * stage, column0, step * kDepth);
      tw::tma_load(tile + kStageA + kHalfB, b, full + 8 * stage, column0 + 64, step * kDepth);
    }
    return;
  }
  tw::registers_up<232>();
  const int group = tw::warp() / 4, lane = tw::lane();
  float sums[64];
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    const unsigned char* const tile = tw_shared + stage * kStage;
    tw::mbarrier_wait(full + 8 * stage, step / kStages % 2);
    tw::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k)
      tw::wgmma<tw::bf16, 128, 1>(sums, tw::wgmma_descriptor(tile + group * 8192 + 32 * k, 16, 1024),
                                  tw::wgmma_descriptor(tile + kStageA + 2048 * k, kHalfB, 1024), step > 0 || k > 0);
    tw::wgmma_commit();
    tw::wgmma_wait<0>();
    if (lane == 0) tw::mbarrier_arrive(empty + 8 * stage);
  }
#pragma unroll
  for (int j = 0; j < 16; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row0 + group * 64 + tw::warp() % 4 * 16 + half * 8 + lane / 4;
      const int column = column0 + 8 * j + lane % 4 * 2;
      if (r < rows && column < columns)
        tw::global_store_vec<8>(c + (long long)r * columns + column,
                                tw::Vec<8>{tw::float_to_bits(sums[4 * j + 2 * half]), tw::float_to_bits(sums[4 * j + 2 * half + 1])});
    }
}
