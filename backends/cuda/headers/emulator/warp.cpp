// What the 32 threads of a warp do together: shuffles, votes, matrices from shared memory, products.
// The last lane to come does it for all. Fragment layouts are those of the PTX manual ("Matrix
// fragments for mma.m16n8k16 …"): with group = lane / 4 and pair = lane % 4, a 16 × 8 result has
// d0, d1 in row `group`, columns 2·pair and 2·pair + 1, and d2, d3 eight rows below.
#include "emulator.h"

namespace tw::emu {
namespace {
struct Group {  // of threads that act together
  int arrived = 0, exited = 0, line = 0;
  const char* what = "";
  void* lanes[128];
};
Group warps[kMaxThreads / 32], warp_groups[kMaxThreads / 128];
Clocks warp_clocks[kMaxThreads / 32];
}  // namespace

void reset_warps() {
  for (Group& warp : warps) warp = {};
  for (Group& group : warp_groups) group = {};
  for (Clocks& clocks : warp_clocks) forget(clocks);
}

void together(const char* what, int line, void* mine, void (*all)(void* const* lanes), int threads) {
  const int self = me().thread, first = self / threads * threads;
  Group& group = threads == 32 ? warps[self / 32] : warp_groups[self / 128];
  const char* name = threads == 32 ? "warp" : "warp group";
  if (group.exited)
    fail(kDivergence, line, 0, "%s of a %s of which %d threads have ended", what, name, group.exited);
  if (group.arrived && (group.line != line || std::strcmp(group.what, what)))
    fail(kDivergence, line, group.line, "%s, while other threads of the %s wait at %s in line %d", what,
         name, group.what, group.line);
  group.what = what;
  group.line = line;
  group.lanes[self - first] = mine;
  if (++group.arrived < threads) return wait_at(what, line);
  group.arrived = 0;
  all(group.lanes);
  for (int i = first; i < first + threads; ++i)
    if (i != self) wake(block_state.fibers[size_t(i)]);
}

void exit_from_warp(Fiber& fiber) {
  for (Group* group : {&warps[fiber.thread / 32], &warp_groups[fiber.thread / 128]}) {
    if (group->arrived)
      fail(kDivergence, group->line, 0, "ends while other threads of its warp (group) wait at %s in line %d",
           group->what, group->line);
    ++group->exited;
  }
}

// ---- shuffles and votes ---------------------------------------------------------------------------
namespace {
struct Shuffle { uint32_t value, result; int lane; };

void all_shuffle(void* const* lanes) {
  for (int i = 0; i < 32; ++i) {
    auto* mine = static_cast<Shuffle*>(lanes[i]);
    mine->result = static_cast<Shuffle*>(lanes[mine->lane & 31])->value;
  }
}
}  // namespace

uint32_t shuffle(uint32_t value, int lane, bool exclusive_or, int line) {
  Shuffle mine{value, 0, exclusive_or ? (me().thread & 31) ^ lane : lane};
  together(exclusive_or ? "shuffle_xor" : "shuffle", line, &mine, all_shuffle);
  return mine.result;
}

// ---- matrices in shared memory --------------------------------------------------------------------
namespace {
struct Matrices {
  uint32_t* r;
  unsigned char* row;
  int count;
  bool transposed;
};

// The eight rows of a matrix move in one round if they are in different banks (of 16 bytes here).
void count_conflicts(void* const* lanes, int count) {
  for (int matrix = 0; matrix < count; ++matrix) {
    int rows_of[8] = {}, rounds = 1;
    for (int row = 0; row < 8; ++row) {
      const int64_t at = static_cast<Matrices*>(lanes[8 * matrix + row])->row - shared_base;
      bool again = false;  // the same 16 bytes are read for several rows at once
      for (int i = 0; i < row; ++i)
        again |= static_cast<Matrices*>(lanes[8 * matrix + i])->row - shared_base == at;
      const int& rows = again ? rows_of[at / 16 % 8] : ++rows_of[at / 16 % 8];
      rounds = rows > rounds ? rows : rounds;
    }
    ++launch_state->matrices;
    launch_state->conflicts += rounds - 1;
  }
}

// Element (row, column) of an 8 × 8 matrix is half `column % 2` of lane 4·row + column / 2's register.
void all_load(void* const* lanes) {
  const auto& first = *static_cast<Matrices*>(lanes[0]);
  count_conflicts(lanes, first.count);
  for (int matrix = 0; matrix < first.count; ++matrix)
    for (int row = 0; row < 8; ++row) {
      uint16_t elements[8];
      std::memcpy(elements, static_cast<Matrices*>(lanes[8 * matrix + row])->row, 16);
      for (int column = 0; column < 8; ++column) {
        const int r = first.transposed ? column : row, c = first.transposed ? row : column;
        auto* to = reinterpret_cast<char*>(&static_cast<Matrices*>(lanes[4 * r + c / 2])->r[matrix]);
        std::memcpy(to + c % 2 * 2, &elements[column], 2);
      }
    }
}

void all_store(void* const* lanes) {
  const auto& first = *static_cast<Matrices*>(lanes[0]);
  count_conflicts(lanes, first.count);
  for (int matrix = 0; matrix < first.count; ++matrix)
    for (int row = 0; row < 8; ++row)
      for (int column = 0; column < 8; ++column) {
        const int r = first.transposed ? column : row, c = first.transposed ? row : column;
        auto* from = reinterpret_cast<char*>(&static_cast<Matrices*>(lanes[4 * r + c / 2])->r[matrix]);
        std::memcpy(static_cast<Matrices*>(lanes[8 * matrix + row])->row + 2 * column, from + c % 2 * 2, 2);
      }
}
}  // namespace

// The lane that gives an address reads the row, for the detector; lanes without one read nothing.
void load_matrices(uint32_t* r, int count, bool transposed, const void* row, int line) {
  const char* what = transposed ? "ldmatrix_trans" : "ldmatrix";
  if ((me().thread & 31) < 8 * count) read_shared(row, 16, what, line);
  Matrices mine{r, static_cast<unsigned char*>(const_cast<void*>(row)), count, transposed};
  together(what, line, &mine, all_load);
}

void store_matrices(const uint32_t* r, int count, bool transposed, void* row, int line) {
  const char* what = transposed ? "stmatrix_trans" : "stmatrix";
  if ((me().thread & 31) < 8 * count) write_shared(row, 16, what, line);
  Matrices mine{const_cast<uint32_t*>(r), static_cast<unsigned char*>(row), count, transposed};
  together(what, line, &mine, all_store);
}

// ---- products -------------------------------------------------------------------------------------
namespace {
struct Product {
  void* d;
  const uint32_t *a, *b;
};
const Product& of(void* const* lanes, int lane) { return *static_cast<const Product*>(lanes[lane]); }

struct Bf16 {
  using Sum = float;
  static constexpr int k = 16, packed = 2;
  static float element(uint32_t word, int i) { return as_float(i ? word & 0xffff0000 : word << 16); }
};
struct F16 {
  using Sum = float;
  static constexpr int k = 16, packed = 2;
  static float element(uint32_t word, int i) { return to_float(f16{uint16_t(word >> 16 * i)}); }
};
struct Tf32 {  // 19 bits are looked at
  using Sum = float;
  static constexpr int k = 8, packed = 1;
  static float element(uint32_t word, int) { return as_float(word & 0xffffe000); }
};
struct S8 {
  using Sum = int32_t;
  static constexpr int k = 32, packed = 4;
  static int32_t element(uint32_t word, int i) { return int8_t(word >> 8 * i); }
};

// The k of a packed register: 4 registers' worth of lanes wide, registers of higher k after them.
template <class T>
void all_multiply(void* const* lanes) {
  using Sum = typename T::Sum;
  constexpr int half = 4 * T::packed;  // the k that one register covers over the four lanes of a group
  Sum a[16][T::k], b[T::k][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, pair = lane % 4;
    const Product& mine = of(lanes, lane);
    for (int i = 0; i < T::packed; ++i) {
      const int k = pair * T::packed + i;
      for (int r = 0; r < 4; ++r) a[group + r % 2 * 8][k + r / 2 * half] = T::element(mine.a[r], i);
      for (int r = 0; r < 2; ++r) b[k + r * half][group] = T::element(mine.b[r], i);
    }
    for (int i = 0; i < 4; ++i)
      d[group + i / 2 * 8][2 * pair + i % 2] = static_cast<Sum*>(mine.d)[i];
  }
  for (int row = 0; row < 16; ++row) {
    Sum sums[8];
    for (int n = 0; n < 8; ++n) sums[n] = d[row][n];
    for (int k = 0; k < T::k; ++k)
      for (int n = 0; n < 8; ++n) {
        if constexpr (std::is_same_v<Sum, float>) sums[n] += a[row][k] * b[k][n];
        else sums[n] = Sum(uint32_t(sums[n]) + uint32_t(a[row][k] * b[k][n]));
      }
    for (int n = 0; n < 8; ++n) d[row][n] = sums[n];
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      static_cast<Sum*>(of(lanes, lane).d)[i] = d[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
}
}  // namespace

void mma(int kind, void* d, const uint32_t* a, const uint32_t* b, int line) {
  Product mine{d, a, b};
  if (kind == 0) together("mma_16816<bf16>", line, &mine, all_multiply<Bf16>);
  if (kind == 1) together("mma_16816<f16>", line, &mine, all_multiply<F16>);
  if (kind == 2) together("mma_1688_tf32", line, &mine, all_multiply<Tf32>);
  if (kind == 3) together("mma_16832_s8", line, &mine, all_multiply<S8>);
}
}  // namespace tw::emu

void tw::warp_barrier(int line) {
  using namespace emu;
  Clocks& clocks = warp_clocks[me().thread / 32];
  release(clocks);
  together("warp_barrier", line, nullptr, [](void* const*) {
    const int warp = me().thread / 32;
    for (int i = 32 * warp; i < 32 * warp + 32; ++i)
      acquire(block_state.fibers[size_t(i)], warp_clocks[warp]);
    forget(warp_clocks[warp]);
  });
}

uint32_t tw::ballot(bool value, int line) {
  emu::Shuffle mine{value, 0, 0};
  emu::together("ballot", line, &mine, [](void* const* lanes) {
    uint32_t votes = 0;
    for (int i = 0; i < 32; ++i) votes |= static_cast<emu::Shuffle*>(lanes[i])->value << i;
    for (int i = 0; i < 32; ++i) static_cast<emu::Shuffle*>(lanes[i])->result = votes;
  });
  return mine.result;
}
