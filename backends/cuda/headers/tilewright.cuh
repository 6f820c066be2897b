// The operations of generated kernels on the device, a line of PTX each where C++ has no word for it.
// tilewright_host.h gives every one of them on the host, under the same name.
#pragma once

#if defined(__CUDACC_RTC__)
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <cstdint>
#endif

#define TW_HOST 0
#define TW_DEVICE static __device__ __forceinline__
#define TW_OP __device__ __forceinline__

// TW_KERNEL(name, threads of a block, blocks at once on a multiprocessor)(parameters) { body }
#define TW_KERNEL(name, threads, blocks_per_sm) \
  extern "C" __global__ void __launch_bounds__(threads, blocks_per_sm) name

// The block's dynamic shared memory as `unsigned char* tw_shared`, aligned to 1,024 bytes.
#define TW_SHARED(bytes)                                             \
  extern __shared__ __align__(1024) unsigned char tw_shared_memory[]; \
  unsigned char* const tw_shared = tw_shared_memory

namespace tw {

// ---- places -------------------------------------------------------------------------------------
TW_OP int thread() { return int(threadIdx.x); }
TW_OP int block() { return int(blockIdx.x); }
TW_OP int grid() { return int(gridDim.x); }
TW_OP int lane() { return int(threadIdx.x & 31); }
TW_OP int warp() { return int(threadIdx.x >> 5); }

// ---- floats of 16 bits --------------------------------------------------------------------------
struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

TW_OP float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
TW_OP uint32_t float_to_bits(float value) { return __float_as_uint(value); }

TW_OP float to_float(float x) { return x; }
TW_OP float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
TW_OP float to_float(f16 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
TW_OP bf16 to_bf16(float x) { bf16 y; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }
TW_OP f16 to_f16(float x) { f16 y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }
TW_OP uint32_t to_tf32(float x) { uint32_t y; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x)); return y; }
TW_OP uint32_t pack(bf16 low, bf16 high) { return low.bits | uint32_t(high.bits) << 16; }
TW_OP uint32_t pack(f16 low, f16 high) { return low.bits | uint32_t(high.bits) << 16; }
TW_OP uint32_t pack_bf16(float low, float high) { uint32_t y; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low)); return y; }
TW_OP uint32_t pack_f16(float low, float high) { uint32_t y; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low)); return y; }

// ---- memory -------------------------------------------------------------------------------------
// `Bytes` (4, 8, 16) that move in one instruction; addresses are multiples of it.
template <int Bytes>
struct alignas(Bytes) Vec { uint32_t words[Bytes / 4]; };

template <class T>
struct Same { typedef T type; };  // a parameter of this type takes no part in deduction

// The vector types of CUDA are what the compiler moves in one instruction.
template <int Bytes> struct Word;
template <> struct Word<4> { typedef uint32_t type; };
template <> struct Word<8> { typedef uint2 type; };
template <> struct Word<16> { typedef uint4 type; };
TW_OP Vec<4> from_word(uint32_t w) { return {{w}}; }
TW_OP Vec<8> from_word(uint2 w) { return {{w.x, w.y}}; }
TW_OP Vec<16> from_word(uint4 w) { return {{w.x, w.y, w.z, w.w}}; }
TW_OP uint32_t to_word(const Vec<4>& v) { return v.words[0]; }
TW_OP uint2 to_word(const Vec<8>& v) { return make_uint2(v.words[0], v.words[1]); }
TW_OP uint4 to_word(const Vec<16>& v) { return make_uint4(v.words[0], v.words[1], v.words[2], v.words[3]); }

template <class T>
TW_OP T global_load(const T* address) { return *address; }
template <class T>
TW_OP void global_store(T* address, typename Same<T>::type value) { *address = value; }
template <class T>
TW_OP T shared_load(const void* address) { return *static_cast<const T*>(address); }
template <class T>
TW_OP void shared_store(void* address, typename Same<T>::type value) { *static_cast<T*>(address) = value; }
template <int Bytes>
TW_OP Vec<Bytes> global_load_vec(const void* address) { return from_word(*static_cast<const typename Word<Bytes>::type*>(address)); }
template <int Bytes>  // read once: no copy stays in L1
TW_OP Vec<Bytes> global_load_stream(const void* address) {
  Vec<Bytes> v;
  if constexpr (Bytes == 4) asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v.words[0]) : "l"(address));
  if constexpr (Bytes == 8) asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.words[0]), "=r"(v.words[1]) : "l"(address));
  if constexpr (Bytes == 16) asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3]) : "l"(address));
  return v;
}
template <int Bytes>
TW_OP void global_store_vec(void* address, const Vec<Bytes>& value) { *static_cast<typename Word<Bytes>::type*>(address) = to_word(value); }
template <int Bytes>
TW_OP Vec<Bytes> shared_load_vec(const void* address) { return from_word(*static_cast<const typename Word<Bytes>::type*>(address)); }
template <int Bytes>
TW_OP void shared_store_vec(void* address, const Vec<Bytes>& value) { *static_cast<typename Word<Bytes>::type*>(address) = to_word(value); }
// Adds to a counter in global memory, ordering the block's writes before and after; the value before.
TW_OP int atomic_add(int* address, int value) {
  int before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;" : "=r"(before) : "l"(address), "r"(value) : "memory");
  return before;
}

