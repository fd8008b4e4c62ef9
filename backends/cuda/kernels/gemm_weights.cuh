// How gemm.cu brings weights to tensor cores: their bytes go to shared memory as they are, and every lane expands those
// that it multiplies straight into registers.
//
// A lane of mma.m16n8k16 wants k = 2t, 2t + 1, 2t + 8, 2t + 9 (t = lane % 4). The sum does not mind the order of k, so
// lane t takes k = 8t … 8t + 7 of 32, in weights and x alike, for two instructions: eight neighbours in one block.
#pragma once
#include "blocks.cuh"

constexpr int STEP = 32;  // elements of k that a warp expands and multiplies at once

// The stretch of a row that is copied at once.
template <class W> struct Chunk {
  static constexpr bool PLAIN = Blocks<W>::elements == 1;
  // Rows of 128 bytes and more use whole sectors of memory; two chunks of 128 rows fit into 64 KiB.
  static constexpr int ELEMENTS = PLAIN || (Blocks<W>::elements == 32 && Blocks<W>::bytes > 24) ? 128 : 256;
  static constexpr int STEPS = ELEMENTS / STEP;
  static constexpr int BYTES = ELEMENTS / Blocks<W>::elements * Blocks<W>::bytes;
  // Rows of blocks begin at any address: pieces of 16 bytes are copied from the one below on. An odd number of pieces
  // from row to row spreads eight rows over all banks.
  static constexpr int PIECES = PLAIN ? BYTES / 16 : (BYTES + 15 + 15) / 16 | 1;
  static_assert(STEPS >= 4, "copies begin at one barrier, a chunk is read from the step before it on: two barriers later");

  // Where a piece of a row lies among those of ROWS rows. Rows of plain elements lie in slabs of one step, 64 bytes a
  // row: two rows fill the banks.
  template <int ROWS> __device__ __forceinline__ static int place(int row, int piece) {
    return PLAIN ? (piece / 4 * ROWS + row) * 64 + piece % 4 * 16 : (row * PIECES + piece) * 16;
  }
};

__device__ __forceinline__ uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Byte `i` of four as a float; byte 2 of 128.0f is one that counts ones, byte 1 of 32768.0f likewise.
template <bool SIGNED> __device__ __forceinline__ float code_at(uint32_t codes, int i) {
  if (!SIGNED) return __uint_as_float(__byte_perm(codes, 0x43000000, 0x7044 | i << 8));  // 128 + code, below 128
  return __uint_as_float(__byte_perm(codes ^ 0x80808080u, 0x47000000, 0x7404 | i << 4)) - (32768.0f + 128.0f);
}

// Eight elements from `first` on of a block, or of plain elements at an address that 16 divides.
template <class W> __device__ __forceinline__ void expand8(const char* block, int first, uint32_t (&packed)[4]) {
  constexpr bool SIGNED = !Blocks<W>::has_offset;
  uint32_t codes[2];
  Blocks<W>::template codes<8>(block, first, codes);
  const Scales by = Blocks<W>::scales(block, first);
  const float offset = SIGNED ? by.offset : by.offset - 128 * by.scale;
  float v[8];
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = code_at<SIGNED>(codes[i / 4], i % 4) * by.scale + offset;
#pragma unroll
  for (int i = 0; i < 4; i++) packed[i] = pack(v[2 * i], v[2 * i + 1]);
}
template <> __device__ __forceinline__ void expand8<bf16>(const char* block, int first, uint32_t (&packed)[4]) {
  const uint4 raw = *reinterpret_cast<const uint4*>(block + 2 * first);
  packed[0] = raw.x, packed[1] = raw.y, packed[2] = raw.z, packed[3] = raw.w;
}
template <> __device__ __forceinline__ void expand8<f16>(const char* block, int first, uint32_t (&packed)[4]) {
  const uint4 raw = *reinterpret_cast<const uint4*>(block + 2 * first);
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 both = __half22float2(reinterpret_cast<const __half2&>(words[i]));
    packed[i] = pack(both.x, both.y);
  }
}

// Two elements of q4_0 of two bytes of codes, in bf16 throughout: 128 + code from a byte permute, less 136 exact.
__device__ __forceinline__ uint32_t q4_0_pair(uint32_t codes, int selector, __nv_bfloat162 scale) {
  const uint32_t raised = __byte_perm(codes, 0x43434343, selector), zero = 0x43084308;
  const __nv_bfloat162 pair = __hmul2(
      __hsub2(reinterpret_cast<const __nv_bfloat162&>(raised), reinterpret_cast<const __nv_bfloat162&>(zero)), scale);
  return reinterpret_cast<const uint32_t&>(pair);
}
// The most common weights: half of the instructions of the above. The scale is rounded to bf16 besides the product.
template <> __device__ __forceinline__ void expand8<q4_0>(const char* block, int first, uint32_t (&packed)[4]) {
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(block + 2 + first % 16);
  const __nv_bfloat162 scale = __float2bfloat162_rn(half_at(block));
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const uint32_t codes = (halves[2 * i] | (uint32_t)halves[2 * i + 1] << 16) >> first / 16 * 4 & 0x0f0f0f0fu;
    packed[2 * i] = q4_0_pair(codes, 0x4140, scale);
    packed[2 * i + 1] = q4_0_pair(codes, 0x4342, scale);
  }
}

// ROWS rows of a weight, from `data` on; those from `rows` on do not exist.
template <class W, int ROWS> struct WeightTile {
  using C = Chunk<W>;
  static constexpr int BYTES = ROWS * C::PIECES * 16;
  const char* data;
  int64_t stride;
  int rows, row_bytes;

  // Begin to copy a chunk.
  template <int THREADS> __device__ __forceinline__ void copy(char* shared, int chunk) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * C::PIECES; i += THREADS) {
      const int row = i / C::PIECES, piece = i % C::PIECES;
      const char* start = data + row * stride + (int64_t)chunk * C::BYTES;
      const int64_t from = ((int64_t)start & ~(int64_t)15) + piece * 16;
      const int bytes = min((int)C::BYTES, row_bytes - chunk * C::BYTES);
      if (row < rows && from < (int64_t)start + bytes)
        copy_async(shared + C::template place<ROWS>(row, piece), (const void*)from);
    }
  }

  // How far from a piece's start a row of blocks begins, before the first chunk.
  __device__ __forceinline__ int shift(int row) const { return (int)(int64_t)data + row * (int)stride & 15; }

  // Elements 8t … 8t + 7 of a row's step, t = lane % 4, from the copied chunk.
  __device__ __forceinline__ void expand(const char* shared, int row, int row_shift, int chunk, int step,
                                         uint32_t (&packed)[4]) const {
    const int first = threadIdx.x % 4 * 8;
    if constexpr (C::PLAIN) {
      expand8<W>(shared + C::template place<ROWS>(row, 4 * step), first, packed);
    } else {
      constexpr int LENGTH = Blocks<W>::elements;
      const int shift = C::BYTES % 16 ? row_shift + chunk * C::BYTES & 15 : row_shift;
      const char* row_start = shared + C::template place<ROWS>(row, 0) + shift;
      expand8<W>(row_start + step * STEP / LENGTH * Blocks<W>::bytes, step * STEP % LENGTH + first, packed);
    }
  }
};
