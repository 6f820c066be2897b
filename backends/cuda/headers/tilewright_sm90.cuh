// The operations that sm_90a has and sm_80 lacks: barriers in memory (mbarrier), copies of tiles by
// the tensor memory accelerator, products of a warp group from shared memory (wgmma).
#pragma once

// A parameter that describes a tensor in global memory to the accelerator: `TW_TENSOR_MAP x`.
#define TW_TENSOR_MAP const __grid_constant__ tw::TensorMap

namespace tw {

struct alignas(64) TensorMap { unsigned char opaque[128]; };  // a CUtensorMap

TW_OP void stmatrix_x4(void* row, const uint32_t (&r)[4]) { asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" :: "r"(shared_address(row)), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory"); }
TW_OP void stmatrix_x4_trans(void* row, const uint32_t (&r)[4]) { asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" :: "r"(shared_address(row)), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory"); }

// ---- mbarriers: 8 bytes of shared memory each -----------------------------------------------------
TW_OP void mbarrier_init(void* bar, int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(shared_address(bar)), "r"(count) : "memory"); }
// After all are initialised, before the block's barrier: the accelerator sees them too.
TW_OP void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory"); }
TW_OP void mbarrier_arrive(void* bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(shared_address(bar)) : "memory"); }
// Arrives, and the phase ends only after `bytes` more have been copied.
TW_OP void mbarrier_arrive_expect(void* bar, int bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(shared_address(bar)), "r"(bytes) : "memory"); }
// Until the phase of that parity has ended: the first has parity 0; parity 1 passes on a fresh barrier.
TW_OP void mbarrier_wait(void* bar, int parity) {
  uint32_t done;
  do {
    asm volatile("{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}" : "=r"(done) : "r"(shared_address(bar)), "r"(parity) : "memory");
  } while (!done);
}

// ---- copies by the accelerator: one thread asks, the mbarrier counts the bytes ----------------------
// Coordinates are elements, the innermost first; what lies outside the tensor becomes 0.
TW_OP void tma_prefetch(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" :: "l"(&map) : "memory"); }
TW_OP void tma_load(void* shared, const TensorMap& map, void* bar, int x, int y) { asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" :: "r"(shared_address(shared)), "l"(&map), "r"(shared_address(bar)), "r"(x), "r"(y) : "memory"); }
TW_OP void tma_load(void* shared, const TensorMap& map, void* bar, int x, int y, int z) { asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" :: "r"(shared_address(shared)), "l"(&map), "r"(shared_address(bar)), "r"(x), "r"(y), "r"(z) : "memory"); }
TW_OP void tma_load(void* shared, const TensorMap& map, void* bar, int x, int y, int z, int u) { asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" :: "r"(shared_address(shared)), "l"(&map), "r"(shared_address(bar)), "r"(x), "r"(y), "r"(z), "r"(u) : "memory"); }
TW_OP void tma_load(void* shared, const TensorMap& map, void* bar, int x, int y, int z, int u, int v) { asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" :: "r"(shared_address(shared)), "l"(&map), "r"(shared_address(bar)), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v) : "memory"); }
TW_OP void tma_store(const TensorMap& map, const void* shared, int x, int y) { asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" :: "l"(&map), "r"(shared_address(shared)), "r"(x), "r"(y) : "memory"); }
TW_OP void tma_store(const TensorMap& map, const void* shared, int x, int y, int z) { asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" :: "l"(&map), "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z) : "memory"); }
TW_OP void tma_store(const TensorMap& map, const void* shared, int x, int y, int z, int u) { asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" :: "l"(&map), "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z), "r"(u) : "memory"); }
TW_OP void tma_store(const TensorMap& map, const void* shared, int x, int y, int z, int u, int v) { asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" :: "l"(&map), "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v) : "memory"); }
TW_OP void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int Groups>  // until shared memory may be written again
TW_OP void tma_store_wait() { asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(Groups) : "memory"); }
// Bytes one after the other; addresses and `bytes` are multiples of 16.
TW_OP void bulk_load(void* shared, const void* global, int bytes, void* bar) { asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" :: "r"(shared_address(shared)), "l"(global), "r"(bytes), "r"(shared_address(bar)) : "memory"); }
// What the thread has written to shared memory may be read by tma_store and wgmma from here on.
TW_OP void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- products of a warp group (128 threads) -------------------------------------------------------
TW_OP void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
TW_OP void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Groups>
TW_OP void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(Groups) : "memory"); }
// Behind a wait: no use of the sums goes before it.
template <int N>
TW_OP void wgmma_ended(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i]) :: "memory");
}

