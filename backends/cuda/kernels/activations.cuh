// The functions between layers, as their NumPy references define them, NaN and infinities included. Quotients are
// within 2 steps of the exact ones; of divisors beyond 2^126 they are 0.
#pragma once
#include "common.cuh"

__device__ __forceinline__ float sigmoid_of(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }
__device__ __forceinline__ float silu_of(float x) { return __fdividef(x, 1.0f + expf(-x)); }
__device__ __forceinline__ float relu_of(float x) { return x < 0.0f ? 0.0f : x; }
__device__ __forceinline__ float softplus_of(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }
// x/2 · (1 + tanh(u)) = x / (1 + exp(-2u)), which loses nothing to 1 - 1 where x is far below zero.
__device__ __forceinline__ float gelu_of(float x) {
  return __fdividef(x, 1.0f + expf(-1.5957691216f * (x + 0.044715f * x * x * x)));
}
