// The operations of tilewright.cuh, emulated on the host: the same names in namespace tw, so that one
// kernel text compiles with g++ too. What has state (fibers, barriers, shared memory, copies) is
// compiled once (emulator/*.cpp); here are declarations, and what is pure arithmetic.
//
// A last parameter `line` is never given by kernels: it is the caller's line, for messages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define TW_HOST 1
#define TW_DEVICE static inline
#define TW_LINE int line = __builtin_LINE()

// TW_KERNEL(name, threads of a block, blocks at once on a multiprocessor)(parameters) { body }
#define TW_KERNEL(name, threads, blocks_per_sm)                      \
  static constexpr int name##_threads = threads;                     \
  static_assert((threads) % 32 == 0 && (blocks_per_sm) >= 1, #name); \
  extern "C" void name

// The block's dynamic shared memory as `unsigned char* tw_shared`, aligned to 1,024 bytes.
#define TW_SHARED(bytes) unsigned char* const tw_shared = tw::emu::shared_memory(bytes)

namespace tw {

// ---- what the emulator offers the functions below ------------------------------------------------
namespace emu {
unsigned char* shared_memory(long bytes, TW_LINE);
int thread();
int block();
int grid();
void read_shared(const void* address, int bytes, const char* what, int line);
void write_shared(void* address, int bytes, const char* what, int line);
void read_global(const void* address, int bytes, const char* what, int line);
void write_global(void* address, int bytes, const char* what, int line);
void copy_async(void* shared, const void* global, int bytes, bool in_range, int line);
void wait(int groups, int line);
uint32_t shuffle(uint32_t value, int lane, bool exclusive_or, int line);
void load_matrices(uint32_t* r, int count, bool transposed, const void* row, int line);
void store_matrices(const uint32_t* r, int count, bool transposed, void* row, int line);
void mma(int kind, void* d, const uint32_t* a, const uint32_t* b, int line);
uint32_t half_fma2(uint32_t a, uint32_t b, uint32_t c, bool bf16);
void tma_store_wait(int groups, int line);
struct Wgmma {  // one instruction; a is null where the left operand is in shared memory
  bool bf16, accumulate, transposed_a, transposed_b;
  int columns;
  const uint32_t* a;
  uint64_t descriptor_a, descriptor_b;
};
void wgmma(float* d, const Wgmma& product, int line);
void wgmma_wait(int groups, int line);

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
}  // namespace emu

// ---- places -------------------------------------------------------------------------------------
inline int thread() { return emu::thread(); }
inline int block() { return emu::block(); }
inline int grid() { return emu::grid(); }
inline int lane() { return emu::thread() & 31; }
inline int warp() { return emu::thread() >> 5; }

// ---- floats of 16 bits --------------------------------------------------------------------------
struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return emu::as_float(uint32_t(x.bits) << 16); }
inline float to_float(f16 x) {
  // Multiplying by 2^112 moves the exponent from f16's bias to f32's, subnormal numbers too.
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  uint32_t bits = emu::as_bits(emu::as_float(magnitude) * 0x1p112f);
  if ((x.bits & 0x7c00) == 0x7c00) bits = magnitude | 0x7f800000;
  return emu::as_float(bits | uint32_t(x.bits & 0x8000) << 16);
}

// Rounds to the nearest, ties to even; NaN becomes 0x7fff, as `cvt` gives it.
inline bf16 to_bf16(float x) {
  const uint32_t bits = emu::as_bits(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline f16 to_f16(float x) {
  const uint32_t bits = emu::as_bits(x), magnitude = bits & 0x7fffffff;
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return {0x7fff};
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 and above
  if (magnitude < 0x38800000) {  // below 2^-14: adding 0.5 leaves a multiple of 2^-24 in the low bits
    const uint32_t shifted = emu::as_bits(emu::as_float(magnitude) + 0.5f);
    return {uint16_t(sign | (shifted - 0x3f000000))};
  }
  return {uint16_t(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13)};
}
inline uint32_t to_tf32(float x) {  // nearest, ties away from zero: cvt.rna.tf32
  const uint32_t bits = emu::as_bits(x);
  return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & 0xffffe000;
}
inline uint32_t pack(bf16 low, bf16 high) { return low.bits | uint32_t(high.bits) << 16; }
inline uint32_t pack(f16 low, f16 high) { return low.bits | uint32_t(high.bits) << 16; }
inline uint32_t pack_bf16(float low, float high) { return pack(to_bf16(low), to_bf16(high)); }
inline uint32_t pack_f16(float low, float high) { return pack(to_f16(low), to_f16(high)); }

inline float bits_to_float(uint32_t bits) { return emu::as_float(bits); }
inline uint32_t float_to_bits(float value) { return emu::as_bits(value); }

// ---- memory -------------------------------------------------------------------------------------
// `Bytes` (4, 8, 16) that move in one instruction; addresses are multiples of it.
template <int Bytes>
struct alignas(Bytes) Vec {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  uint32_t words[Bytes / 4];
};

template <class T>
inline T global_load(const T* address, TW_LINE) {
  T value{};
  emu::read_global(address, sizeof(T), "global_load", line);
  std::memcpy(&value, address, sizeof(T));
  return value;
}
template <class T>
inline void global_store(T* address, std::type_identity_t<T> value, TW_LINE) {
  emu::write_global(address, sizeof(T), "global_store", line);
  std::memcpy(address, &value, sizeof(T));
}
template <class T>
inline T shared_load(const void* address, TW_LINE) {
  T value{};
  emu::read_shared(address, sizeof(T), "shared_load", line);
  std::memcpy(&value, address, sizeof(T));
  return value;
}
template <class T>
inline void shared_store(void* address, std::type_identity_t<T> value, TW_LINE) {
  emu::write_shared(address, sizeof(T), "shared_store", line);
  std::memcpy(address, &value, sizeof(T));
}
template <int Bytes>
inline Vec<Bytes> global_load_vec(const void* address, TW_LINE) {
  return global_load(static_cast<const Vec<Bytes>*>(address), line);
}
// Read once: on the device it leaves no copy in L1.
template <int Bytes>
inline Vec<Bytes> global_load_stream(const void* address, TW_LINE) {
  return global_load(static_cast<const Vec<Bytes>*>(address), line);
}
template <int Bytes>
inline void global_store_vec(void* address, const Vec<Bytes>& value, TW_LINE) {
  global_store(static_cast<Vec<Bytes>*>(address), value, line);
}
template <int Bytes>
inline Vec<Bytes> shared_load_vec(const void* address, TW_LINE) {
  return shared_load<Vec<Bytes>>(address, line);
}
template <int Bytes>
inline void shared_store_vec(void* address, const Vec<Bytes>& value, TW_LINE) {
  shared_store<Vec<Bytes>>(address, value, line);
}
// Adds to a counter in global memory, ordering the block's writes before and after (acq_rel, gpu);
// gives the value before.
int atomic_add(int* address, int value, TW_LINE);

// ---- copies in the background (cp.async) --------------------------------------------------------
// Zeros are written where `in_range` is false; `global` is not read then.
template <int Bytes>
inline void copy_async(void* shared, const void* global, bool in_range = true, TW_LINE) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  emu::copy_async(shared, global, Bytes, in_range, line);
}
void commit(TW_LINE);
template <int Groups>
inline void wait(TW_LINE) {  // until at most `Groups` of the thread's committed groups are on their way
  emu::wait(Groups, line);
}

// ---- waiting for each other ---------------------------------------------------------------------
void barrier(TW_LINE);
void barrier(int id, int threads, TW_LINE);        // bar.sync
void barrier_arrive(int id, int threads, TW_LINE);  // bar.arrive: counts, and goes on
void warp_barrier(TW_LINE);
inline void warp_barrier_after(float, int, TW_LINE) { warp_barrier(line); }

template <class T>
inline T shuffle_bits(T x, int lane, bool exclusive_or, int line) {
  static_assert(sizeof(T) == 4);
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits = emu::shuffle(bits, lane, exclusive_or, line);
  std::memcpy(&x, &bits, 4);
  return x;
}
template <class T>
inline T shuffle_xor(T x, int mask, TW_LINE) { return shuffle_bits(x, mask, true, line); }
template <class T>
inline T shuffle(T x, int lane, TW_LINE) { return shuffle_bits(x, lane, false, line); }
uint32_t ballot(bool value, TW_LINE);

// ---- matrices -----------------------------------------------------------------------------------
// Lane i gives the address of row i % 8 of matrix i / 8: 16 bytes, aligned to 16.
inline void ldmatrix_x1(uint32_t (&r)[1], const void* row, TW_LINE) { emu::load_matrices(r, 1, false, row, line); }
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, TW_LINE) { emu::load_matrices(r, 2, false, row, line); }
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, TW_LINE) { emu::load_matrices(r, 4, false, row, line); }
inline void ldmatrix_x1_trans(uint32_t (&r)[1], const void* row, TW_LINE) { emu::load_matrices(r, 1, true, row, line); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, TW_LINE) { emu::load_matrices(r, 2, true, row, line); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, TW_LINE) { emu::load_matrices(r, 4, true, row, line); }
inline void stmatrix_x4(void* row, const uint32_t (&r)[4], TW_LINE) { emu::store_matrices(r, 4, false, row, line); }
inline void stmatrix_x4_trans(void* row, const uint32_t (&r)[4], TW_LINE) { emu::store_matrices(r, 4, true, row, line); }