TW_OP uint32_t shared_address(const void* address) { return uint32_t(__cvta_generic_to_shared(address)); }

// ---- copies in the background (cp.async) --------------------------------------------------------
// Zeros are written where `in_range` is false; `global` is not read then. 16 bytes go past L1.
template <int Bytes>
TW_OP void copy_async(void* shared, const void* global, bool in_range = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  const int read = in_range ? Bytes : 0;
  if constexpr (Bytes == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(shared_address(shared)), "l"(global), "r"(read) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" :: "r"(shared_address(shared)), "l"(global), "n"(Bytes), "r"(read) : "memory");
}
TW_OP void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Groups>  // until at most `Groups` of the thread's committed groups are on their way
TW_OP void wait() { asm volatile("cp.async.wait_group %0;" :: "n"(Groups) : "memory"); }

// ---- waiting for each other ---------------------------------------------------------------------
TW_OP void barrier() { __syncthreads(); }
TW_OP void barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory"); }
TW_OP void barrier_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory"); }
TW_OP void warp_barrier() { __syncwarp(); }
// The same, behind what makes `x`: the mask depends on it, as far as a compiler knows; `zero` is 0.
TW_OP void warp_barrier_after(float x, int zero) { asm volatile("{\n\t.reg .b32 m;\n\tand.b32 m, %0, %1;\n\tnot.b32 m, m;\n\tbar.warp.sync m;\n\t}" :: "r"(__float_as_uint(x)), "r"(zero) : "memory"); }
template <class T>
TW_OP T shuffle_xor(T x, int mask) { return __shfl_xor_sync(0xffffffff, x, mask); }
template <class T>
TW_OP T shuffle(T x, int lane) { return __shfl_sync(0xffffffff, x, lane); }
TW_OP uint32_t ballot(bool value) { return __ballot_sync(0xffffffff, value); }

// ---- matrices -----------------------------------------------------------------------------------
// Lane i gives the address of row i % 8 of matrix i / 8: 16 bytes, aligned to 16.
TW_OP void ldmatrix_x1(uint32_t (&r)[1], const void* row) { asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(shared_address(row)) : "memory"); }
TW_OP void ldmatrix_x2(uint32_t (&r)[2], const void* row) { asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory"); }
TW_OP void ldmatrix_x4(uint32_t (&r)[4], const void* row) { asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory"); }
TW_OP void ldmatrix_x1_trans(uint32_t (&r)[1], const void* row) { asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(shared_address(row)) : "memory"); }
TW_OP void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) { asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory"); }
TW_OP void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) { asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory"); }

// The words that lanes 4 i to 4 i + 3 hold are row i of a matrix of 8 × 8 floats of 16 bits: the same of
// its transpose.
TW_OP uint32_t movmatrix(uint32_t x) { uint32_t y; asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x)); return y; }

// d += a · b over fragments. Volatile, though registers are all that changes: all lanes have to come here,
// and the compiler may move any other asm under a condition that only some of them meet. It costs nothing:
// machine code is the same.
template <class T>
TW_OP void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
TW_OP void mma_16816<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
TW_OP void mma_16816<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
TW_OP void mma_1688_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
TW_OP void mma_16832_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- arithmetic ---------------------------------------------------------------------------------
TW_OP float exp2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
TW_OP float log2(float x) { float y; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
// At most 2 ulp off, as in Triton; IEEE division is a function of its own that is called every time.
TW_OP float divide(float x, float y) { float z; asm("div.full.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y)); return z; }
TW_OP float rcp(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
TW_OP float rsqrt(float x) { float y; asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
TW_OP float tanh(float x) { float y; asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
TW_OP float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }

template <int Table>  // bit i of the table is the result where (a, b, c) are the bits of i
TW_OP uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) { uint32_t d; asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(Table)); return d; }
TW_OP uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) { uint32_t d; asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector)); return d; }
TW_OP uint32_t funnel_shift_right(uint32_t low, uint32_t high, uint32_t n) { uint32_t d; asm("shf.r.wrap.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(low), "r"(high), "r"(n)); return d; }

// Two floats of 16 bits in a word, rounded once. Before sm_90 bf16 has the fused form only.
TW_OP uint32_t hfma2_bf16(uint32_t a, uint32_t b, uint32_t c) { uint32_t d; asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c)); return d; }
TW_OP uint32_t hfma2_f16(uint32_t a, uint32_t b, uint32_t c) { uint32_t d; asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c)); return d; }
TW_OP uint32_t hmul2_bf16(uint32_t a, uint32_t b) { return hfma2_bf16(a, b, 0x80008000); }
TW_OP uint32_t hmul2_f16(uint32_t a, uint32_t b) { uint32_t d; asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b)); return d; }
TW_OP uint32_t hadd2_bf16(uint32_t a, uint32_t b) { return hfma2_bf16(a, 0x3f803f80, b); }
TW_OP uint32_t hadd2_f16(uint32_t a, uint32_t b) { uint32_t d; asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b)); return d; }
TW_OP uint32_t hsub2_bf16(uint32_t a, uint32_t b) { return hfma2_bf16(b, 0xbf80bf80, a); }
TW_OP uint32_t hsub2_f16(uint32_t a, uint32_t b) { uint32_t d; asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b)); return d; }

}  // namespace tw

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#include "tilewright_sm90.cuh"
#endif