// A tile in shared memory. Rows of an operand with k innermost ("K-major") stand in groups of eight,
// `stride_bytes` apart; a swizzle of 128, 64, 32 bytes (a row's length) or 0. With rows innermost
// (transposed) a row holds 64, 32, 16 of them for one k, eight k are a group: `stride_bytes` from one
// group to the next, `leading_bytes` to the next 64, 32, 16 rows.
TW_OP uint64_t wgmma_descriptor(const void* start, int leading_bytes, int stride_bytes, int swizzle = 128) {
  const uint64_t kind = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
  return uint64_t(shared_address(start) >> 4 & 0x3fff) | uint64_t(leading_bytes >> 4 & 0x3fff) << 16 | uint64_t(stride_bytes >> 4 & 0x3fff) << 32 | kind << 62;
}

template <int Registers>
TW_OP void registers_up() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(Registers)); }
template <int Registers>
TW_OP void registers_down() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(Registers)); }

// One instruction per width: m64nNk16, operands bf16 or f16, sums f32.
template <class T, int N>
struct Wgmma;

#define TW_WGMMA(N, T, PTX, D, OUT, P0, P1, P2, P3, P4, P5, P6)                                            \
  template <>                                                                                            \
  struct Wgmma<T, N> {                                                                                   \
    template <int A, int B>                                                                              \
    static TW_OP void run(float (&d)[N / 2], uint64_t a, uint64_t b, int add) {                          \
      asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, " P2 ", 0;\n\t"                                  \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." PTX "." PTX " {" D "}, " P0 ", " P1   \
                   ", p, 1, 1, " P3 ", " P4 ";\n\t}" : OUT : "l"(a), "l"(b), "r"(add), "n"(A), "n"(B));  \
    }                                                                                                    \
    template <int B>                                                                                     \
    static TW_OP void run(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int add) {              \
      asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, " P5 ", 0;\n\t"                                  \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." PTX "." PTX " {" D "}, {" P0 ", " P1  \
                   ", " P2 ", " P3 "}, " P4 ", p, 1, 1, " P6 ";\n\t}"                                    \
                   : OUT : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(B));        \
    }                                                                                                    \
  };