inline uint32_t movmatrix(uint32_t x, TW_LINE) {
  const int lane = emu::thread() % 32, row = lane % 4 * 2, column = lane / 4;
  const uint32_t first = emu::shuffle(x, 4 * row + column / 2, false, line);
  const uint32_t second = emu::shuffle(x, 4 * row + 4 + column / 2, false, line);
  const int at = 16 * (column % 2);
  return (first >> at & 0xffff) | (second >> at) << 16;
}

// d += a · b over fragments. Sums: d first, then one f32 addition per k in rising order (products of
// 16-bit floats are exact in f32); the device adds groups of k at once, so last bits differ.
template <class T>
inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], TW_LINE) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
  emu::mma(std::is_same_v<T, bf16> ? 0 : 1, d, a, b, line);
}
inline void mma_1688_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], TW_LINE) {
  emu::mma(2, d, a, b, line);
}
inline void mma_16832_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], TW_LINE) {
  emu::mma(3, d, a, b, line);
}

// ---- sm_90a: barriers in memory, copies of tiles, products of a warp group ------------------------
struct alignas(64) TensorMap {  // sizes and strides innermost first
  unsigned char* base;
  int64_t sizes[5], strides[5];  // elements; bytes
  int32_t box[5];                // elements of a tile
  int32_t dimensions, element_bytes, swizzle;
};
#define TW_TENSOR_MAP const tw::TensorMap

