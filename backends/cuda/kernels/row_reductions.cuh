// Sums and maxima over a row, which the threads of one threadIdx.y share: a warp, or all warps of the block where a row
// takes more than one (blockDim.y is then 1). elements.py's row_geometry has the numbers.
#pragma once
#include "elements.cuh"

struct Sum {
  __device__ static float of(float a, float b) { return a + b; }
};
struct Max {  // ignores NaN
  __device__ static float of(float a, float b) { return fmaxf(a, b); }
};

// The reduction of all threads' v, in all of them. `shared` holds 32 floats; a barrier lies between two uses of it.
template <class F> __device__ __forceinline__ float over_row(float v, float* shared) {
#pragma unroll
  for (int distance = 16; distance; distance >>= 1) v = F::of(v, __shfl_xor_sync(ALL_LANES, v, distance));
  if (blockDim.x == 32) return v;
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  v = shared[0];
  for (int warp = 1; warp < blockDim.x / 32; warp++) v = F::of(v, shared[warp]);
  return v;
}

// The number of this thread's row.
__device__ __forceinline__ int64_t row_of_thread() { return blockIdx.x * (int64_t)blockDim.y + threadIdx.y; }
