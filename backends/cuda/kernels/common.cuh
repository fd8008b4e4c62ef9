// What all kernels share: the tensor as kernels see it, element types, and sums over a warp and a block.
#pragma once
#ifndef CUDA_ON_CPU
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
typedef unsigned long long uintptr_t;
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define DYNAMIC_SHARED(T, name)                                    \
  extern __shared__ __align__(1024) unsigned char name##_bytes[];  \
  T* name = reinterpret_cast<T*>(name##_bytes)
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#endif
#include "ptx.cuh"

typedef __half f16;
typedef __nv_bfloat16 bf16;
typedef float f32;
typedef int32_t i32;
typedef int64_t i64;
typedef int8_t i8;
typedef int16_t i16;

#define ALL_LANES 0xffffffffu

// A tensor of up to four axes, those that it lacks in front with length 1: element [i0, i1, i2, i3] lies at
// data + i0 · strides[0] + … + i3 · strides[3], in bytes. For block-quantized dtypes axis 3 counts blocks.
struct Tensor {
  char* data;
  int64_t shape[4];
  int64_t strides[4];
};

template <class T> __device__ __forceinline__ float to_float(T x) { return (float)x; }
template <> __device__ __forceinline__ float to_float<f16>(f16 x) { return __half2float(x); }
template <> __device__ __forceinline__ float to_float<bf16>(bf16 x) { return __bfloat162float(x); }

template <class T> __device__ __forceinline__ T from_float(float x) { return (T)x; }
template <> __device__ __forceinline__ f16 from_float<f16>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

// The element at indices of the tensor's own axes.
template <class T> __device__ __forceinline__ T& at(const Tensor& t, int64_t i0, int64_t i1, int64_t i2, int64_t i3) {
  return *reinterpret_cast<T*>(t.data + i0 * t.strides[0] + i1 * t.strides[1] + i2 * t.strides[2] + i3 * t.strides[3]);
}

// Address of row number `row`, counted over axes 0 to 2.
__device__ __forceinline__ char* row_of(const Tensor& t, int64_t row) {
  const int64_t i2 = row % t.shape[2], rest = row / t.shape[2];
  return t.data + rest / t.shape[1] * t.strides[0] + rest % t.shape[1] * t.strides[1] + i2 * t.strides[2];
}

__device__ __forceinline__ int64_t elements_of(const Tensor& t) {
  return t.shape[0] * t.shape[1] * t.shape[2] * t.shape[3];
}

struct Indices {
  int64_t i0, i1, i2, i3;
};

// The indices of element number `i` in row-major order.
__device__ __forceinline__ Indices indices_of(const Tensor& t, int64_t i) {
  const int64_t i3 = i % t.shape[3], row = i / t.shape[3];
  const int64_t i2 = row % t.shape[2], rest = row / t.shape[2];
  return {rest / t.shape[1], rest % t.shape[1], i2, i3};
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int distance = 16; distance; distance >>= 1) v += __shfl_xor_sync(ALL_LANES, v, distance);
  return v;
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int distance = 16; distance; distance >>= 1) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, distance));
  return v;
}

// The sum over a block of THREADS threads, in all of them; `shared` holds THREADS / 32 floats.
template <int THREADS> __device__ __forceinline__ float block_sum(float v, float* shared) {
  v = warp_sum(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  v = 0;
#pragma unroll
  for (int warp = 0; warp < THREADS / 32; warp++) v += shared[warp];
  return v;
}

template <int THREADS> __device__ __forceinline__ float block_max(float v, float* shared) {
  v = warp_max(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  v = shared[0];
#pragma unroll
  for (int warp = 1; warp < THREADS / 32; warp++) v = fmaxf(v, shared[warp]);
  return v;
}
