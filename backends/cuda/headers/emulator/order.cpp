// What happened before what: a clock per thread and, per thread, how far it has seen the others'
// (vector clocks). An access carries its thread's clock; it is ordered before another thread's when
// that one has seen the clock. A barrier of the whole block moves `base` instead: whatever is older
// is ordered before everybody. Shuffles, mma and ldmatrix order nothing, as the PTX manual says.
#include <algorithm>

#include "emulator.h"

namespace tw::emu {

bool ordered(int writer, uint32_t clock) {
  return (clock < block_state.base && writer < kMaxThreads) || writer == me().thread ||
         me().seen[writer] >= clock;
}

static void join(uint32_t* into, const uint32_t* from) {
  for (int i = 0; i < block_state.threads; ++i) into[i] = std::max(into[i], from[i]);
  for (int i = kMaxThreads; i < kClocks; ++i) into[i] = std::max(into[i], from[i]);
}

void release(Clocks& into) {
  Fiber& fiber = me();
  fiber.seen[fiber.thread] = fiber.clock++;
  if (into.seen.empty()) into.seen.assign(kClocks, 0);
  join(into.seen.data(), fiber.seen);
}

void acquire(Fiber& fiber, const Clocks& from) {
  if (!from.seen.empty()) join(fiber.seen, from.seen.data());
}

void forget(Clocks& clocks) { std::fill(clocks.seen.begin(), clocks.seen.end(), 0); }

void everything_ordered() {
  uint32_t latest = block_state.base;
  for (const Fiber& fiber : block_state.fibers) latest = std::max(latest, fiber.clock);
  block_state.base = latest + 1;
  for (Fiber& fiber : block_state.fibers) fiber.clock = block_state.base;
  // What goes on in the background is seen by who has waited for it, and by whom they meet later.
  static uint32_t background[kClocks - kMaxThreads];
  std::fill(std::begin(background), std::end(background), 0);
  for (const Fiber& fiber : block_state.fibers)
    for (int i = kMaxThreads; i < kClocks; ++i)
      background[i - kMaxThreads] = std::max(background[i - kMaxThreads], fiber.seen[i]);
  for (Fiber& fiber : block_state.fibers)
    std::copy(std::begin(background), std::end(background), fiber.seen + kMaxThreads);
}
}  // namespace tw::emu
