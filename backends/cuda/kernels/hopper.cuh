// What compute capability 9.0 adds, one function for each PTX instruction: barriers of some threads, copies of whole
// tiles, and products by a warpgroup of 128 that read both operands from shared memory. Needs sm_90a.
// shim/hopper_cpu.hpp has the twins.
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
// Arrive, and let the phase end no sooner than so many bytes of bulk copies have come as well.
__device__ __forceinline__ void barrier_arrive_expecting(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// A barrier of COUNT threads, which all of their warps come to.
template <int ID, int COUNT> __device__ __forceinline__ void sync_threads() {
  asm volatile("bar.sync %0, %1;\n" ::"n"(ID), "n"(COUNT) : "memory");
}

// From here on a thread of this warpgroup has COUNT registers, fewer or more than it began with. All threads of a block
// begin with as many as 65536 registers allow, and what some give away others can take.
template <int COUNT> __device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(COUNT));
}
template <int COUNT> __device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(COUNT));
}

// Begin to copy bytes, a multiple of 16, to shared memory, as operands of wgmma; the barrier counts those that came.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, int bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(
                   shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
// 16 bytes of an operand of wgmma.
__device__ __forceinline__ void store_operand(void* shared, uint4 value) { *reinterpret_cast<uint4*>(shared) = value; }
// Show what this thread has stored, and what its copies have brought that it waited for, to wgmma; and barriers that it
// has initialised to bulk copies.
__device__ __forceinline__ void fence_operands() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// Before products on accumulators that the threads had in hand.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
template <int COUNT> __device__ __forceinline__ void wgmma_fence(float (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");  // what changes them does not move behind it
  wgmma_fence();
}
// End a group of products.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Wait until at most LEFT groups are under way.
template <int LEFT, int COUNT> __device__ __forceinline__ void wgmma_wait(float (&d)[COUNT]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(LEFT) : "memory");
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");  // no use of them moves before the wait
}

// Four 8 x 8 matrices of 16-bit elements to shared memory, in the layout of mma's results; lane i gives the address of
// row i % 8 of matrix i / 8. They are operands of wgmma, as what store_operand stores.
__device__ __forceinline__ void store_matrices(void* row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(shared_address(row)), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// d += a · b: a 64 x 16, b 16 x 2 · COUNT of T, which descriptors tell of, K-major; d in f32.
template <class T, int COUNT> __device__ __forceinline__ void wgmma(float (&d)[COUNT], uint64_t a, uint64_t b);
// The same where columns of b lie side by side.
template <class T, int COUNT>
__device__ __forceinline__ void wgmma_transposed(float (&d)[COUNT], uint64_t a, uint64_t b);
// d = a · b.
template <class T, int COUNT> __device__ __forceinline__ void first_wgmma(float (&d)[COUNT], uint64_t a, uint64_t b);

#define FOUR(way, i) way(d[i]), way(d[i + 1]), way(d[i + 2]), way(d[i + 3])
#define SIXTEEN(way, i) FOUR(way, i), FOUR(way, i + 4), FOUR(way, i + 8), FOUR(way, i + 12)
#define MORE(i) SIXTEEN("+f", i)
#define SIXTY_FOUR(i) MORE(i), MORE(i + 16), MORE(i + 32), MORE(i + 48)
#define NAMES_0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define NAMES_16 \
  ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43" \
  ",%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define NAMES_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define NAMES_80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define NAMES_96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define NAMES_112 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define WGMMA(function, T, adds, transposed, columns, names, a_name, b_name, ...)                                  \
  template <> __device__ __forceinline__ void function(float(&d)[columns / 2], uint64_t a, uint64_t b) {          \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." #T "." #T " {" names "}, " a_name ", "   \
                 b_name ", " #adds ", 1, 1, 0, " #transposed ";\n"                                                \
                 : __VA_ARGS__                                                                                    \
                 : "l"(a), "l"(b));                                                                               \
  }
#define PLAIN(T, columns, names, a_name, b_name, ...) \
  WGMMA(wgmma<T>, T, 1, 0, columns, names, a_name, b_name, __VA_ARGS__)
#define FIRST(T) WGMMA(first_wgmma<T>, T, 0, 0, 32, NAMES_0, "%16", "%17", SIXTEEN("=f", 0))
#define TRANSPOSED(T) \
  WGMMA(wgmma_transposed<T>, T, 1, 1, 256, NAMES_OF_256, "%128", "%129", SIXTY_FOUR(0), SIXTY_FOUR(64))
#define NAMES_OF_128 NAMES_0 NAMES_16
#define NAMES_OF_256 NAMES_OF_128 NAMES_64 NAMES_80 NAMES_96 NAMES_112
FIRST(f16)
FIRST(bf16)
PLAIN(f16, 32, NAMES_0, "%16", "%17", MORE(0))
PLAIN(bf16, 32, NAMES_0, "%16", "%17", MORE(0))
PLAIN(bf16, 128, NAMES_OF_128, "%64", "%65", SIXTY_FOUR(0))
PLAIN(bf16, 160, NAMES_OF_128 NAMES_64, "%80", "%81", SIXTY_FOUR(0), MORE(64))
PLAIN(bf16, 192, NAMES_OF_128 NAMES_64 NAMES_80, "%96", "%97", SIXTY_FOUR(0), MORE(64), MORE(80))
PLAIN(bf16, 224, NAMES_OF_128 NAMES_64 NAMES_80 NAMES_96, "%112", "%113", SIXTY_FOUR(0), MORE(64), MORE(80), MORE(96))
PLAIN(bf16, 256, NAMES_OF_256, "%128", "%129", SIXTY_FOUR(0), SIXTY_FOUR(64))
TRANSPOSED(f16)
TRANSPOSED(bf16)
#undef FOUR
#undef SIXTEEN
#undef MORE
#undef SIXTY_FOUR
#undef NAMES_0
#undef NAMES_16
#undef NAMES_64
#undef NAMES_80
#undef NAMES_96
#undef NAMES_112
#undef NAMES_OF_128
#undef NAMES_OF_256
#undef WGMMA
#undef PLAIN
#undef FIRST
#undef TRANSPOSED
#endif

// A descriptor of rows of 128 bytes with 128-byte swizzle: eight rows make a pattern of 1024 bytes, and in row r of it
// 16 bytes that belong in place c lie in place c ^ r. Rows are those of an operand that is K-major: 16 elements of k
// further on is 32 bytes further on.
__device__ __forceinline__ uint64_t descriptor_of(const void* operand) {
  constexpr uint64_t SWIZZLE = 1ull << 62, PATTERN = 1024 >> 4, UNUSED = 1;
  return SWIZZLE | PATTERN << 32 | UNUSED << 16 | (shared_address(operand) & 0x3ffff) >> 4;
}
constexpr uint64_t NEXT_16 = 32 >> 4;

// The same where rows go along k, each with 64 columns; 64 columns further on is `apart` bytes further on.
__device__ __forceinline__ uint64_t transposed_descriptor_of(const void* operand, unsigned apart) {
  constexpr uint64_t SWIZZLE = 1ull << 62, PATTERN = 1024 >> 4;
  return SWIZZLE | PATTERN << 32 | (uint64_t)(apart >> 4) << 16 | (shared_address(operand) & 0x3ffff) >> 4;
}
constexpr uint64_t NEXT_16_TRANSPOSED = 16 * 128 >> 4;