#define TW_F8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define TW_OUT_8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
TW_WGMMA(8, bf16, "bf16", "%0, %1, %2, %3", TW_OUT_8, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
TW_WGMMA(8, f16, "f16", "%0, %1, %2, %3", TW_OUT_8, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
#define TW_OUT_16 TW_F8(0)
TW_WGMMA(16, bf16, "bf16", "%0, %1, %2, %3, %4, %5, %6, %7", TW_OUT_16, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
TW_WGMMA(16, f16, "f16", "%0, %1, %2, %3, %4, %5, %6, %7", TW_OUT_16, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
#define TW_OUT_24 TW_F8(0), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
TW_WGMMA(24, bf16, "bf16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11", TW_OUT_24, "%12", "%13", "%14", "%15", "%16", "%17", "%18")
TW_WGMMA(24, f16, "f16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11", TW_OUT_24, "%12", "%13", "%14", "%15", "%16", "%17", "%18")
#define TW_OUT_32 TW_F8(0), TW_F8(8)
TW_WGMMA(32, bf16, "bf16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15", TW_OUT_32, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
TW_WGMMA(32, f16, "f16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15", TW_OUT_32, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
#define TW_OUT_48 TW_F8(0), TW_F8(8), TW_F8(16)
TW_WGMMA(48, bf16, "bf16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23", TW_OUT_48, "%24", "%25", "%26", "%27", "%28", "%29", "%30")
TW_WGMMA(48, f16, "f16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23", TW_OUT_48, "%24", "%25", "%26", "%27", "%28", "%29", "%30")
#define TW_OUT_64 TW_F8(0), TW_F8(8), TW_F8(16), TW_F8(24)
TW_WGMMA(64, bf16, "bf16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31", TW_OUT_64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
TW_WGMMA(64, f16, "f16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31", TW_OUT_64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
#define TW_OUT_80 TW_F8(0), TW_F8(8), TW_F8(16), TW_F8(24), TW_F8(32)
TW_WGMMA(80, bf16, "bf16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39", TW_OUT_80, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
TW_WGMMA(80, f16, "f16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39", TW_OUT_80, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
#define TW_OUT_96 TW_F8(0), TW_F8(8), TW_F8(16), TW_F8(24), TW_F8(32), TW_F8(40)
TW_WGMMA(96, bf16, "bf16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47", TW_OUT_96, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
TW_WGMMA(96, f16, "f16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47", TW_OUT_96, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
#define TW_OUT_112 TW_F8(0), TW_F8(8), TW_F8(16), TW_F8(24), TW_F8(32), TW_F8(40), TW_F8(48)
TW_WGMMA(112, bf16, "bf16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55", TW_OUT_112, "%56", "%57", "%58", "%59", "%60", "%61", "%62")
TW_WGMMA(112, f16, "f16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55", TW_OUT_112, "%56", "%57", "%58", "%59", "%60", "%61", "%62")
#define TW_OUT_128 TW_F8(0), TW_F8(8), TW_F8(16), TW_F8(24), TW_F8(32), TW_F8(40), TW_F8(48), TW_F8(56)
TW_WGMMA(128, bf16, "bf16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63", TW_OUT_128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
TW_WGMMA(128, f16, "f16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63", TW_OUT_128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
#define TW_OUT_160 TW_F8(0), TW_F8(8), TW_F8(16), TW_F8(24), TW_F8(32), TW_F8(40), TW_F8(48), TW_F8(56), TW_F8(64), TW_F8(72)
TW_WGMMA(160, bf16, "bf16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79", TW_OUT_160, "%80", "%81", "%82", "%83", "%84", "%85", "%86")
TW_WGMMA(160, f16, "f16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79", TW_OUT_160, "%80", "%81", "%82", "%83", "%84", "%85", "%86")
#define TW_OUT_192 TW_F8(0), TW_F8(8), TW_F8(16), TW_F8(24), TW_F8(32), TW_F8(40), TW_F8(48), TW_F8(56), TW_F8(64), TW_F8(72), TW_F8(80), TW_F8(88)
TW_WGMMA(192, bf16, "bf16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95", TW_OUT_192, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
TW_WGMMA(192, f16, "f16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95", TW_OUT_192, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
#define TW_OUT_224 TW_F8(0), TW_F8(8), TW_F8(16), TW_F8(24), TW_F8(32), TW_F8(40), TW_F8(48), TW_F8(56), TW_F8(64), TW_F8(72), TW_F8(80), TW_F8(88), TW_F8(96), TW_F8(104)
TW_WGMMA(224, bf16, "bf16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111", TW_OUT_224, "%112", "%113", "%114", "%115", "%116", "%117", "%118")
TW_WGMMA(224, f16, "f16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111", TW_OUT_224, "%112", "%113", "%114", "%115", "%116", "%117", "%118")
#define TW_OUT_256 TW_F8(0), TW_F8(8), TW_F8(16), TW_F8(24), TW_F8(32), TW_F8(40), TW_F8(48), TW_F8(56), TW_F8(64), TW_F8(72), TW_F8(80), TW_F8(88), TW_F8(96), TW_F8(104), TW_F8(112), TW_F8(120)
TW_WGMMA(256, bf16, "bf16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127", TW_OUT_256, "%128", "%129", "%130", "%131", "%132", "%133", "%134")
TW_WGMMA(256, f16, "f16", "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127", TW_OUT_256, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

// d (+)= a · b: 64 × N sums over the group, row 16·warp + lane / 4 (+ 8) and columns as mma_16816 has
// them, eight columns after the other. A transposed operand has its rows innermost in memory.
template <class T, int N, int TransposedB = 0, int TransposedA = 0>
TW_OP void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate = true) { Wgmma<T, N>::template run<TransposedA, TransposedB>(d, a, b, accumulate); }
template <class T, int N, int TransposedB = 0>
TW_OP void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true) { Wgmma<T, N>::template run<TransposedB>(d, a, b, accumulate); }

}  // namespace tw
