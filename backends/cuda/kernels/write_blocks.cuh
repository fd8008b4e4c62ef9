// A warp's 32 values as one block of a quantized dtype, the way back from blocks.cuh. Codes are those of ggml's
// reference, so products and sums are rounded one by one here and never contracted.
#pragma once
#include "elements.cuh"

constexpr int KIND_Q4_0 = 2, KIND_Q4_1 = 3, KIND_Q5_0 = 6, KIND_Q5_1 = 7, KIND_Q8_0 = 8, KIND_MXFP4 = 39;

// The greatest of a warp's values; NaN if one is.
__device__ __forceinline__ float greatest_or_nan(float v) {
  const float greatest = warp_max(v);
  return __any_sync(ALL_LANES, v != v) ? NAN : greatest;
}

// The value of greatest magnitude with its sign; of equal ones the first; NaN if one is.
__device__ __forceinline__ float extreme(float v) {
  const float magnitude = greatest_or_nan(fabsf(v));
  const unsigned holders = __ballot_sync(ALL_LANES, fabsf(v) == magnitude);
  return holders ? __shfl_sync(ALL_LANES, v, __ffs(holders) - 1) : magnitude;
}

__device__ __forceinline__ float inverse(float scale) { return scale != 0 ? 1.0f / scale : 0.0f; }

// v · factor + bias, rounded down and limited.
__device__ __forceinline__ int code_of(float v, float factor, float bias, int most) {
  return min((int)__fadd_rn(__fmul_rn(v, factor), bias), most);
}

// 16 bytes at `packed`: the codes' low four bits, those of lanes i and i + 16 in one byte.
__device__ __forceinline__ void store_nibbles(char* packed, int code) {
  const int lane = threadIdx.x % 32, upper = __shfl_sync(ALL_LANES, code, lane % 16 + 16);
  if (lane < 16) packed[lane] = (char)((code & 15) | (upper & 15) << 4);
}

// Four bytes at `packed`: the codes' fifth bits.
__device__ __forceinline__ void store_fifth_bits(char* packed, int code) {
  const unsigned bits = __ballot_sync(ALL_LANES, code > 15);
  if (threadIdx.x % 32 < 4) packed[threadIdx.x % 32] = (char)(bits >> threadIdx.x % 32 * 8);
}

__device__ __forceinline__ void store_half(char* at, float x) {
  if (threadIdx.x % 32 == 0) *reinterpret_cast<f16*>(at) = from_float<f16>(x);
}

// The number of the level nearest to v / scale; of two as near the lower number.
__device__ __forceinline__ int mxfp4_code(float v, float scale) {
  int best = 0;
  float least = INFINITY;
  for (int code = 0; code < 16; code++) {
    const int magnitude = 0xc8643210u >> 4 * (code % 8) & 15;  // 0 1 2 3 4 6 8 12
    const float error = fabsf(scale * (code < 8 ? magnitude : -magnitude) - v);
    if (error < least) {
      best = code;
      least = error;
    }
  }
  return best;
}

// Lane i gives element i; all 32 lanes take part.
__device__ __forceinline__ void write_block(int kind, char* block, float v) {
  if (kind == KIND_Q8_0) {
    const float scale = greatest_or_nan(fabsf(v)) / 127.0f;
    store_half(block, scale);
    block[2 + threadIdx.x % 32] = (char)(int)roundf(__fmul_rn(v, inverse(scale)));
  } else if (kind == KIND_Q4_0 || kind == KIND_Q5_0) {
    const bool five = kind == KIND_Q5_0;
    const float scale = extreme(v) / (five ? -16.0f : -8.0f);
    const int code = code_of(v, inverse(scale), five ? 16.5f : 8.5f, five ? 31 : 15);
    store_half(block, scale);
    if (five) store_fifth_bits(block + 2, code);
    store_nibbles(block + (five ? 6 : 2), code);
  } else if (kind == KIND_Q4_1 || kind == KIND_Q5_1) {
    const bool five = kind == KIND_Q5_1;
    const float least = -greatest_or_nan(-v), scale = (greatest_or_nan(v) - least) / (five ? 31.0f : 15.0f);
    const int code = code_of(v - least, inverse(scale), 0.5f, five ? 31 : 15);
    store_half(block, scale);
    store_half(block + 2, least);
    if (five) store_fifth_bits(block + 4, code);
    store_nibbles(block + (five ? 8 : 4), code);
  } else {  // mxfp4; its scale is half of 2^(exponent - 127), as its levels are doubled
    const float magnitude = greatest_or_nan(fabsf(v));
    const int exponent = magnitude > 0 ? max(0, (int)(__float_as_uint(magnitude) >> 23) - 2) : 0;
    const float scale = __uint_as_float(exponent < 2 ? 0x00200000u << exponent : (uint32_t)(exponent - 1) << 23);
    if (threadIdx.x % 32 == 0) block[0] = (char)exponent;
    store_nibbles(block + 1, mxfp4_code(v, scale));
  }
}
