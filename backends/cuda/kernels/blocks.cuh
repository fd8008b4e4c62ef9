// Weights as they lie in GGUF files: blocks of quantized elements, in ggml's layouts, and how their elements are got.
//
// Blocks<T> of a dtype T tells, besides `elements` and `bytes` of a block:
//   dequantize8(block, first, v)    elements first … first + 7 of a block in float32; first is a multiple of 8.
// and of a quantized dtype also, for kernels that multiply whole numbers,
//   codes<COUNT>(block, first, c)   the whole numbers of COUNT elements, four to a word; 8, 16 or 32, and first is a
//                                   multiple of COUNT;
//   scales(block, first)            what makes elements of codes, for the 16 elements that `first` is among:
//                                   element = code · scale + offset.
//   has_offset, scaled              whether there are offsets at all; how many elements share a scale, 16 or 32.
// Plain dtypes are blocks of one element; there `first` may be anything.
//
// Blocks begin at multiples of 2 bytes as a rule (mxfp4: anywhere), so words are put together from aligned ones. Only
// aligned words with a byte of the block in them are read.
#pragma once
#include "common.cuh"

struct q4_0; struct q4_1; struct q5_0; struct q5_1; struct q8_0; struct iq4_nl; struct mxfp4;
struct q2_k; struct q3_k; struct q4_k; struct q5_k; struct q6_k; struct iq4_xs;

struct Scales {
  float scale, offset;
};

template <class T> struct Blocks;

// COUNT bytes from any address, as words.
template <int COUNT> __device__ __forceinline__ void read_bytes(const void* source, uint32_t (&words)[COUNT / 4]) {
  const unsigned past = reinterpret_cast<uintptr_t>(source) & 3, selector = 0x3210 + 0x1111 * past;
  // A pointer all the way: the compiler still knows what it points to where that is shared memory.
  const uint32_t* aligned = reinterpret_cast<const uint32_t*>(static_cast<const char*>(source) - past);
  uint32_t low = aligned[0];
#pragma unroll
  for (int i = 0; i < COUNT / 4; i++) {
    const uint32_t high = i + 1 < COUNT / 4 ? aligned[i + 1] : aligned[i + (past != 0)];
    words[i] = __byte_perm(low, high, selector);
    low = high;
  }
}

// The same where the address is known to be a multiple of 4, or of 16 (of 8, for 8 bytes).
template <int COUNT> __device__ __forceinline__ void read_words(const void* source, uint32_t (&words)[COUNT / 4]) {
#pragma unroll
  for (int i = 0; i < COUNT / 4; i++) words[i] = reinterpret_cast<const uint32_t*>(source)[i];
}
template <int COUNT> __device__ __forceinline__ void read_aligned(const void* source, uint32_t (&words)[COUNT / 4]) {
  if constexpr (COUNT == 8) {
    const uint2 pair = *reinterpret_cast<const uint2*>(source);
    words[0] = pair.x, words[1] = pair.y;
  } else {
#pragma unroll
    for (int i = 0; i < COUNT / 16; i++) {
      const uint4 four = reinterpret_cast<const uint4*>(source)[i];
      words[4 * i] = four.x, words[4 * i + 1] = four.y, words[4 * i + 2] = four.z, words[4 * i + 3] = four.w;
    }
  }
}

__device__ __forceinline__ float half_at(const char* address) {
  return __half2float(*reinterpret_cast<const __half*>(address));
}

__device__ __forceinline__ int byte_at(const char* address) { return *reinterpret_cast<const uint8_t*>(address); }

