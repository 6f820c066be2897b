// Barriers of the block (bar.sync, bar.arrive): who is missing is an error as soon as it is certain.
#include "emulator.h"

namespace tw::emu {
namespace {
struct Barrier {
  int arrived, expected, line;
  int of_warp[kMaxThreads / 32];  // arrivals
  Clocks clocks;
  std::vector<Fiber*> waiting;
};
Barrier barriers[kBarriers];
const char* const kWhole = "barrier";

void clear(Barrier& barrier) {
  barrier.arrived = barrier.expected = 0;
  std::memset(barrier.of_warp, 0, sizeof barrier.of_warp);
  barrier.waiting.clear();
}

void whole_block(int line) {
  Barrier& barrier = barriers[0];
  Block& b = block_state;
  if (b.exited)
    fail(kDivergence, line, 0, "waits at a barrier of the whole block, but %d of its %d threads have ended",
         b.exited, b.threads);
  if (barrier.expected)
    fail(kDivergence, line, barrier.line, "waits at a barrier of the whole block, but others meet at "
         "barrier 0 for %d threads, in line %d", barrier.expected, barrier.line);
  if (barrier.arrived && barrier.line != line)
    fail(kDivergence, line, barrier.line,
         "waits at a barrier of the whole block, but thread %d waits at another, in line %d",
         barrier.waiting[0]->thread, barrier.line);
  barrier.line = line;
  if (++barrier.arrived < b.threads) {
    barrier.waiting.push_back(&me());
    return wait_at(kWhole, line);
  }
  everything_ordered();
  for (Fiber* fiber : barrier.waiting) wake(*fiber);
  clear(barrier);
}

void named(int id, int threads, bool waits, int line) {
  if (id < 0 || id >= kBarriers || threads <= 0 || threads % 32 || threads > block_state.threads)
    fail(kUsage, line, 0, "barrier %d for %d threads: ids are 0 to 15, threads a multiple of 32 of the block's %d",
         id, threads, block_state.threads);
  Barrier& barrier = barriers[id];
  if (barrier.arrived && barrier.expected != threads)
    fail(kDivergence, line, barrier.line, "barrier %d for %d threads; in line %d it is for %d", id,
         threads, barrier.line, barrier.expected);
  if (!barrier.arrived) forget(barrier.clocks);
  barrier.expected = threads;
  barrier.line = line;
  release(barrier.clocks);
  ++barrier.of_warp[me().thread / 32];
  if (++barrier.arrived < threads) {
    if (!waits) return;
    barrier.waiting.push_back(&me());
    return wait_at("barrier", line);
  }
  for (int warp = 0; warp < block_state.threads / 32; ++warp)  // on the device whole warps are counted
    if (barrier.of_warp[warp] % 32)
      fail(kDivergence, line, 0, "barrier %d: %d of the 32 lanes of warp %d come to it", id,
           barrier.of_warp[warp] % 32, warp);
  if (waits) acquire(me(), barrier.clocks);
  for (Fiber* fiber : barrier.waiting) {
    acquire(*fiber, barrier.clocks);
    wake(*fiber);
  }
  clear(barrier);
}
}  // namespace

void exit_from_barriers(Fiber& fiber) {
  const Barrier& barrier = barriers[0];
  if (barrier.arrived && !barrier.expected)
    fail(kDivergence, barrier.line, 0,
         "ends while thread %d waits at a barrier of the whole block in line %d",
         barrier.waiting[0]->thread, barrier.line);
  (void)fiber;
}

void reset_barriers() {
  for (Barrier& barrier : barriers) {
    clear(barrier);
    forget(barrier.clocks);
  }
}
}  // namespace tw::emu

void tw::barrier(int line) { emu::whole_block(line); }
void tw::barrier(int id, int threads, int line) { emu::named(id, threads, true, line); }
void tw::barrier_arrive(int id, int threads, int line) { emu::named(id, threads, false, line); }
