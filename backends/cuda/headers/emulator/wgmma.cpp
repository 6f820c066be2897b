// Products of a warp group: 64 rows, N columns, 16 of k; operands in shared memory by descriptors, or
// the left one in registers. Sums come into the registers at the wait; until then they hold NaN.
// Memory is read at once, and free to be written only after the wait.
#include "emulator.h"

namespace tw::emu {
namespace {
constexpr int kRows = 64, kK = 16;

struct Pending {  // sums of one thread on their way
  float* to;
  int count, group;
  float sums[128];
};
struct Issue { int group; uint32_t clock; };
struct Thread {
  bool fenced = false;
  int group = 0;
  std::vector<Pending> pending;
  std::vector<Issue> issued;
};
Thread threads[kMaxThreads];
uint32_t core_clocks[kMaxThreads / 32];

struct Call {
  float* d;
  const Wgmma* product;
  int line;
};

// The piece of 16 bytes that holds element (row, k) of an operand and the seven beside it. The layouts
// are those of the PTX manual, "Shared memory matrix layout"; as CUTLASS draws them, in pieces:
// k innermost ((8, n), 2) : ((width, stride), 1), rows innermost ((width, n), (8, 2)) : ((1, leading),
// (width, stride)), where width is the swizzle in pieces, and 1 without one.
const unsigned char* piece(uint64_t descriptor, bool transposed, int row, int k) {
  const int64_t start = int64_t(descriptor & 0x3fff) << 4, leading = int64_t(descriptor >> 16 & 0x3fff) << 4;
  const int64_t stride = int64_t(descriptor >> 32 & 0x3fff) << 4;
  const int kind = int(descriptor >> 62), width = kind == 1 ? 8 : kind == 2 ? 4 : kind == 3 ? 2 : 1;
  int64_t at = start;
  if (!transposed) at += row % 8 * width * 16 + row / 8 * stride + (width == 1 ? k / 8 * leading : k / 8 * 16);
  else if (width == 1) at += row / 8 * stride + k % 8 * 16 + k / 8 * leading;
  else at += row / 8 % width * 16 + row / 8 / width * leading + k % 8 * width * 16 + k / 8 * stride;
  return shared_base + (at ^ (at >> 7 & (width - 1)) << 4);
}

float element(const Wgmma& product, uint16_t bits) {
  return product.bf16 ? to_float(bf16{bits}) : to_float(f16{bits});
}

// An operand as floats [rows][16]; each piece is noted as read by the four warps (or by one).
void fetch(const Wgmma& product, uint64_t descriptor, bool transposed, int rows, bool left, int line,
           float (*to)[kK]) {
  const int first = me().thread / 128 * 4;
  for (int row = 0; row < rows; row += transposed ? 8 : 1)
    for (int k = 0; k < kK; k += transposed ? 1 : 8) {
      const unsigned char* from = piece(descriptor, transposed, row, k);
      for (int warp = left ? row / 16 : 0; warp < (left ? row / 16 + 1 : 4); ++warp)
        read_async(from, 16, kCores + first + warp, core_clocks[first + warp], "wgmma", line);
      uint16_t bits[8];
      std::memcpy(bits, from, 16);
      for (int i = 0; i < 8; ++i)
        to[transposed ? row + i : row][transposed ? k : k + i] = element(product, bits[i]);
    }
}

void from_registers(void* const* calls, float (*a)[kK]) {
  for (int thread = 0; thread < 128; ++thread) {
    const Wgmma& product = *static_cast<Call*>(calls[thread])->product;
    const int row = thread / 32 * 16 + thread % 32 / 4, k = thread % 4 * 2;
    for (int r = 0; r < 4; ++r)
      for (int i = 0; i < 2; ++i)
        a[row + r % 2 * 8][k + r / 2 * 8 + i] = element(product, uint16_t(product.a[r] >> 16 * i));
  }
}

// The sums that a thread adds to: those on their way to the same registers, or the registers'.
Pending& pending_of(int thread, const Call& call) {
  Thread& mine = threads[thread];
  for (Pending& pending : mine.pending)
    if (pending.to == call.d) return pending;
  Pending fresh{call.d, call.product->columns / 2, 0, {}};
  std::memcpy(fresh.sums, call.d, size_t(fresh.count) * 4);
  std::memset(call.d, 0xff, size_t(fresh.count) * 4);
  mine.pending.push_back(fresh);
  return mine.pending.back();
}

void multiply(void* const* calls) {
  static float a[kRows][kK], b[256][kK], columns[kK][256], sums[256];
  const Call& first = *static_cast<Call*>(calls[0]);
  const Wgmma& product = *first.product;
  const int n = product.columns, base = me().thread / 128 * 128;
  for (int warp = base / 32; warp < base / 32 + 4; ++warp) ++core_clocks[warp];
  fetch(product, product.descriptor_b, product.transposed_b, n, false, first.line, b);
  if (product.a) from_registers(calls, a);
  else fetch(product, product.descriptor_a, product.transposed_a, kRows, true, first.line, a);
  for (int column = 0; column < n; ++column)
    for (int k = 0; k < kK; ++k) columns[k][column] = b[column][k];
  Pending* held[128];
  for (int thread = 0; thread < 128; ++thread) {
    const Call& call = *static_cast<Call*>(calls[thread]);
    held[thread] = &pending_of(base + thread, call);
    held[thread]->group = threads[base + thread].group;
    threads[base + thread].issued.push_back({held[thread]->group, core_clocks[(base + thread) / 32]});
  }
  for (int row = 0; row < kRows; ++row) {
    // Row r is with the four threads 32 · (r / 16) + 4 · (r % 8) on, in their upper halves from 8 on.
    const int thread = row / 16 * 32 + row % 8 * 4, half = row % 16 / 8 * 2;
    for (int c = 0; c < n; ++c)
      sums[c] = product.accumulate ? held[thread + c % 8 / 2]->sums[c / 8 * 4 + half + c % 2] : 0.0f;
    for (int k = 0; k < kK; ++k)
      for (int c = 0; c < n; ++c) sums[c] += a[row][k] * columns[k][c];
    for (int c = 0; c < n; ++c) held[thread + c % 8 / 2]->sums[c / 8 * 4 + half + c % 2] = sums[c];
  }
}
}  // namespace

void wgmma(float* d, const Wgmma& product, int line) {
  const int self = me().thread;
  if (self / 128 * 128 + 128 > block_state.threads)
    fail(kUsage, line, 0, "wgmma needs groups of 128 threads; the block has %d", block_state.threads);
  if (!threads[self].fenced)
    fail(kRace, line, 0, "wgmma without wgmma_fence() since the registers were last free to use");
  Call call{d, &product, line};
  together("wgmma", line, &call, multiply, 128);
}

void wgmma_wait(int groups, int line) {
  (void)line;
  Thread& mine = threads[me().thread];
  std::vector<Pending> kept;
  for (const Pending& pending : mine.pending) {
    if (pending.group >= mine.group - groups) {
      kept.push_back(pending);
      continue;
    }
    std::memcpy(pending.to, pending.sums, size_t(pending.count) * 4);
  }
  mine.pending = kept;
  std::vector<Issue> still;
  for (const Issue& issue : mine.issued) {
    if (issue.group >= mine.group - groups) still.push_back(issue);
    else me().seen[kCores + me().thread / 32] = issue.clock;  // they rise
  }
  mine.issued = still;
  if (kept.empty()) mine.fenced = false;
}

void reset_wgmma() {
  for (Thread& thread : threads) thread = {};
  std::memset(core_clocks, 0, sizeof core_clocks);
}
}  // namespace tw::emu

void tw::wgmma_fence() { emu::threads[emu::me().thread].fenced = true; }
void tw::wgmma_commit() { ++emu::threads[emu::me().thread].group; }

uint64_t tw::wgmma_descriptor(const void* start, int leading_bytes, int stride_bytes, int swizzle, int line) {
  using namespace emu;
  const int64_t at = static_cast<const unsigned char*>(start) - shared_base;
  const uint64_t kind = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
  if (at < 0 || at >= shared_bytes || at % 16 || leading_bytes % 16 || stride_bytes % 16)
    fail(kAlignment, line, 0, "wgmma_descriptor of byte %ld of shared memory, %d and %d: all multiples of 16", long(at),
         leading_bytes, stride_bytes);
  return uint64_t(at >> 4 & 0x3fff) | uint64_t(leading_bytes >> 4 & 0x3fff) << 16 |
         uint64_t(stride_bytes >> 4 & 0x3fff) << 32 | kind << 62;
}
