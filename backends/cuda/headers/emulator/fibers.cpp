// Fibers, the schedule, and the launch of a grid.
#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <map>

#include "emulator.h"

#if defined(__x86_64__) && !defined(TW_UCONTEXT)
#define TW_OWN_SWITCH 1
#else
#define TW_OWN_SWITCH 0
#include <ucontext.h>
#endif

namespace tw::emu {

Block block_state;
Launch* launch_state;

namespace {
constexpr size_t kStackBytes = 256 << 10, kGuardBytes = 4096;
uint64_t random_state;
void* main_stack_pointer;
void (*kernel_call)(void**);
std::vector<uint32_t> seen_storage;

uint64_t random_word() {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}
}  // namespace

uint32_t random_below(uint32_t bound) { return uint32_t((random_word() >> 32) * bound >> 32); }

// ---- switching ----------------------------------------------------------------------------------
[[noreturn]] void fiber_main();

#if TW_OWN_SWITCH
// Saves what a call keeps (rbx, rbp, r12-r15) on the stack; swapcontext would make a system call.
extern "C" void tw_switch(void** from, void* to);
asm(R"(
.text
.globl tw_switch
.type tw_switch,@function
tw_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tw_switch,.-tw_switch
)");

static void prepare(Fiber& fiber) {
  // As if tw_switch had been called at fiber_main's first instruction: the stack is then 8 mod 16.
  auto** top = reinterpret_cast<void**>(fiber.stack + kStackBytes);
  top -= 2;
  *top = reinterpret_cast<void*>(&fiber_main);
  fiber.stack_pointer = top - 6;
}
#else
static ucontext_t* context(void* pointer) { return static_cast<ucontext_t*>(pointer); }
static ucontext_t contexts[kMaxThreads + 1];
static void tw_switch(void** from, void* to) { swapcontext(context(*from), context(to)); }
static void prepare(Fiber& fiber) {
  main_stack_pointer = &contexts[kMaxThreads];
  fiber.stack_pointer = &contexts[fiber.thread];
  getcontext(context(fiber.stack_pointer));
  context(fiber.stack_pointer)->uc_stack.ss_sp = fiber.stack;
  context(fiber.stack_pointer)->uc_stack.ss_size = kStackBytes;
  makecontext(context(fiber.stack_pointer), reinterpret_cast<void (*)()>(&fiber_main), 0);
}
#endif

static unsigned char* new_stack() {
  void* memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  mprotect(memory, kGuardBytes, PROT_NONE);
  return static_cast<unsigned char*>(memory) + kGuardBytes;
}

// ---- errors -------------------------------------------------------------------------------------
std::string who(int writer) {
  if (writer < kMaxThreads) return "thread " + std::to_string(writer);
  if (writer < kCores) return "a copy that mbarrier number " + std::to_string(writer - kMaxThreads) + " counts";
  if (writer < kStores) return "a product (wgmma) of warp " + std::to_string(writer - kCores);
  return "a store (tma_store) of warp " + std::to_string(writer - kStores);
}

static void record(Fault fault, int line, int other_line, const std::string& text) {
  launch_state->fault = fault;
  launch_state->line = line;
  launch_state->other_line = other_line;
  std::snprintf(launch_state->text, size_t(launch_state->text_bytes), "%s", text.c_str());
}

static std::string formatted(const char* format, va_list values) {
  char text[2048];
  std::vsnprintf(text, sizeof text, format, values);
  return text;
}

void fail(Fault fault, int line, int other_line, const char* format, ...) {
  va_list values;
  va_start(values, format);
  const std::string text = formatted(format, values);
  va_end(values);
  char front[256];
  std::snprintf(front, sizeof front, "kernel %s, block %d, thread %d (warp %d, lane %d), line %d: ",
                block_state.kernel, block_state.number, me().thread, me().thread / 32,
                me().thread % 32, line);
  record(fault, line, other_line, front + text);
  void* nowhere = me().stack_pointer;
  tw_switch(&nowhere, main_stack_pointer);
  __builtin_unreachable();
}

// "threads 0-31, 64-95 wait at barrier in line 12; thread 32 waits at …"
static std::string waiting_places() {
  std::map<std::pair<int, std::string>, std::vector<int>> places;
  for (const Fiber& fiber : block_state.fibers)
    if (fiber.state == kWaiting) places[{fiber.place.line, fiber.place.what}].push_back(fiber.thread);
  std::string text;
  for (const auto& [place, threads] : places) {
    text += text.empty() ? "" : "; ";
    text += threads.size() > 1 ? "threads " : "thread ";
    for (size_t i = 0, end; i < threads.size(); i = end) {
      for (end = i + 1; end < threads.size() && threads[end] == threads[end - 1] + 1;) ++end;
      if (i) text += ", ";
      text += std::to_string(threads[i]);
      if (end > i + 1) text += "-" + std::to_string(threads[end - 1]);
    }
    text += " at " + place.second + " in line " + std::to_string(place.first);
  }
  return text;
}

static void record_deadlock() {
  int line = 0;
  for (const Fiber& fiber : block_state.fibers)
    if (fiber.state == kWaiting) line = fiber.place.line;
  record(kDeadlock, line, 0,
         "kernel " + std::string(block_state.kernel) + ", block " +
             std::to_string(block_state.number) + ": nobody can go on (" +
             std::to_string(block_state.exited) + " threads have ended): " + waiting_places() + mbarriers_waited_for());
}

// ---- the schedule -------------------------------------------------------------------------------
// The next ready thread, or null when the block has ended or nobody can go on.
static Fiber* draw() {
  Block& b = block_state;
  while (random_below(4) == 0 && background_work()) {
  }
  while (b.ready.empty() && background_work()) {
  }
  if (b.ready.empty()) return nullptr;
  const uint32_t i = random_below(uint32_t(b.ready.size()));
  Fiber* chosen = b.ready[i];
  b.ready[i] = b.ready.back();
  b.ready.pop_back();
  return chosen;
}

static void go_on(Fiber& from) {
  Fiber* next = draw();
  if (next == &from) return;
  if (!next && block_state.exited < block_state.threads) record_deadlock();
  block_state.current = next;
  tw_switch(&from.stack_pointer, next ? next->stack_pointer : main_stack_pointer);
}

void wait_at(const char* what, int line) {
  Fiber& fiber = me();
  some_copies(fiber);
  fiber.state = kWaiting;
  fiber.place = {what, line};
  go_on(fiber);
}

void wake(Fiber& fiber) {
  fiber.state = kReady;
  block_state.ready.push_back(&fiber);
}

void fiber_main() {
  kernel_call(launch_state->arguments);
  Fiber& fiber = me();
  finish_copies(fiber);
  finish_stores(fiber);
  exit_from_warp(fiber);
  exit_from_barriers(fiber);
  fiber.state = kExited;
  ++block_state.exited;
  go_on(fiber);
  __builtin_unreachable();
}

static void run_block(int number) {
  Block& b = block_state;
  b.number = number;
  b.exited = 0;
  b.base = 1;
  b.ready.clear();
  seen_storage.assign(size_t(b.threads) * kClocks, 0);
  for (int i = 0; i < b.threads; ++i) {
    Fiber& fiber = b.fibers[size_t(i)];
    fiber.thread = i;
    fiber.clock = b.base;
    fiber.fenced = 0;
    fiber.seen = &seen_storage[size_t(i) * kClocks];
    fiber.group = 0;
    fiber.copies.clear();
    prepare(fiber);
    wake(fiber);
  }
  reset_shared(false);
  reset_global(false);
  reset_warps();
  reset_barriers();
  reset_background();
  reset_mbarriers();
  reset_wgmma();
  b.current = draw();
  tw_switch(&main_stack_pointer, b.current->stack_pointer);
}

static bool usable(const Launch& launch, const char* name, int threads) {
  char text[256] = "";
  if (launch.threads != threads)
    std::snprintf(text, sizeof text, "kernel %s is made for %d threads, launched with %d", name,
                  threads, launch.threads);
  else if (threads < 32 || threads > kMaxThreads || threads % 32)
    std::snprintf(text, sizeof text, "kernel %s: %d threads; 32 to 1024, a multiple of 32", name, threads);
  else if (launch.grid < 0 || launch.shared_bytes < 0 || launch.shared_bytes > 227 * 1024)
    std::snprintf(text, sizeof text, "kernel %s: grid %d with %ld bytes of shared memory (at most %d)",
                  name, launch.grid, long(launch.shared_bytes), 227 * 1024);
  if (text[0]) record(kUsage, 0, 0, text);
  return !text[0];
}

int launch(Launch* launch, const char* name, int threads, void (*call)(void**)) {
  launch_state = launch;
  launch->fault = kNone;
  launch->matrices = launch->conflicts = 0;
  if (!usable(*launch, name, threads)) return launch->fault;
  Block& b = block_state;
  b.kernel = name;
  b.grid = launch->grid;
  b.threads = threads;
  kernel_call = call;
  random_state = launch->seed;
  if (b.fibers.size() < size_t(threads)) b.fibers.resize(size_t(threads));
  if (b.fibers.size() > size_t(threads)) {
    for (size_t i = size_t(threads); i < b.fibers.size(); ++i)
      if (b.fibers[i].stack) munmap(b.fibers[i].stack - kGuardBytes, kStackBytes + kGuardBytes);
    b.fibers.resize(size_t(threads));
  }
  for (Fiber& fiber : b.fibers)
    if (!fiber.stack && !(fiber.stack = new_stack())) {
      record(kUsage, 0, 0, "out of memory for the stacks of emulated threads");
      return launch->fault;
    }
  reset_shared(true);
  reset_global(true);
  std::vector<int> order(size_t(b.grid));
  for (int i = 0; i < b.grid; ++i) order[size_t(i)] = i;
  for (int i = b.grid; i > 1; --i) std::swap(order[size_t(i - 1)], order[random_below(uint32_t(i))]);
  for (int i = 0; i < b.grid && launch->fault == kNone; ++i) run_block(order[size_t(i)]);
  return launch->fault;
}

int thread() { return me().thread; }
int block() { return block_state.number; }
int grid() { return block_state.grid; }
}  // namespace tw::emu
