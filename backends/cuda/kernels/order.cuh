// Floats as unsigned numbers of the same order: NaN below all, -0 as 0.
#pragma once
#include "common.cuh"

__device__ __forceinline__ uint32_t rank_of(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);  // makes -0 equal to 0
  return x != x ? 0 : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
