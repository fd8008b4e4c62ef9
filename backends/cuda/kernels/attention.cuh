// What the kernels of attention share: who sees a cell, which chunks of cells are worth a look, how results are ended.
//
// The rows of a kv head are its T · G queries (G = H / Hkv): row r is token r / G with the query r % G of the group.
// Blocks take ROWS of them. Cells come in chunks of 32 or 64; `visible` tells for each block of rows and each chunk,
// in two bits of two words, whether any row may see any of its cells, and whether all see all: see mark_chunks.
#pragma once
#include "common.cuh"
#include "elements.cuh"

constexpr float LOG2_OF_E = 1.4426950408889634f;

// A query's token: nothing is seen from position -1.
struct Viewer {
  int position, sequence;
};

__device__ __forceinline__ Viewer viewer_of(const Tensor& q_pos, const Tensor& q_seq, int64_t token) {
  const int sequence = at<i32>(q_seq, 0, 0, 0, token);
  if (sequence < 0 || sequence > 63) return {-1, 0};
  return {at<i32>(q_pos, 0, 0, 0, token), sequence};
}

__device__ __forceinline__ bool sees(Viewer viewer, int position, int64_t sequences, int window) {
  return position >= 0 && position <= viewer.position && (sequences >> viewer.sequence & 1) &&
         (window == 0 || viewer.position - position < window);
}

// This block's share of the visible chunks, one after the other; of all chunks where `visible` is null. All warps of a
// block go through it alike.
struct Chunks {
  const uint32_t *any, *all;
  int words, window, left;  // `window` is the next chunk itself where all are taken
  uint32_t word;            // of this lane: bit i is chunk (window + lane) · 32 + i

  // Part blockIdx.z of gridDim.z of the chunks in words first_word … first_word + words - 1.
  __device__ __forceinline__ Chunks(const uint32_t* visible, int words_in_all, int row_block, int first_word, int words,
                                    int chunks)
      : any(visible), all(visible), words(words) {
    const int lane = threadIdx.x % 32, part = blockIdx.z, parts = gridDim.z;
    if (!visible) {
      window = (int)((int64_t)chunks * part / parts);
      left = (int)((int64_t)chunks * (part + 1) / parts) - window;
      return;
    }
    any += (int64_t)row_block * 2 * words_in_all + first_word;
    all = any + words_in_all;
    int count = 0;
    for (int w = lane; w < words; w += 32) count += __popc(any[w]);
#pragma unroll
    for (int distance = 16; distance; distance >>= 1) count += __shfl_xor_sync(ALL_LANES, count, distance);
    int skipped = (int)((int64_t)count * part / parts);
    left = (int)((int64_t)count * (part + 1) / parts) - skipped;
    for (window = 0; left > 0; window += 32) {
      word = window + lane < words ? any[window + lane] : 0;
      int before = __popc(word);  // chunks of lower lanes, and then of this one too
#pragma unroll
      for (int distance = 1; distance < 32; distance <<= 1) {
        const int lower = __shfl_up_sync(ALL_LANES, before, distance);
        if (lane >= distance) before += lower;
      }
      const int here = __shfl_sync(ALL_LANES, before, 31);
      if (skipped < here) {
        for (int drop = min(skipped - before + __popc(word), __popc(word)); drop > 0; drop--) word &= word - 1;
        break;
      }
      skipped -= here;
    }
  }

  // The next chunk, or -1.
  __device__ __forceinline__ int next() {
    if (left <= 0) return -1;
    left--;
    if (!any) return window++;
    unsigned lanes = __ballot_sync(ALL_LANES, word != 0);
    while (!lanes) {
      window += 32;
      word = window + threadIdx.x % 32 < words ? any[window + threadIdx.x % 32] : 0;
      lanes = __ballot_sync(ALL_LANES, word != 0);
    }
    const int lane = __ffs(lanes) - 1, bit = __ffs(__shfl_sync(ALL_LANES, word, lane)) - 1;
    if ((int)(threadIdx.x % 32) == lane) word &= word - 1;
    return (window + lane) * 32 + bit;
  }

  // Whether all rows see all cells of a chunk.
  __device__ __forceinline__ bool is_whole(int chunk) const { return all && (all[chunk / 32] >> chunk % 32 & 1); }
};

// A logit in units of log 2; tanh(x) = 1 - 2 / (exp(2x) + 1), to 1e-7 of 1.
__device__ __forceinline__ float logit_of(float product, float scale, float softcap) {
  const float logit = product * scale * LOG2_OF_E;
  return softcap > 0 ? softcap * LOG2_OF_E * (1 - __fdividef(2, exp2f(2 / softcap * logit) + 1)) : logit;
}

// Highest logits start at -inf; a power is taken of the distance to it, or to 0 while nothing was seen.
__device__ __forceinline__ float base_of(float highest) { return highest == -INFINITY ? 0.0f : highest; }

// What makes the mix of powers a row's result: `sum` of powers over 2^highest, and the sink that joins them.
__device__ __forceinline__ float final_factor(float highest, float sum, const Tensor& sinks, int sink_kind, int head) {
  float power = 1;
  if (sink_kind >= 0) {
    const float sink = LOG2_OF_E * load_as_float(sink_kind, sinks.data + head * sinks.strides[3]);
    const float base = base_of(fmaxf(highest, sink));
    power = exp2f(highest - base);
    sum = sum * power + exp2f(sink - base);
  }
  return sum == 0 ? 0.0f : power / sum;
}

// Where a row's result goes while parts of cells are apart: its mix, and [highest, sum] behind all mixes.
struct Partial {
  float* data;
  int64_t rows, width;  // of all parts

  __device__ __forceinline__ float* mix(int64_t row) const { return data + row * width; }
  __device__ __forceinline__ float* scales(int64_t row) const { return data + rows * width + 2 * row; }
};