void mbarrier_init(void* bar, int count, TW_LINE);
inline void mbarrier_init_fence() {}
void mbarrier_arrive(void* bar, TW_LINE);
void mbarrier_arrive_expect(void* bar, int bytes, TW_LINE);
void mbarrier_wait(void* bar, int parity, TW_LINE);

struct Line { int number; };  // no int: a last coordinate is none of these
#define TW_AT Line line = Line{__builtin_LINE()}
inline void tma_prefetch(const TensorMap&) {}
namespace emu {
void tma_load(void* shared, const TensorMap& map, void* bar, const int (&at)[5], int count, int line);
void tma_store(const TensorMap& map, const void* shared, const int (&at)[5], int count, int line);
}  // namespace emu
inline void tma_load(void* shared, const TensorMap& map, void* bar, int x, int y, TW_AT) { emu::tma_load(shared, map, bar, {x, y}, 2, line.number); }
inline void tma_load(void* shared, const TensorMap& map, void* bar, int x, int y, int z, TW_AT) { emu::tma_load(shared, map, bar, {x, y, z}, 3, line.number); }
inline void tma_load(void* shared, const TensorMap& map, void* bar, int x, int y, int z, int u, TW_AT) { emu::tma_load(shared, map, bar, {x, y, z, u}, 4, line.number); }
inline void tma_load(void* shared, const TensorMap& map, void* bar, int x, int y, int z, int u, int v, TW_AT) { emu::tma_load(shared, map, bar, {x, y, z, u, v}, 5, line.number); }
inline void tma_store(const TensorMap& map, const void* shared, int x, int y, TW_AT) { emu::tma_store(map, shared, {x, y}, 2, line.number); }
inline void tma_store(const TensorMap& map, const void* shared, int x, int y, int z, TW_AT) { emu::tma_store(map, shared, {x, y, z}, 3, line.number); }
inline void tma_store(const TensorMap& map, const void* shared, int x, int y, int z, int u, TW_AT) { emu::tma_store(map, shared, {x, y, z, u}, 4, line.number); }
inline void tma_store(const TensorMap& map, const void* shared, int x, int y, int z, int u, int v, TW_AT) { emu::tma_store(map, shared, {x, y, z, u, v}, 5, line.number); }
void tma_store_commit();
template <int Groups>
inline void tma_store_wait(TW_LINE) { emu::tma_store_wait(Groups, line); }
void bulk_load(void* shared, const void* global, int bytes, void* bar, TW_LINE);
void fence_async();

void wgmma_fence();
void wgmma_commit();
template <int Groups>
inline void wgmma_wait(TW_LINE) { emu::wgmma_wait(Groups, line); }
template <int N>
inline void wgmma_ended(float (&)[N]) {}
uint64_t wgmma_descriptor(const void* start, int leading_bytes, int stride_bytes, int swizzle = 128, TW_LINE);
template <int Registers>
inline void registers_up() { static_assert(Registers % 8 == 0 && Registers >= 24 && Registers <= 256); }
template <int Registers>
inline void registers_down() { registers_up<Registers>(); }

