// Shared memory: who wrote each byte last, who has read it since, and whether a copy is on its way
// there. 16 bytes at a multiple of 16 share one cell until a smaller access splits them.
// Global memory: extents, alignment, and which block wrote a byte.
#include <sys/mman.h>

#include <algorithm>

#include "emulator.h"

namespace tw::emu {

unsigned char* shared_base;
int64_t shared_bytes;

namespace {
constexpr int kMostShared = 256 << 10;

struct Stamp {  // an access: clock 0 means none
  uint32_t clock;
  uint16_t writer, line;
};

struct Cell {
  Stamp write;
  Stamp reads[4];
  int32_t more;    // 1 + the index of a set of further readers
  bool in_flight;  // the write is a copy that its thread has not yet waited for
};

struct Granule {
  Cell whole;
  int32_t split;  // 1 + the index of 16 cells
};

struct Readers {  // the clock of each thread's last read
  std::vector<uint32_t> clocks;
  int line;
};

struct Sixteen { Cell cells[16]; };

std::vector<Granule> granules;
std::vector<Sixteen> splits;
std::vector<Readers> reader_sets;
std::vector<int32_t> free_sets, free_splits;

struct Access {
  const char* what;
  int bytes, line, writer;  // writer: who does it
  uint32_t clock;
  bool write, in_flight;
};

bool known(const Stamp& s) { return s.clock && !ordered(s.writer, s.clock); }

[[noreturn]] void report_race(const Access& access, int64_t byte, const Stamp& other, bool other_writes,
                              bool in_flight) {
  const std::string whose = other.writer < kMaxThreads ? "the copy that " + who(other.writer)
                                                       : who(other.writer) + " and that was";
  if (in_flight)
    fail(kRace, access.line, other.line,
         "%s of %d bytes touches byte %ld of shared memory, where %s began in line %d has not been "
         "waited for", access.what, access.bytes, long(byte), whose.c_str(), other.line);
  fail(kRace, access.line, other.line,
       "%s %s byte %ld of shared memory, which %s %s in line %d, with nothing between that orders them",
       access.what, access.write ? "writes" : "reads", long(byte), who(other.writer).c_str(),
       other_writes ? "wrote" : "read", other.line);
}

// Threads first, then what goes on in the background.
int index_of(int writer) {
  return writer < kMaxThreads ? writer : writer - kMaxThreads + block_state.threads;
}
int at_index(int i) { return i < block_state.threads ? i : i - block_state.threads + kMaxThreads; }
int indices() { return block_state.threads + kClocks - kMaxThreads; }

// Readers beyond the four of a cell.
Readers& further(Cell& cell) {
  if (!cell.more) {
    if (free_sets.empty()) {
      reader_sets.emplace_back();
      free_sets.push_back(int32_t(reader_sets.size()));
    }
    cell.more = free_sets.back();
    free_sets.pop_back();
    reader_sets[size_t(cell.more - 1)].clocks.assign(size_t(indices()), 0);
  }
  return reader_sets[size_t(cell.more - 1)];
}

void check_readers(const Cell& cell, const Access& access, int64_t byte) {
  for (const Stamp& read : cell.reads)
    if (known(read)) report_race(access, byte, read, false, false);
  if (!cell.more) return;
  const Readers& set = reader_sets[size_t(cell.more - 1)];
  for (int i = 0; i < indices(); ++i)
    if (const uint32_t clock = set.clocks[size_t(i)]; clock && !ordered(at_index(i), clock))
      report_race(access, byte, {clock, uint16_t(at_index(i)), uint16_t(set.line)}, false, false);
}

void note_read(Cell& cell, const Access& access) {
  const Stamp stamp{access.clock, uint16_t(access.writer), uint16_t(access.line)};
  for (Stamp& read : cell.reads)
    if (!read.clock || read.writer == access.writer || ordered(read.writer, read.clock)) {
      read = stamp;
      return;
    }
  Readers& set = further(cell);
  set.clocks[size_t(index_of(access.writer))] = access.clock;
  set.line = access.line;
}

void touch(Cell& cell, const Access& access, int64_t byte) {
  if (cell.in_flight) report_race(access, byte, cell.write, true, true);
  if (!access.write && !cell.write.clock)
    fail(kUninitialised, access.line, 0, "%s of %d bytes reads byte %ld of shared memory, which nobody has written",
         access.what, access.bytes, long(byte));
  if (known(cell.write)) report_race(access, byte, cell.write, true, false);
  if (!access.write) return note_read(cell, access);
  check_readers(cell, access, byte);
  if (cell.more) free_sets.push_back(cell.more);
  cell = {};
  cell.write = {access.clock, uint16_t(access.writer), uint16_t(access.line)};
  cell.in_flight = access.in_flight;
}

Sixteen& split(Granule& granule) {
  if (granule.split) return splits[size_t(granule.split - 1)];
  if (free_splits.empty()) {
    splits.emplace_back();
    free_splits.push_back(int32_t(splits.size()));
  }
  granule.split = free_splits.back();
  free_splits.pop_back();
  Sixteen& parts = splits[size_t(granule.split - 1)];
  std::fill(std::begin(parts.cells), std::end(parts.cells), granule.whole);
  // A set of readers belongs to one cell: the first keeps it, the others get copies.
  for (int i = 1; granule.whole.more && i < 16; ++i) {
    parts.cells[i].more = 0;
    Readers& copy = further(parts.cells[i]);
    copy = reader_sets[size_t(granule.whole.more - 1)];
  }
  return parts;
}

// Calls f(cell, byte offset) for all cells of a range that has been checked.
template <class F>
void cells(int64_t offset, int bytes, F f) {
  for (int64_t at = offset; at < offset + bytes;) {
    Granule& granule = granules[size_t(at / 16)];
    if (at % 16 == 0 && offset + bytes - at >= 16 && !granule.split) {
      f(granule.whole, at);
      at += 16;
      continue;
    }
    Sixteen& parts = split(granule);
    const int64_t end = std::min(offset + bytes, at / 16 * 16 + 16);
    for (; at < end; ++at) f(parts.cells[at % 16], at);
  }
}

// After a write of whole granules they are one cell each again.
void unite(int64_t offset, int bytes) {
  for (int64_t at = (offset + 15) / 16 * 16; at + 16 <= offset + bytes; at += 16) {
    Granule& granule = granules[size_t(at / 16)];
    if (!granule.split) continue;
    granule.whole = splits[size_t(granule.split - 1)].cells[0];
    free_splits.push_back(granule.split);
    granule.split = 0;
  }
}

void access_shared(const void* address, const Access& access) {
  const int64_t offset = shared_offset(address, access.bytes, access.what, access.line);
  cells(offset, access.bytes, [&](Cell& cell, int64_t byte) { touch(cell, access, byte); });
  if (access.write) unite(offset, access.bytes);
}
}  // namespace

int64_t shared_offset(const void* address, int bytes, const char* what, int line) {
  const int64_t offset = static_cast<const unsigned char*>(address) - shared_base;
  if (offset < 0 || offset + bytes > shared_bytes)
    fail(kBounds, line, 0, "%s of %d bytes at byte %ld of shared memory, which has %ld bytes", what,
         bytes, long(offset), long(shared_bytes));
  if (bytes <= 16 && offset % bytes)
    fail(kAlignment, line, 0, "%s of %d bytes at byte %ld of shared memory, not a multiple of %d",
         what, bytes, long(offset), bytes);
  return offset;
}

void read_shared(const void* address, int bytes, const char* what, int line) {
  access_shared(address, {what, bytes, line, me().thread, me().clock, false, false});
}

void write_shared(void* address, int bytes, const char* what, int line) {
  access_shared(address, {what, bytes, line, me().thread, me().clock, true, false});
}

// The landing zone of a copy: nobody may touch it until `land`.
void claim(unsigned char* shared, int bytes, int writer, const char* what, int line) {
  access_shared(shared, {what, bytes, line, writer, me().clock, true, true});
}

void land(unsigned char* shared, int bytes, int writer, uint32_t clock, int line) {
  cells(shared - shared_base, bytes, [&](Cell& cell, int64_t) {
    cell.in_flight = false;
    cell.write = {clock, uint16_t(writer), uint16_t(line)};
  });
}

void read_async(const unsigned char* shared, int bytes, int reader, uint32_t clock, const char* what,
                int line) {
  const Access access{what, bytes, line, reader, clock, false, false};
  cells(shared_offset(shared, bytes, what, line), bytes, [&](Cell& cell, int64_t byte) {
    touch(cell, access, byte);
    const Stamp& write = cell.write;
    if (write.writer < kMaxThreads && block_state.fibers[write.writer].fenced < write.clock)
      fail(kRace, line, write.line,
           "%s reads byte %ld of shared memory, which thread %d wrote in line %d without fence_async() after it",
           what, long(byte), int(write.writer), int(write.line));
  });
}

void must_know(const unsigned char* shared, int bytes, const char* what, int line) {
  const Access access{what, bytes, line, me().thread, me().clock, false, false};
  cells(shared_offset(shared, bytes, what, line), bytes, [&](Cell& cell, int64_t byte) {
    if (known(cell.write)) report_race(access, byte, cell.write, true, false);
  });
}

void reset_shared(bool everything) {
  if (!shared_base) {
    void* memory = mmap(nullptr, kMostShared + 4096, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    shared_base = static_cast<unsigned char*>(memory);
  }
  if (everything) {
    shared_bytes = launch_state->shared_bytes;
    granules.resize(size_t(shared_bytes + 15) / 16);
  }
  // NaN in every float format, so that a value read too early shows in results as well.
  std::memset(shared_base, 0xff, size_t(shared_bytes));
  std::memset(static_cast<void*>(granules.data()), 0, granules.size() * sizeof(Granule));
  splits.clear();
  free_splits.clear();
  free_sets.clear();
  reader_sets.clear();
}

unsigned char* shared_memory(long bytes, int line) {
  if (bytes > shared_bytes)
    fail(kUsage, line, 0, "the kernel asks for %ld bytes of shared memory, the launch gives %ld",
         bytes, long(shared_bytes));
  return shared_base;
}

// ---- global memory ------------------------------------------------------------------------------
// Blocks run one after the other here, in a random order, and at once on the device: what one has
// written another may touch only if both have met at a counter (atomic_add).
static std::vector<std::vector<int32_t>> writers;  // per array and byte: 1 + the block
static std::vector<char> released;                 // blocks that have added to a counter
static bool acquired;                              // whether this one has

void reset_global(bool everything) {
  acquired = false;
  if (!everything) return;
  writers.assign(size_t(launch_state->buffer_count), {});
  released.assign(size_t(launch_state->grid), 0);
}

static int buffer_of(const void* address, int bytes, const char* what, int line) {
  auto* at = static_cast<const unsigned char*>(address);
  const Launch& launch = *launch_state;
  int nearest = -1;
  int64_t least = INT64_MAX;
  for (int i = 0; i < launch.buffer_count; ++i) {
    const Buffer& buffer = launch.buffers[i];
    const int64_t offset = at - buffer.base;
    if (offset >= 0 && offset + bytes <= buffer.bytes) return i;
    const int64_t away = offset < 0 ? -offset : offset - buffer.bytes;
    if (away < least) least = away, nearest = i;
  }
  if (nearest < 0) fail(kBounds, line, 0, "%s of %d bytes in global memory, where there is no array", what, bytes);
  fail(kBounds, line, 0, "%s of %d bytes at byte %ld of global array %d, which has %ld bytes", what,
       bytes, long(at - launch.buffers[nearest].base), nearest, long(launch.buffers[nearest].bytes));
}

void access_global(const void* address, int bytes, bool write, const char* what, int line) {
  const int i = buffer_of(address, bytes, what, line);
  const Buffer& buffer = launch_state->buffers[i];
  const int64_t offset = static_cast<const unsigned char*>(address) - buffer.base;
  if (bytes <= 16 && offset % bytes)
    fail(kAlignment, line, 0, "%s of %d bytes at byte %ld of global array %d, not a multiple of %d",
         what, bytes, long(offset), i, bytes);
  std::vector<int32_t>& by = writers[size_t(i)];
  if (by.empty() && !write) return;
  if (by.empty()) by.assign(size_t(buffer.bytes), 0);
  const int32_t self = block_state.number + 1;
  for (int64_t byte = offset; byte < offset + bytes; ++byte) {
    int32_t& other = by[size_t(byte)];
    if (other && other != self && !(acquired && released[size_t(other - 1)]))
      fail(kRace, line, 0, "%s %s byte %ld of global array %d, which block %d wrote", what,
           write ? "writes" : "reads", long(byte), i, other - 1);
    if (write) other = self;
  }
}

void read_global(const void* address, int bytes, const char* what, int line) {
  access_global(address, bytes, false, what, line);
}

void write_global(void* address, int bytes, const char* what, int line) {
  access_global(address, bytes, true, what, line);
}

static void count(const void* address, int line) {
  acquired = true;
  released[size_t(block_state.number)] = 1;
  const int i = buffer_of(address, 4, "atomic_add", line);
  if ((static_cast<const unsigned char*>(address) - launch_state->buffers[i].base) % 4)
    fail(kAlignment, line, 0, "atomic_add at an address that is no multiple of 4 bytes, in global array %d", i);
}
}  // namespace tw::emu

int tw::atomic_add(int* address, int value, int line) {
  emu::count(address, line);
  const int before = *address;
  *address = before + value;
  return before;
}
