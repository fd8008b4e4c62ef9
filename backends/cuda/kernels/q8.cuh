// x as int8: blocks of 32 elements, each element about d · code. How quantize.cu and others lay them out for mmvq.cuh.
//
// In mmvq.cuh a lane takes two blocks at a time, a warp 64: a step. So that lanes read next to each other, the steps of
// a row hold 4 planes of 16 bytes for each lane: codes 0 … 15, 16 … 31 of its first block, then of its second.
#pragma once
#include "common.cuh"

constexpr int STEP_BLOCKS = 64, STEP_ELEMENTS = 32 * STEP_BLOCKS;

struct __align__(8) Factor {
  float d;
  uint32_t sums;  // of the codes 0 … 15 and 16 … 31, as int16: whole numbers, so that offsets of weights are exact
  __device__ __forceinline__ int first_sum() const { return (int16_t)(sums & 0xffff); }
  __device__ __forceinline__ int second_sum() const { return (int16_t)(sums >> 16); }
};

// Blocks of a row, made whole steps.
__device__ __forceinline__ unsigned padded_blocks(unsigned blocks) {
  return (blocks + STEP_BLOCKS - 1) / STEP_BLOCKS * STEP_BLOCKS;
}

// Where 16 codes lie: `half` 0 or 1 of block `block` of a row of so many.
__device__ __forceinline__ int64_t codes_at(int64_t row, unsigned blocks, unsigned block, int half) {
  const unsigned step = block / STEP_BLOCKS, lane = block % STEP_BLOCKS / 2, plane = block % 2 * 2 + half;
  return row * padded_blocks(blocks) * 32 + (int64_t)step * STEP_ELEMENTS + plane * 512 + lane * 16;
}
__device__ __forceinline__ int64_t factor_at(int64_t row, unsigned blocks, unsigned block) {
  return row * padded_blocks(blocks) + block;
}

// The larger of the two, and NaN if one is.
__device__ __forceinline__ float larger(float a, float b) { return b > a || b != b ? b : a; }

// What elements of a block are multiplied by to be codes, given their largest; 0 where codes tell nothing. An infinity
// or NaN is told by d then: nothing times d is finite.
__device__ __forceinline__ float inverse_of(float largest) {
  return largest > 1e-30f && largest < INFINITY ? 127 / largest : 0;
}
__device__ __forceinline__ int code_of(float v, float inverse) { return inverse > 0 ? __float2int_rn(v * inverse) : 0; }

__device__ __forceinline__ Factor factor_of(float largest, int first_sum, int second_sum) {
  return {largest / 127, (first_sum & 0xffff) | (uint32_t)second_sum << 16};
}

// A block by 4 neighbouring lanes, from 8 elements of each. Only those 4 need to be there.
__device__ __forceinline__ void write_eights(const float (&v)[8], int8_t* codes, Factor* factors, int64_t row,
                                             unsigned blocks, unsigned block) {
  const int lane = threadIdx.x % 32, part = lane % 4;
  const unsigned four = 15u << (lane - part);
  float largest = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) largest = larger(largest, fabsf(v[i]));
  largest = larger(largest, __shfl_xor_sync(four, largest, 1));
  largest = larger(largest, __shfl_xor_sync(four, largest, 2));
  const float inverse = inverse_of(largest);
  uint2 packed = {};
  int sum = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int code = code_of(v[i], inverse);
    (i < 4 ? packed.x : packed.y) |= (uint32_t)(code & 255) << i % 4 * 8;
    sum += code;
  }
  sum += __shfl_xor_sync(four, sum, 1);
  const int other = __shfl_xor_sync(four, sum, 2);
  *reinterpret_cast<uint2*>(codes + codes_at(row, blocks, block, part / 2) + part % 2 * 8) = packed;
  if (part == 0) factors[factor_at(row, blocks, block)] = factor_of(largest, sum, other);
}

// A block by a warp, from an element of each lane.
__device__ __forceinline__ void write_block(float v, int8_t* codes, Factor* factors, int64_t row, unsigned blocks,
                                            unsigned block) {
  const int lane = threadIdx.x % 32;
  float largest = larger(0, fabsf(v));
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2)
    largest = larger(largest, __shfl_xor_sync(ALL_LANES, largest, distance));
  const int code = code_of(v, inverse_of(largest));
  int sum = code;
#pragma unroll
  for (int distance = 1; distance < 16; distance *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, distance);
  const int second = __shfl_down_sync(ALL_LANES, sum, 16);
  codes[codes_at(row, blocks, block, lane / 16) + lane % 16] = code;
  if (lane == 0) factors[factor_at(row, blocks, block)] = factor_of(largest, sum, second);
}