// 4 times 4 bits, one in the low half of each byte, as the bytes of a table of 16.
__device__ __forceinline__ uint32_t look_up(uint32_t nibbles, uint32_t t0, uint32_t t1, uint32_t t2, uint32_t t3) {
  const uint32_t pairs = nibbles | nibbles >> 4;  // the four as one number of 16 bits
  const uint32_t selector = __byte_perm(pairs, 0, 0x4420);
  const uint32_t low = __byte_perm(t0, t1, selector & 0x7777), high = __byte_perm(t2, t3, selector & 0x7777);
  return __byte_perm(low, high, 0x3210 | (selector & 0x8888) >> 1);
}
__device__ __forceinline__ uint32_t iq4_levels(uint32_t nibbles) {  // -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 …
  return look_up(nibbles, 0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
}
__device__ __forceinline__ uint32_t mxfp4_levels(uint32_t nibbles) {  // 0 1 2 3 4 6 8 12 and their negatives
  return look_up(nibbles, 0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
}

// What 4 bits of a fifth, third or other bit plane add to 4 codes: bit i of `bits`, moved to bit `to` of byte i.
template <int TO> __device__ __forceinline__ uint32_t spread_bits(uint32_t bits) {
  return ((bits & 15) * 0x00204081u & 0x01010101u) << TO;
}

// COUNT 4-bit codes of 32 whose first 16 lie in the low halves of 16 bytes, the others in the high halves.
template <int COUNT>
__device__ __forceinline__ void nibbles_of_32(const char* packed, int first, uint32_t (&codes)[COUNT / 4]) {
  constexpr int READ = COUNT < 16 ? COUNT : 16;
  uint32_t words[READ / 4];
  read_bytes<READ>(packed + first % 16, words);
#pragma unroll
  for (int i = 0; i < COUNT / 4; i++)
    codes[i] = words[i % 4] >> (COUNT == 32 ? i / 4 * 4 : first / 16 * 4) & 0x0f0f0f0fu;
}

template <class T>
__device__ __forceinline__ void dequantize8_codes(const char* block, int first, float (&v)[8]) {
  uint32_t codes[2];
  Blocks<T>::template codes<8>(block, first, codes);
  const Scales by = Blocks<T>::scales(block, first);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float code = (float)(int8_t)(codes[i / 4] >> i % 4 * 8);
    v[i] = Blocks<T>::has_offset ? code * by.scale + by.offset : code * by.scale;
  }
}

template <class T> struct PlainBlocks {
  static constexpr int elements = 1, bytes = sizeof(T);
  static __device__ __forceinline__ void dequantize8(const char* block, int first, float (&v)[8]) {
    const T* source = reinterpret_cast<const T*>(block) + first;
    T values[8];
    if (reinterpret_cast<uintptr_t>(source) % 16 == 0) {
#pragma unroll
      for (int i = 0; i < (int)sizeof(T) / 2; i++)
        reinterpret_cast<uint4*>(values)[i] = reinterpret_cast<const uint4*>(source)[i];
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) values[i] = source[i];
    }
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = to_float(values[i]);
  }
};
template <> struct Blocks<f32> : PlainBlocks<f32> {};
template <> struct Blocks<f16> : PlainBlocks<f16> {};
template <> struct Blocks<bf16> : PlainBlocks<bf16> {};

template <class T, int ELEMENTS, int BYTES, int SCALED, bool OFFSET> struct CodeBlocks {
  static constexpr int elements = ELEMENTS, bytes = BYTES, scaled = SCALED;
  static constexpr bool has_offset = OFFSET;
  static __device__ __forceinline__ void dequantize8(const char* block, int first, float (&v)[8]) {
    dequantize8_codes<T>(block, first, v);
  }
};

#define CODES             \
  template <int COUNT>    \
  static __device__ __forceinline__ void codes(const char* block, int first, uint32_t (&c)[COUNT / 4])
#define SCALES static __device__ __forceinline__ Scales scales(const char* block, int first)

// ---- 32 elements ----------------------------------------------------------------------------------------------------

// d f16, codes[16] with 8 added.
template <> struct Blocks<q4_0> : CodeBlocks<q4_0, 32, 18, 32, true> {
  CODES { nibbles_of_32<COUNT>(block + 2, first, c); }
  SCALES {
    const float d = half_at(block);
    return {d, -8 * d};
  }
};

// d f16, least f16, codes[16].
template <> struct Blocks<q4_1> : CodeBlocks<q4_1, 32, 20, 32, true> {
  CODES { nibbles_of_32<COUNT>(block + 4, first, c); }
  SCALES { return {half_at(block), half_at(block + 2)}; }
};

// Adds the fifth bits of COUNT of 32 codes, which lie in 4 bytes.
template <int COUNT>
__device__ __forceinline__ void add_fifth_bits(const char* packed, int first, uint32_t (&codes)[COUNT / 4]) {
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(packed);
  const uint32_t bits = (halves[0] | (uint32_t)halves[1] << 16) >> first;
#pragma unroll
  for (int i = 0; i < COUNT / 4; i++) codes[i] |= spread_bits<4>(bits >> 4 * i);
}

// d f16, fifth bits[4], codes[16] with 16 added.
template <> struct Blocks<q5_0> : CodeBlocks<q5_0, 32, 22, 32, true> {
  CODES {
    nibbles_of_32<COUNT>(block + 6, first, c);
    add_fifth_bits<COUNT>(block + 2, first, c);
  }
  SCALES {
    const float d = half_at(block);
    return {d, -16 * d};
  }
};

// d f16, least f16, fifth bits[4], codes[16].
template <> struct Blocks<q5_1> : CodeBlocks<q5_1, 32, 24, 32, true> {
  CODES {
    nibbles_of_32<COUNT>(block + 8, first, c);
    add_fifth_bits<COUNT>(block + 4, first, c);
  }
  SCALES { return {half_at(block), half_at(block + 2)}; }
};

