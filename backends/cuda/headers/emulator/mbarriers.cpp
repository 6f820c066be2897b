// mbarriers: a phase ends when all arrivals have come and all expected bytes have been copied. Who
// waits for it has then seen what those who arrived had done, and the copies.
#include "emulator.h"

namespace tw::emu {

struct Mbarrier {
  const unsigned char* address;
  int index, count, missing, parity;  // arrivals of the phase still to come
  int64_t bytes;                      // expected and not yet there; copies may be first
  uint32_t copies;                    // clock of what it counts
  Clocks arriving, done;
  std::vector<Fiber*> waiting;
};

namespace {
std::vector<Mbarrier> all;

void end_of_phase(Mbarrier& bar) {
  if (bar.missing || bar.bytes) return;
  bar.parity ^= 1;
  bar.missing = bar.count;
  bar.done = bar.arriving;  // cumulative: later phases have seen the earlier ones
  for (Fiber* fiber : bar.waiting) {
    acquire(*fiber, bar.done);
    wake(*fiber);
  }
  bar.waiting.clear();
}

void arrive(void* address, int bytes, const char* what, int line) {
  Mbarrier& bar = mbarrier_at(address, what, line);
  if (!bar.missing)  // the phase waits for bytes only
    fail(kDivergence, line, 0, "%s, one more than the %d arrivals that mbarrier number %d takes a phase",
         what, bar.count, bar.index);
  release(bar.arriving);
  bar.bytes += bytes;
  --bar.missing;
  end_of_phase(bar);
}
}  // namespace

Mbarrier& mbarrier_at(const void* address, const char* what, int line) {
  auto* at = static_cast<const unsigned char*>(address);
  must_know(at, 8, what, line);
  for (Mbarrier& bar : all)
    if (bar.address == at) return bar;
  fail(kUninitialised, line, 0, "%s at byte %ld of shared memory, where no mbarrier is", what,
       long(at - shared_base));
}

// What those that somebody waits for still lack.
std::string mbarriers_waited_for() {
  std::string text;
  for (const Mbarrier& bar : all)
    if (!bar.waiting.empty())
      text += "; mbarrier number " + std::to_string(bar.index) + ", in a phase of parity " +
              std::to_string(bar.parity) + ", lacks " + std::to_string(bar.missing) + " of " +
              std::to_string(bar.count) + " arrivals and " + std::to_string(bar.bytes) + " bytes";
  return text;
}

int writer_of(const Mbarrier& bar) { return kMaxThreads + bar.index; }

void copied(Mbarrier& bar, unsigned char* shared, int bytes, int line) {
  if (bar.arriving.seen.empty()) bar.arriving.seen.assign(kClocks, 0);
  bar.arriving.seen[size_t(writer_of(bar))] = ++bar.copies;
  land(shared, bytes, writer_of(bar), bar.copies, line);
  bar.bytes -= bytes;
  end_of_phase(bar);
}

void reset_mbarriers() { all.clear(); }
}  // namespace tw::emu

void tw::mbarrier_init(void* bar, int count, int line) {
  using namespace emu;
  auto* at = static_cast<unsigned char*>(bar);
  write_shared(bar, 8, "mbarrier_init", line);
  if (all.empty()) all.reserve(kMbarriers);  // references stay good
  if (all.size() == kMbarriers || count < 1)
    fail(kUsage, line, 0, "mbarrier_init for %d arrivals; the emulation has %d mbarriers", count, kMbarriers);
  all.push_back({at, int(all.size()), count, count, 0, 0, 0, {}, {}, {}});
}

void tw::mbarrier_arrive(void* bar, int line) { emu::arrive(bar, 0, "mbarrier_arrive", line); }

void tw::mbarrier_arrive_expect(void* bar, int bytes, int line) {
  emu::arrive(bar, bytes, "mbarrier_arrive_expect", line);
}

void tw::mbarrier_wait(void* address, int parity, int line) {
  using namespace emu;
  Mbarrier& bar = mbarrier_at(address, "mbarrier_wait", line);
  if (bar.parity != (parity & 1)) return acquire(me(), bar.done);
  bar.waiting.push_back(&me());
  wait_at("mbarrier_wait", line);
}
