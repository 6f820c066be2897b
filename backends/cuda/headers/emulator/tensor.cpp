// Copies of tiles between global and shared memory that no thread carries out (the tensor memory
// accelerator). Each happens at a random moment; loads are counted by an mbarrier, stores are waited
// for in groups by the thread that asked.
#include "emulator.h"

namespace tw::emu {
namespace {
struct Load {
  unsigned char* shared;
  const unsigned char* global;  // of a plain copy
  TensorMap map;
  int at[5];
  int bytes, line;
  Mbarrier* bar;
};
struct Store {
  const unsigned char* shared;
  TensorMap map;
  int at[5];
  int line, group, thread;
  uint32_t clock;
};
std::vector<Load> loads;
std::vector<Store> stores;
int store_groups[kMaxThreads];
uint32_t store_clocks[kMaxThreads / 32];

int64_t tile_bytes(const TensorMap& map) {
  int64_t bytes = map.element_bytes;
  for (int d = 0; d < map.dimensions; ++d) bytes *= map.box[d];
  return bytes;
}

// 16-byte pieces change places within 1,024 bytes (512, 256) by the row they are in: bits 4 and up of
// the address take those from bit 7 up. Addresses count from the start of shared memory.
int64_t swizzled(int64_t address, int swizzle) {
  const int64_t mask = swizzle == 128 ? 7 : swizzle == 64 ? 3 : swizzle == 32 ? 1 : 0;
  return address ^ (address >> 7 & mask) << 4;
}

// Calls f(offset in the tile, address in global memory or null outside the tensor, bytes) for pieces
// of 16 bytes, or for the elements of a piece that is partly outside.
template <class F>
void pieces(const TensorMap& map, const int (&at)[5], F f) {
  const int row_bytes = map.box[0] * map.element_bytes, per_piece = 16 / map.element_bytes;
  const int64_t rows = tile_bytes(map) / row_bytes;
  for (int64_t row = 0; row < rows; ++row) {
    int64_t rest = row, start = 0;
    bool inside = true;
    for (int d = 1; d < map.dimensions; ++d) {
      const int64_t x = at[d] + rest % map.box[d];
      rest /= map.box[d];
      inside = inside && x >= 0 && x < map.sizes[d];
      start += x * map.strides[d];
    }
    for (int i = 0; i < map.box[0]; i += per_piece) {
      const int64_t x = at[0] + i, offset = row * row_bytes + i * map.element_bytes;
      unsigned char* from = map.base + start + x * map.element_bytes;
      if (!inside || x + per_piece <= 0 || x >= map.sizes[0]) f(offset, nullptr, 16);
      else if (x >= 0 && x + per_piece <= map.sizes[0]) f(offset, from, 16);
      else
        for (int e = 0; e < per_piece; ++e)
          f(offset + e * map.element_bytes,
            x + e >= 0 && x + e < map.sizes[0] ? from + e * map.element_bytes : nullptr, map.element_bytes);
    }
  }
}

void check(const TensorMap& map, const void* shared, int count, const char* what, int line) {
  const int64_t offset = static_cast<const unsigned char*>(shared) - shared_base;
  const int row = map.box[0] * map.element_bytes;
  if (map.dimensions != count)
    fail(kUsage, line, 0, "%s with %d coordinates of a tensor of %d dimensions", what, count, map.dimensions);
  if (offset % 128 || (map.swizzle && offset % (8 * map.swizzle)))
    fail(kAlignment, line, 0, "%s at byte %ld of shared memory, not a multiple of %d", what, long(offset),
         map.swizzle ? 8 * map.swizzle : 128);
  if (row % 16 || (map.swizzle && row != map.swizzle))
    fail(kUsage, line, 0, "%s of rows of %d bytes with a swizzle of %d: as many, or 0 and a multiple of 16", what,
         row, map.swizzle);
}

void happen(const Load& load) {
  if (load.global) {
    std::memcpy(load.shared, load.global, size_t(load.bytes));
  } else {
    const int64_t start = load.shared - shared_base;
    pieces(load.map, load.at, [&](int64_t offset, const unsigned char* from, int bytes) {
      unsigned char* to = shared_base + swizzled(start + offset, load.map.swizzle);
      if (from) std::memcpy(to, from, size_t(bytes));
      else std::memset(to, 0, size_t(bytes));
    });
  }
  copied(*load.bar, load.shared, load.bytes, load.line);
}

void happen(const Store& store) {
  const int64_t start = store.shared - shared_base;
  pieces(store.map, store.at, [&](int64_t offset, unsigned char* to, int bytes) {
    const unsigned char* from = shared_base + swizzled(start + offset, store.map.swizzle);
    if (to) std::memcpy(to, from, size_t(bytes));
  });
}

template <class T>
void take_one(std::vector<T>& from) {
  const uint32_t i = random_below(uint32_t(from.size()));
  const T work = from[i];
  from[i] = from.back();
  from.pop_back();
  happen(work);
}
}  // namespace

void tma_load(void* shared, const TensorMap& map, void* bar, const int (&at)[5], int count, int line) {
  check(map, shared, count, "tma_load", line);
  Mbarrier& counter = mbarrier_at(bar, "tma_load", line);
  auto* to = static_cast<unsigned char*>(shared);
  const int bytes = int(tile_bytes(map));
  pieces(map, at, [&](int64_t, const unsigned char* piece, int size) {
    if (piece) access_global(piece, size, false, "tma_load", line);
  });
  claim(to, bytes, writer_of(counter), "tma_load", line);
  Load load{to, nullptr, map, {}, bytes, line, &counter};
  std::memcpy(load.at, at, sizeof at);
  loads.push_back(load);
}

void tma_store(const TensorMap& map, const void* shared, const int (&at)[5], int count, int line) {
  check(map, shared, count, "tma_store", line);
  auto* from = static_cast<const unsigned char*>(shared);
  const int warp = me().thread / 32, bytes = int(tile_bytes(map));
  const uint32_t clock = ++store_clocks[warp];
  for (int i = 0; i < bytes; i += 16) read_async(from + i, 16, kStores + warp, clock, "tma_store", line);
  pieces(map, at, [&](int64_t, const unsigned char* to, int size) {
    if (to) access_global(to, size, true, "tma_store", line);
  });
  Store store{from, map, {}, line, store_groups[me().thread], me().thread, clock};
  std::memcpy(store.at, at, sizeof at);
  stores.push_back(store);
}

// The thread goes on when at most `groups` of its stores still read shared memory.
void tma_store_wait(int groups, int line) {
  (void)line;
  const int self = me().thread, writer = kStores + self / 32;
  std::vector<Store> kept;
  for (const Store& store : stores) {
    const bool due = store.thread == self && store.group < store_groups[self] - groups;
    if (due) {
      happen(store);
      me().seen[writer] = std::max(me().seen[writer], store.clock);
    } else {
      kept.push_back(store);
    }
  }
  stores = kept;
}

void finish_stores(Fiber& fiber) {
  std::vector<Store> kept;
  for (const Store& store : stores) {
    if (store.thread == fiber.thread) happen(store);
    else kept.push_back(store);
  }
  stores = kept;
}

bool background_work() {
  if (loads.empty()) return false;
  take_one(loads);
  return true;
}

void reset_background() {
  loads.clear();
  stores.clear();
  std::memset(store_groups, 0, sizeof store_groups);
  std::memset(store_clocks, 0, sizeof store_clocks);
}
}  // namespace tw::emu

void tw::tma_store_commit() { ++emu::store_groups[emu::me().thread]; }

void tw::bulk_load(void* shared, const void* global, int bytes, void* bar, int line) {
  using namespace emu;
  Mbarrier& counter = mbarrier_at(bar, "bulk_load", line);
  auto* to = static_cast<unsigned char*>(shared);
  if (bytes <= 0 || bytes % 16 || (to - shared_base) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    fail(kAlignment, line, 0, "bulk_load of %d bytes to byte %ld of shared memory: both, and the source, are multiples of 16",
         bytes, long(to - shared_base));
  access_global(global, bytes, false, "bulk_load", line);
  claim(to, bytes, writer_of(counter), "bulk_load", line);
  loads.push_back({to, static_cast<const unsigned char*>(global), {}, {}, bytes, line, &counter});
}

void tw::fence_async() {
  emu::Fiber& fiber = emu::me();
  fiber.fenced = fiber.clock++;
}
