// What compute capability 9.0 adds, one function for each PTX instruction: barriers of some threads, and products by a
// warpgroup of 128 that read both operands from shared memory. Needs sm_90a. shim/hopper_cpu.hpp has the twins.
#pragma once
#include "common.cuh"
#ifdef CUDA_ON_CPU
#include "hopper_cpu.hpp"
#else

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return (uint32_t)__cvta_generic_to_shared(pointer);
}

// A barrier in shared memory, whose phases end after so many arrivals; those who wait name a phase, counted from 0.
__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, unsigned phase) {
  uint32_t is_over;
  do {
    asm volatile(
        "{\n.reg .pred over;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n}\n"
        : "=r"(is_over)
        : "r"(shared_address(barrier)), "r"(phase & 1)
        : "memory");
  } while (!is_over);
}
// A barrier of COUNT threads, which all of their warps come to.
template <int ID, int COUNT> __device__ __forceinline__ void sync_threads() {
  asm volatile("bar.sync %0, %1;\n" ::"n"(ID), "n"(COUNT) : "memory");
}

// 16 bytes of an operand of wgmma.
__device__ __forceinline__ void store_operand(void* shared, uint4 value) { *reinterpret_cast<uint4*>(shared) = value; }
// Show what this thread has stored, and what its copies have brought that it waited for, to wgmma.
__device__ __forceinline__ void fence_operands() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// Before products on accumulators that the threads had in hand.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
// End a group of products.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Wait until at most LEFT groups are under way.
template <int LEFT, int COUNT> __device__ __forceinline__ void wgmma_wait(float (&d)[COUNT]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(LEFT) : "memory");
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");  // no use of them moves before the wait
}

// d += a · b: a 64 x 16, b 16 x 2 · COUNT, both K-major bf16 that descriptors tell of; d in f32.
template <int COUNT> __device__ __forceinline__ void wgmma(float (&d)[COUNT], uint64_t a, uint64_t b);

#define FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIXTEEN(i) FOUR(i), FOUR(i + 4), FOUR(i + 8), FOUR(i + 12)
#define SIXTY_FOUR(i) SIXTEEN(i), SIXTEEN(i + 16), SIXTEEN(i + 32), SIXTEEN(i + 48)
#define NAMES_0 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21" \
  ",%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43" \
  ",%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define NAMES_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define NAMES_80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define NAMES_96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define NAMES_112 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define WGMMA(columns, names, a_name, b_name, ...)                                                                \
  template <> __device__ __forceinline__ void wgmma(float(&d)[columns / 2], uint64_t a, uint64_t b) {               \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" names "}, " a_name ", " b_name  \
                 ", 1, 1, 1, 0, 0;\n"                                                                               \
                 : __VA_ARGS__                                                                                      \
                 : "l"(a), "l"(b));                                                                                 \
  }
WGMMA(128, NAMES_0, "%64", "%65", SIXTY_FOUR(0))
WGMMA(160, NAMES_0 NAMES_64, "%80", "%81", SIXTY_FOUR(0), SIXTEEN(64))
WGMMA(192, NAMES_0 NAMES_64 NAMES_80, "%96", "%97", SIXTY_FOUR(0), SIXTEEN(64), SIXTEEN(80))
WGMMA(224, NAMES_0 NAMES_64 NAMES_80 NAMES_96, "%112", "%113", SIXTY_FOUR(0), SIXTEEN(64), SIXTEEN(80), SIXTEEN(96))
WGMMA(256, NAMES_0 NAMES_64 NAMES_80 NAMES_96 NAMES_112, "%128", "%129", SIXTY_FOUR(0), SIXTY_FOUR(64))
#undef FOUR
#undef SIXTEEN
#undef SIXTY_FOUR
#undef NAMES_0
#undef NAMES_64
#undef NAMES_80
#undef NAMES_96
#undef NAMES_112
#undef WGMMA
#endif

// A descriptor of rows of 128 bytes, K-major with 128-byte swizzle: eight rows make a pattern of 1024 bytes, and in row
// r of it 16 bytes that belong in place c lie in place c ^ r. 16 elements of k further on is 32 bytes further on.
__device__ __forceinline__ uint64_t descriptor_of(const void* operand) {
  constexpr uint64_t SWIZZLE = 1ull << 62, PATTERN = 1024 >> 4, UNUSED = 1;
  return SWIZZLE | PATTERN << 32 | UNUSED << 16 | (shared_address(operand) & 0x3ffff) >> 4;
}
constexpr uint64_t NEXT_16 = 32 >> 4;
