// How gemm.cu and mmq.cu bring weights to tensor cores: their bytes go to shared memory as they are, and every lane
// expands those that it multiplies straight into registers.
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
  static_assert(STEPS >= 4, "a chunk is expanded from the last step of the one before it on");

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

__device__ __forceinline__ __nv_bfloat162 pair_of(uint32_t bits) {
  return reinterpret_cast<const __nv_bfloat162&>(bits);
}

// Eight codes of a block. Two bytes at a time are read faster than words at addresses that only 2 divides.
template <class W> __device__ __forceinline__ void codes8(const char* block, int first, uint32_t (&codes)[2]) {
  Blocks<W>::template codes<8>(block, first, codes);
}
__device__ __forceinline__ void read_halves(const char* source, uint32_t (&words)[2]) {
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(source);
  words[0] = halves[0] | (uint32_t)halves[1] << 16;
  words[1] = halves[2] | (uint32_t)halves[3] << 16;
}
template <> __device__ __forceinline__ void codes8<q4_0>(const char* block, int first, uint32_t (&codes)[2]) {
  read_halves(block + 2 + first % 16, codes);
  codes[0] = codes[0] >> first / 16 * 4 & 0x0f0f0f0fu;
  codes[1] = codes[1] >> first / 16 * 4 & 0x0f0f0f0fu;
}
template <> __device__ __forceinline__ void codes8<q8_0>(const char* block, int first, uint32_t (&codes)[2]) {
  read_halves(block + 2 + first, codes);
}

// The code that stands for 0 in dtypes without a minimum of their own; codes of the others are signed, or have one.
template <class W> constexpr int ZERO = -1;
template <> constexpr int ZERO<q4_0> = 8;
template <> constexpr int ZERO<q5_0> = 16;
template <> constexpr int ZERO<q3_k> = 4;
template <> constexpr int ZERO<q6_k> = 32;

// Eight elements from `first` on of a block, or of plain elements at an address that 16 divides.
//
// 0x43 in front of a byte below 128 makes the bfloat16 128 + byte, in front of a top bit alone 128 or 256: differences
// are exact, and one instruction multiplies two. The scale is rounded to bfloat16, besides the product. With a minimum
// that would cost more precision: there 0x43 in front of a byte, and two of zeros behind it, make a float.
template <class W> __device__ __forceinline__ void expand8(const char* block, int first, uint32_t (&packed)[4]) {
  uint32_t codes[2];
  codes8<W>(block, first, codes);
  const Scales by = Blocks<W>::scales(block, first);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t four = codes[i / 2];
    if constexpr (Blocks<W>::has_offset && ZERO<W> < 0) {
      const float offset = by.offset - 128 * by.scale;
      const float low = __uint_as_float(__byte_perm(four, 0x43000000, i % 2 ? 0x7244 : 0x7044));
      const float high = __uint_as_float(__byte_perm(four, 0x43000000, i % 2 ? 0x7344 : 0x7144));
      packed[i] = pack(low * by.scale + offset, high * by.scale + offset);
    } else {
      constexpr bool SIGNED = !Blocks<W>::has_offset;
      const unsigned selector = i % 2 ? 0x4342 : 0x4140;
      const uint32_t raised = __byte_perm(SIGNED ? four & 0x7f7f7f7fu : four, 0x43434343, selector);
      const uint32_t zero =
          SIGNED ? __byte_perm(four & 0x80808080u, 0x43434343, selector) : 0x43004300u + ZERO<W> * 0x10001u;
      const __nv_bfloat162 pair = __hmul2(__hsub2(pair_of(raised), pair_of(zero)), __float2bfloat162_rn(by.scale));
      packed[i] = reinterpret_cast<const uint32_t&>(pair);
    }
  }
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

  // The block in which a row's step begins, in the copied chunk.
  __device__ __forceinline__ const char* block(const char* shared, int row, int row_shift, int chunk, int step) const {
    const int shift = C::BYTES % 16 ? row_shift + chunk * C::BYTES & 15 : row_shift;
    return shared + C::template place<ROWS>(row, 0) + shift + step * STEP / Blocks<W>::elements * Blocks<W>::bytes;
  }

  // Elements 8t … 8t + 7 of a row's step, t = lane % 4, from the copied chunk.
  __device__ __forceinline__ void expand(const char* shared, int row, int row_shift, int chunk, int step,
                                         uint32_t (&packed)[4]) const {
    const int first = threadIdx.x % 4 * 8;
    if constexpr (C::PLAIN)
      expand8<W>(shared + C::template place<ROWS>(row, 4 * step), first, packed);
    else
      expand8<W>(block(shared, row, row_shift, chunk, step), step * STEP % Blocks<W>::elements + first, packed);
  }
};
