// Kernels with the mistakes that people make, for test_shim.py.
#include "common.cuh"

// The sum of 64 numbers by two warps; without the barrier the first one reads what the second has not written.
template <bool CORRECT> __global__ void sum_of_64(float* y, const float* x) {
  __shared__ float sums[2];
  const float sum = warp_sum(x[threadIdx.x]);
  if (threadIdx.x < 2 && !CORRECT) sums[threadIdx.x] = 0;
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  if (CORRECT) __syncthreads();
  if (threadIdx.x == 0 || threadIdx.x == 63) y[threadIdx.x / 32] = sums[0] + sums[1];
}

// The second warp puts a number down, and the first one reads it long after; yet only a barrier makes it wait.
template <bool CORRECT> __global__ void read_late(float* y, const float* x) {
  __shared__ float number;
  if (threadIdx.x < 32) number = -1;
  __syncthreads();
  for (int i = 0; i < 100; i++) {
    if (threadIdx.x == 32 && i == 20) number = x[1];
    __syncwarp();
  }
  if (CORRECT) __syncthreads();
  if (threadIdx.x == 0) y[0] = number;
}

// Copies 64 x 16 bytes through shared memory by two groups of copies; waiting for all but one is not enough.
template <int LEFT> __global__ void copy_by_two_groups(float4* y, const float4* x) {
  DYNAMIC_SHARED(float4, staged);
  const int i = threadIdx.x;
  copy_async(&staged[i], &x[i]);
  commit_copies();
  copy_async(&staged[i + 32], &x[i + 32]);
  commit_copies();
  wait_for_copies<LEFT>();
  __syncwarp();
  y[i] = staged[31 - i];
  y[i + 32] = staged[63 - i];
}

template <int DISTANCE> __global__ void shift(float* y, const float* x) { y[threadIdx.x] = x[threadIdx.x + DISTANCE]; }

// Half of the threads meet at another barrier than the other half.
template <bool CORRECT> __global__ void meet(float* y) {
  if (CORRECT)
    __syncthreads();
  else if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  y[threadIdx.x] = 1;
}

// Reads 16 bytes from an address that is a multiple of 4.
template <int FIRST> __global__ void read_four(float4* y, const float* x) { *y = *(const float4*)(x + FIRST); }

// Every block reads what the next one writes.
template <bool CORRECT> __global__ void take_from_the_next(float* y, const float* x) {
  if (!CORRECT) y[blockIdx.x] = y[(blockIdx.x + 1) % gridDim.x] + x[blockIdx.x];
  if (CORRECT) y[blockIdx.x] = x[blockIdx.x];
}

// Copies of 16 bytes, and reads of matrices' rows, begin at multiples of 16.
template <int FIRST> __global__ void copy_from(float4* y, const float* x) {
  DYNAMIC_SHARED(float4, staged);
  copy_async(staged, x + FIRST);
  commit_copies();
  wait_for_copies<0>();
  y[0] = staged[0];
}
template <int FIRST> __global__ void read_matrices(uint4* y, const float*) {
  DYNAMIC_SHARED(char, staged);
  uint32_t read[4];
  ldmatrix(read, staged + threadIdx.x * 16 + FIRST);
  y[threadIdx.x] = {read[0], read[1], read[2], read[3]};
}

// The first block begins a copy and ends; the second must not have it.
template <int> __global__ void leave_a_copy(float4* y, const float4* x) {
  DYNAMIC_SHARED(float4, staged);
  staged[0] = x[1];
  if (blockIdx.x == 0) {
    copy_async(&staged[0], &x[0]);
    commit_copies();
  } else {
    wait_for_copies<0>();
    y[0] = staged[0];
  }
}
