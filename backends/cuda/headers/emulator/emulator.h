// The state of the emulated block, shared by the files beside this one. A block's threads are fibers
// of one OS thread: each runs until it has to wait, then a ready one drawn at random goes on. The
// first error ends the launch: its text is kept, the fibers are abandoned where they are.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../tilewright_host.h"

namespace tw::emu {

constexpr int kMaxThreads = 1024;
constexpr int kBarriers = 16;    // hardware barriers of a block
constexpr int kMbarriers = 64;   // mbarriers of a block (a limit of the emulation)
// Who reads and writes, each with a clock: threads; copies, by the mbarrier that counts them; and per
// warp, what the tensor cores and stores in the background read.
constexpr int kCores = kMaxThreads + kMbarriers, kStores = kCores + kMaxThreads / 32;
constexpr int kClocks = kStores + kMaxThreads / 32;

// The numbers are known to host.py.
enum Fault { kNone, kRace, kUninitialised, kBounds, kAlignment, kDivergence, kDeadlock, kUsage };

struct Buffer {  // an array in global memory that the kernel may touch
  unsigned char* base;
  int64_t bytes;
};

struct Launch {  // one call of host.py; the last fields are the answer
  int32_t grid, threads;
  int64_t shared_bytes;
  uint64_t seed;
  void** arguments;
  Buffer* buffers;
  int32_t buffer_count;
  int32_t fault, line, other_line;
  char* text;
  int64_t text_bytes;
  int64_t matrices, conflicts;  // 8 × 8 matrices read or written, and rounds beyond one each
};

// A point in the kernel where a thread is or was.
struct Place {
  const char* what = "";
  int line = 0;
};

struct Copy {  // a cp.async on its way
  unsigned char* shared;
  const unsigned char* global;  // null: zeros
  int bytes, line, group;
  bool done;
};

enum State { kReady, kWaiting, kExited };

struct Fiber {
  void* stack_pointer;
  unsigned char* stack = nullptr;
  int thread;
  State state;
  Place place;             // where it waits
  uint32_t clock;          // of its own accesses; grows at each release
  uint32_t fenced;         // its clock at the last fence.proxy.async, + 1
  uint32_t* seen;          // per writer, the clock up to which this thread has seen it
  int group;               // cp.async groups committed
  std::vector<Copy> copies;
};

struct Block {
  const char* kernel;
  int number, grid, threads;
  uint32_t base;           // what was done before this clock is ordered before everything now
  std::vector<Fiber> fibers;
  Fiber* current;
  std::vector<Fiber*> ready;
  int exited;
};

extern Block block_state;
extern Launch* launch_state;

// ---- fibers.cpp ---------------------------------------------------------------------------------
uint32_t random_below(uint32_t bound);
inline Fiber& me() { return *block_state.current; }
void wait_at(const char* what, int line);      // until somebody makes it ready
void wake(Fiber& fiber);
// Ends the launch with an error; the text gets kernel, block, thread and line in front.
[[noreturn]] void fail(Fault fault, int line, int other_line, const char* format, ...)
    __attribute__((format(printf, 4, 5)));
std::string who(int writer);  // "thread 5", "the copy that mbarrier number 2 counts"

// ---- order.cpp: what happened before what -------------------------------------------------------
struct Clocks {  // of a synchronisation object
  std::vector<uint32_t> seen;
};
void release(Clocks& into);        // the thread's past goes into the object
void acquire(Fiber& fiber, const Clocks& from);  // the object's past becomes the thread's
void forget(Clocks& clocks);
void everything_ordered();         // at a barrier of the whole block
bool ordered(int writer, uint32_t clock);

// ---- memory.cpp ---------------------------------------------------------------------------------
extern unsigned char* shared_base;
extern int64_t shared_bytes;
void reset_shared(bool everything);
int64_t shared_offset(const void* address, int bytes, const char* what, int line);
void land(unsigned char* shared, int bytes, int writer, uint32_t clock, int line);
void claim(unsigned char* shared, int bytes, int writer, const char* what, int line);
// A read by a tensor core or a store in the background, at most 16 bytes: the writer must have fenced.
void read_async(const unsigned char* shared, int bytes, int reader, uint32_t clock, const char* what, int line);
// That what was written there is known to this thread.
void must_know(const unsigned char* shared, int bytes, const char* what, int line);
void access_global(const void* address, int bytes, bool write, const char* what, int line);
void reset_global(bool everything);

// ---- copies.cpp ---------------------------------------------------------------------------------
void some_copies(Fiber& fiber);    // lets some of the thread's copies happen now
void finish_copies(Fiber& fiber);

// ---- warp.cpp, barriers.cpp: a thread's exit, and a new block -----------------------------------
void exit_from_warp(Fiber& fiber);
void exit_from_barriers(Fiber& fiber);
void reset_warps();
void reset_barriers();

// What the threads of a warp do together: each gives a pointer; the last to come runs `all` with the
// 32 pointers. Lanes that do something else meanwhile are an error.
void together(const char* what, int line, void* mine, void (*all)(void* const* lanes), int threads = 32);

// ---- tensor.cpp (sm_90a): background work that no thread carries out ------------------------------
bool background_work();            // does one piece at random; false if there is none
void reset_background();
void finish_stores(Fiber& fiber);

// ---- mbarriers.cpp --------------------------------------------------------------------------------
struct Mbarrier;
Mbarrier& mbarrier_at(const void* address, const char* what, int line);
int writer_of(const Mbarrier& bar);
void copied(Mbarrier& bar, unsigned char* shared, int bytes, int line);  // bytes have come
std::string mbarriers_waited_for();
void reset_mbarriers();

// ---- wgmma.cpp ------------------------------------------------------------------------------------
void reset_wgmma();
}  // namespace tw::emu