// d f16, codes[32].
template <> struct Blocks<q8_0> : CodeBlocks<q8_0, 32, 34, 32, false> {
  CODES { read_bytes<COUNT>(block + 2 + first, c); }
  SCALES { return {half_at(block), 0}; }
};

// d f16, codes[16] of levels.
template <> struct Blocks<iq4_nl> : CodeBlocks<iq4_nl, 32, 18, 32, false> {
  CODES {
    nibbles_of_32<COUNT>(block + 2, first, c);
#pragma unroll
    for (int i = 0; i < COUNT / 4; i++) c[i] = iq4_levels(c[i]);
  }
  SCALES { return {half_at(block), 0}; }
};

// An exponent in a byte, codes[16] of levels. The levels are doubled, so the scale is half of 2^(e - 127).
template <> struct Blocks<mxfp4> : CodeBlocks<mxfp4, 32, 17, 32, false> {
  CODES {
    nibbles_of_32<COUNT>(block + 1, first, c);
#pragma unroll
    for (int i = 0; i < COUNT / 4; i++) c[i] = mxfp4_levels(c[i]);
  }
  SCALES {
    const int exponent = byte_at(block);  // the two least give subnormal numbers
    return {__int_as_float(exponent < 2 ? 0x00200000 << exponent : (exponent - 1) << 23), 0};
  }
};

// ---- 256 elements ---------------------------------------------------------------------------------------------------

// scales[16], 4 bits of scale and 4 of minimum for 16 elements each; codes[64] of 2 bits; d f16, dmin f16.
template <> struct Blocks<q2_k> : CodeBlocks<q2_k, 256, 84, 16, true> {
  CODES {
    read_words<COUNT>(block + 16 + first / 128 * 32 + first % 32, c);
#pragma unroll
    for (int i = 0; i < COUNT / 4; i++) c[i] = c[i] >> first % 128 / 32 * 2 & 0x03030303u;
  }
  SCALES {
    const int packed = byte_at(block + first / 16);
    return {half_at(block + 80) * (packed & 15), -half_at(block + 82) * (packed >> 4)};
  }
};

// third bits[32], codes[64] of 2 bits, with 4 added to the whole; scales[12] of 6 bits for 16 elements each; d f16.
template <> struct Blocks<q3_k> : CodeBlocks<q3_k, 256, 110, 16, true> {
  CODES {
    uint32_t third[COUNT / 4];
    read_bytes<COUNT>(block + 32 + first / 128 * 32 + first % 32, c);
    read_bytes<COUNT>(block + first % 32, third);
#pragma unroll
    for (int i = 0; i < COUNT / 4; i++)
      c[i] = (c[i] >> first % 128 / 32 * 2 & 0x03030303u) | (third[i] >> first / 32 & 0x01010101u) << 2;
  }
  SCALES {
    const int group = first / 16;
    const int low = byte_at(block + 96 + group % 8) >> group / 8 * 4 & 15;
    const int high = byte_at(block + 104 + group % 4) >> group / 4 * 2 & 3;
    const float scale = half_at(block + 108) * ((low | high << 4) - 32);
    return {scale, -4 * scale};
  }
};

// The scale and the minimum of 32 elements in q4_k and q5_k: 6 bits each, of 8 groups in 12 bytes.
__device__ __forceinline__ Scales k_scales(const char* block, int group) {
  const char* packed = block + 4;
  int scale = byte_at(packed + group % 4), least = byte_at(packed + 4 + group % 4);
  if (group < 4) {
    scale &= 63;
    least &= 63;
  } else {
    const int low = byte_at(packed + 4 + group);
    scale = (low & 15) | scale >> 6 << 4;
    least = low >> 4 | least >> 6 << 4;
  }
  return {half_at(block) * scale, -half_at(block + 2) * least};
}

// d f16, dmin f16, scales[12], codes[128].
template <> struct Blocks<q4_k> : CodeBlocks<q4_k, 256, 144, 32, true> {
  CODES {
    read_aligned<COUNT>(block + 16 + first / 64 * 32 + first % 32, c);
#pragma unroll
    for (int i = 0; i < COUNT / 4; i++) c[i] = c[i] >> first % 64 / 32 * 4 & 0x0f0f0f0fu;
  }
  SCALES { return k_scales(block, first / 32); }
};

