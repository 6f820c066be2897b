// cp.async: each copy happens at a random moment between its issue and the wait for its group.
#include "emulator.h"

namespace tw::emu {

static void happen(Copy& copy) {
  if (copy.done) return;
  copy.done = true;
  if (copy.global) std::memcpy(copy.shared, copy.global, size_t(copy.bytes));
  else std::memset(copy.shared, 0, size_t(copy.bytes));
}

void some_copies(Fiber& fiber) {
  for (Copy& copy : fiber.copies)
    if (random_below(4) == 0) happen(copy);
}

void finish_copies(Fiber& fiber) {
  for (Copy& copy : fiber.copies) happen(copy);
}

void copy_async(void* shared, const void* global, int bytes, bool in_range, int line) {
  Fiber& fiber = me();
  if (in_range) read_global(global, bytes, "copy_async", line);
  auto* to = static_cast<unsigned char*>(shared);
  claim(to, bytes, fiber.thread, "copy_async", line);
  auto* from = static_cast<const unsigned char*>(in_range ? global : nullptr);
  fiber.copies.push_back({to, from, bytes, line, fiber.group, false});
  if (random_below(3) == 0) happen(fiber.copies.back());
}

void wait(int groups, int line) {
  (void)line;
  Fiber& fiber = me();
  size_t kept = 0;
  for (Copy& copy : fiber.copies) {
    if (copy.group < fiber.group - groups) {
      happen(copy);
      land(copy.shared, copy.bytes, fiber.thread, fiber.clock, copy.line);
    } else {
      fiber.copies[kept++] = copy;
    }
  }
  fiber.copies.resize(kept);
}
}  // namespace tw::emu

void tw::commit(int line) {
  (void)line;
  ++emu::me().group;
}