template <class T, int N, int TransposedB = 0, int TransposedA = 0>
inline void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate = true, TW_LINE) {
  emu::wgmma(d, {std::is_same_v<T, bf16>, accumulate, TransposedA != 0, TransposedB != 0, N, nullptr, a, b}, line);
}
template <class T, int N, int TransposedB = 0>
inline void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true, TW_LINE) {
  emu::wgmma(d, {std::is_same_v<T, bf16>, accumulate, false, TransposedB != 0, N, a, 0, b}, line);
}

// ---- arithmetic ---------------------------------------------------------------------------------
// The device's are approximations (2^-22 relative; tanh 2^-11) that take subnormal numbers as 0.
float exp2(float x);
float log2(float x);
float divide(float x, float y);
float rcp(float x);
float rsqrt(float x);
float tanh(float x);
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// Bit i of the table is the result where (a, b, c) are the bits of i.
template <int Table>
inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result = 0;
  for (int i = 0; i < 8; ++i)
    if (Table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
}
// Byte i of the result is byte `selector >> 4i & 7` of b:a, or copies of its sign with bit 3 set.
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> 4 * i & 15;
    uint32_t byte = uint32_t(bytes >> 8 * (nibble & 7)) & 255;
    if (nibble & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}
inline uint32_t funnel_shift_right(uint32_t low, uint32_t high, uint32_t n) {
  return uint32_t((uint64_t(high) << 32 | low) >> (n & 31));
}

// Two floats of 16 bits in a word, rounded once.
inline uint32_t hfma2_bf16(uint32_t a, uint32_t b, uint32_t c) { return emu::half_fma2(a, b, c, true); }
inline uint32_t hfma2_f16(uint32_t a, uint32_t b, uint32_t c) { return emu::half_fma2(a, b, c, false); }
inline uint32_t hmul2_bf16(uint32_t a, uint32_t b) { return hfma2_bf16(a, b, 0x80008000); }
inline uint32_t hmul2_f16(uint32_t a, uint32_t b) { return hfma2_f16(a, b, 0x80008000); }
inline uint32_t hadd2_bf16(uint32_t a, uint32_t b) { return hfma2_bf16(a, 0x3f803f80, b); }
inline uint32_t hadd2_f16(uint32_t a, uint32_t b) { return hfma2_f16(a, 0x3c003c00, b); }
inline uint32_t hsub2_bf16(uint32_t a, uint32_t b) { return hfma2_bf16(b, 0xbf80bf80, a); }
inline uint32_t hsub2_f16(uint32_t a, uint32_t b) { return hfma2_f16(b, 0xbc00bc00, a); }

// ---- launching: only the line that host.py appends uses this ------------------------------------
namespace emu {
struct Launch;  // emulator.h
int launch(Launch* launch, const char* name, int threads, void (*call)(void** arguments));

template <class T>
constexpr const char* kind() {
  if constexpr (std::is_pointer_v<T>) return "p ";
  else if constexpr (std::is_same_v<T, float>) return "f4 ";
  else if constexpr (std::is_same_v<T, double>) return "f8 ";
  else if constexpr (std::is_integral_v<T>)
    return sizeof(T) == 8 ? "i8 " : sizeof(T) == 4 ? (std::is_signed_v<T> ? "i4 " : "u4 ") : "? ";
  else return "map ";
}
template <class... Parameters>
struct Entry {
  using Function = void (*)(Parameters...);
  static inline Function function;
  template <size_t... I>
  static void spread(void** arguments, std::index_sequence<I...>) {
    function(*static_cast<std::remove_cv_t<Parameters>*>(arguments[I])...);
  }
  static void call(void** arguments) { spread(arguments, std::index_sequence_for<Parameters...>()); }
  static const char* signature() {
    static char text[256] = "";
    if (!text[0]) (std::strcat(text, kind<std::remove_cv_t<Parameters>>()), ...);
    return text;
  }
};
template <class... Parameters>
Entry<Parameters...> entry(void (*function)(Parameters...)) {
  Entry<Parameters...>::function = function;
  return {};
}
}  // namespace emu
}  // namespace tw

#define TW_HOST_ENTRY(name)                                                          \
  extern "C" const char* name##_signature() { return tw::emu::entry(&name).signature(); } \
  extern "C" int name##_on_host(tw::emu::Launch* launch) {                           \
    return tw::emu::launch(launch, #name, name##_threads, tw::emu::entry(&name).call); \
  }