// d f16, dmin f16, scales[12], fifth bits[32], codes[128].
template <> struct Blocks<q5_k> : CodeBlocks<q5_k, 256, 176, 32, true> {
  CODES {
    uint32_t fifth[COUNT / 4];
    read_aligned<COUNT>(block + 48 + first / 64 * 32 + first % 32, c);
    read_aligned<COUNT>(block + 16 + first % 32, fifth);
#pragma unroll
    for (int i = 0; i < COUNT / 4; i++)
      c[i] = (c[i] >> first % 64 / 32 * 4 & 0x0f0f0f0fu) | (fifth[i] >> first / 32 & 0x01010101u) << 4;
  }
  SCALES { return k_scales(block, first / 32); }
};

// low[128] of 4 bits, high[64] of 2, with 32 added to the whole; scales[16] int8 for 16 elements each; d f16.
template <> struct Blocks<q6_k> : CodeBlocks<q6_k, 256, 210, 16, true> {
  CODES {
    uint32_t high[COUNT / 4];
    read_bytes<COUNT>(block + first / 128 * 64 + first % 64, c);
    read_bytes<COUNT>(block + 128 + first / 128 * 32 + first % 32, high);
#pragma unroll
    for (int i = 0; i < COUNT / 4; i++)
      c[i] = (c[i] >> first % 128 / 64 * 4 & 0x0f0f0f0fu) | (high[i] >> first % 128 / 32 * 2 & 0x03030303u) << 4;
  }
  SCALES {
    const float scale = half_at(block + 208) * (float)(int8_t)byte_at(block + 192 + first / 16);
    return {scale, -32 * scale};
  }
};

// d f16, high[2] with 2 bits of each scale, low[4] with 4 bits, for 32 elements each; codes[128] of levels.
template <> struct Blocks<iq4_xs> : CodeBlocks<iq4_xs, 256, 136, 32, false> {
  CODES {
    nibbles_of_32<COUNT>(block + 8 + first / 32 * 16, first % 32, c);
#pragma unroll
    for (int i = 0; i < COUNT / 4; i++) c[i] = iq4_levels(c[i]);
  }
  SCALES {
    const int group = first / 32;
    const int low = byte_at(block + 4 + group / 2) >> group % 2 * 4 & 15;
    const int high = *reinterpret_cast<const uint16_t*>(block + 2) >> group * 2 & 3;
    return {half_at(block) * ((low | high << 4) - 32), 0};
  }
};

#undef CODES
#undef SCALES

// Elements first … first + 7 of a row whose blocks lie `step` bytes apart; zeros from element `width` on. `first` is a
// multiple of 8.
template <class T>
__device__ __forceinline__ void load8(const char* row, int64_t step, int64_t first, int64_t width, float (&v)[8]) {
  constexpr int ELEMENTS = Blocks<T>::elements;
  const char* block = row + first / ELEMENTS * step;
  if (ELEMENTS > 1 || (step == Blocks<T>::bytes && first + 8 <= width)) {
    Blocks<T>::dequantize8(block, first % ELEMENTS, v);
  } else if constexpr (ELEMENTS == 1) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = first + i < width ? to_float(*reinterpret_cast<const T*>(block + i * step)) : 0;
  }
}

// DO(T) for the dtype of a number, those of WEIGHTS in blocks.py: for kernels whose speed does not matter, so that one
// of them serves all dtypes.
#define FOR_WEIGHT_DTYPE(number, DO)                                                                                  \
  switch (number) {                                                                                                  \
    case 0: { DO(f32); break; }                                                                                      \
    case 1: { DO(f16); break; }                                                                                      \
    case 2: { DO(bf16); break; }                                                                                     \
    case 3: { DO(q4_0); break; }                                                                                     \
    case 4: { DO(q4_1); break; }                                                                                     \
    case 5: { DO(q5_0); break; }                                                                                     \
    case 6: { DO(q5_1); break; }                                                                                     \
    case 7: { DO(q8_0); break; }                                                                                     \
    case 8: { DO(q2_k); break; }                                                                                     \
    case 9: { DO(q3_k); break; }                                                                                     \
    case 10: { DO(q4_k); break; }                                                                                    \
    case 11: { DO(q5_k); break; }                                                                                    \
    case 12: { DO(q6_k); break; }                                                                                    \
    case 13: { DO(iq4_nl); break; }                                                                                  \
    case 14: { DO(iq4_xs); break; }                                                                                  \
    case 15: { DO(mxfp4); break; }                                                                                   \
  }

// load8 of the dtype of that number.
__device__ __forceinline__ void load8_any(int dtype, const char* row, int64_t step, int64_t first, int64_t width,
                                          float (&v)[8]) {
#define DO(T) load8<T>(row, step, first, width, v)
  FOR_WEIGHT_DTYPE(dtype, DO)
#undef DO
}
