// CUDA C++ as plain C++17 for the CPU: as much of it as kernels use, here and in other packages. See fibers.hpp.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define CUDA_ON_CPU 1
#include <cuda_bf16.h>  // NVIDIA's own headers: half and bf16 are exact
#include <cuda_fp16.h>
#include <vector_functions.h>

#include "fibers.hpp"
#include "shuffles.hpp"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __align__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(cuda_cpu::block.dynamic_shared)

#define threadIdx (cuda_cpu::block.current->index)
#define blockIdx (cuda_cpu::block.index)
#define blockDim (cuda_cpu::block.size)
#define gridDim (cuda_cpu::block.grid)
#define warpSize 32

#define CUDA_CPU_TEXT(x) #x
#define CUDA_CPU_LINE(x) CUDA_CPU_TEXT(x)
#define CUDA_CPU_HERE __FILE__ ":" CUDA_CPU_LINE(__LINE__)
#define __syncthreads() cuda_cpu::wait_for_block(CUDA_CPU_HERE)
#define __syncwarp() cuda_cpu::wait_for_warp(0xffffffffu, CUDA_CPU_HERE)
#define __shfl_sync(mask, value, from) cuda_cpu::exchange(mask, value, from, CUDA_CPU_HERE)
#define __shfl_xor_sync(mask, value, x) cuda_cpu::exchange(mask, value, cuda_cpu::lane() ^ (x), CUDA_CPU_HERE)
#define __shfl_down_sync(mask, value, d) \
  cuda_cpu::exchange(mask, value, cuda_cpu::lane() + (cuda_cpu::lane() + (d) > 31 ? 0 : (d)), CUDA_CPU_HERE)
#define __shfl_up_sync(mask, value, d) \
  cuda_cpu::exchange(mask, value, cuda_cpu::lane() - (cuda_cpu::lane() < (int)(d) ? 0 : (int)(d)), CUDA_CPU_HERE)
#define __ballot_sync(mask, yes) cuda_cpu::vote(mask, yes, CUDA_CPU_HERE)
#define __any_sync(mask, yes) (cuda_cpu::vote(mask, yes, CUDA_CPU_HERE) != 0)
#define __all_sync(mask, yes) (cuda_cpu::vote(mask, yes, CUDA_CPU_HERE) == (mask))

// One thread at a time runs, so plain memory operations are atomic.
template <class T> T atomicAdd(T* at, T value) { T old = *at; *at = old + value; return old; }
template <class T> T atomicMax(T* at, T value) { T old = *at; if (value > old) *at = value; return old; }
inline void __threadfence() {}

template <class T> T __ldg(const T* at) { return *at; }
inline float __expf(float x) { return expf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
template <class To, class From> To cuda_cpu_bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "bits of another size");
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}
inline int __float_as_int(float x) { return cuda_cpu_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_cpu_bits<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_cpu_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_cpu_bits<float>(x); }
template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }

inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 32; i += 8) sum += (int8_t)(a >> i) * (int8_t)(b >> i);
  return sum;
}
inline unsigned __vsub4(unsigned a, unsigned b) {
  unsigned result = 0;
  for (int i = 0; i < 32; i += 8) result |= (((a >> i) - (b >> i)) & 255) << i;
  return result;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = (uint64_t)b << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned pick = selector >> 4 * i & 15;
    unsigned byte = (unsigned)(bytes >> 8 * (pick & 7)) & 255;
    if (pick & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}

#define CUDA_CPU_EXPORT(name, ...)                                                                                  \
  extern "C" int name(const unsigned* grid, const unsigned* size, size_t shared, void** arguments) {                \
    return cuda_cpu::launch(__VA_ARGS__, grid, size, shared, arguments);                                            \
  }
extern "C" inline __attribute__((used)) const char* cuda_cpu_message() { return cuda_cpu::message; }
extern "C" inline __attribute__((used)) void cuda_cpu_order(unsigned order) { cuda_cpu::order = order; }
