// x as int8: blocks of 32 elements, each element about d · code. How quantize.cu lays them out for mmvq.cu.
//
// In mmvq.cu a lane takes two blocks at a time, a warp 64: a step. So that lanes read next to each other, the steps of a
// row hold 4 planes of 16 bytes for each lane: codes 0 … 15, 16 … 31 of its first block, then of its second.
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
__device__ __forceinline__ int64_t padded_blocks(int64_t blocks) {
  return (blocks + STEP_BLOCKS - 1) / STEP_BLOCKS * STEP_BLOCKS;
}

// Where 16 codes lie: `half` 0 or 1 of block `block` of a row.
__device__ __forceinline__ int64_t codes_at(int64_t row, int64_t blocks, int64_t block, int half) {
  const int64_t step = block / STEP_BLOCKS, lane = block % STEP_BLOCKS / 2, plane = block % 2 * 2 + half;
  return row * padded_blocks(blocks) * 32 + step * STEP_ELEMENTS + plane * 512 + lane * 16;
}
__device__ __forceinline__ int64_t factor_at(int64_t row, int64_t blocks, int64_t block) {
  return row * padded_blocks(blocks) + block;
}
