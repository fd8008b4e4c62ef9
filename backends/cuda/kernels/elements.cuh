// Float elements whose dtype is known at run time only: a kernel that waits for memory loses nothing by asking for it
// once for eight elements, and one instance then serves every mix of dtypes.
#pragma once
#include "common.cuh"

// A dtype's number, as graphrt and GGUF count them.
constexpr int KIND_F32 = 0, KIND_F16 = 1, KIND_BF16 = 30, KIND_I8 = 24, KIND_I16 = 25, KIND_I32 = 26, KIND_I64 = 27;

__device__ __forceinline__ int float_bytes(int kind) { return kind == KIND_F32 ? 4 : 2; }

__device__ __forceinline__ float load_as_float(int kind, const char* at) {
  if (kind == KIND_F32) return *reinterpret_cast<const float*>(at);
  return kind == KIND_F16 ? to_float(*reinterpret_cast<const f16*>(at)) : to_float(*reinterpret_cast<const bf16*>(at));
}

__device__ __forceinline__ void store_float(int kind, char* at, float x) {
  if (kind == KIND_F32) *reinterpret_cast<float*>(at) = x;
  else if (kind == KIND_F16) *reinterpret_cast<f16*>(at) = from_float<f16>(x);
  else *reinterpret_cast<bf16*>(at) = from_float<bf16>(x);
}

// What storing x and loading it again gives.
__device__ __forceinline__ float rounded_to(int kind, float x) {
  if (kind == KIND_F32) return x;
  return kind == KIND_F16 ? to_float(from_float<f16>(x)) : to_float(from_float<bf16>(x));
}

// Eight neighbours as they lie in memory; `high` is for f32 only. Loading and unpacking are apart, so that several
// loads are under way before the first is waited for.
struct RawEight {
  uint4 low, high;
};

__device__ __forceinline__ RawEight load_raw(int kind, const char* at) {
  RawEight raw;
  raw.low = *reinterpret_cast<const uint4*>(at);
  if (kind == KIND_F32) raw.high = *reinterpret_cast<const uint4*>(at + 16);
  return raw;
}

__device__ __forceinline__ void unpack(int kind, const RawEight& raw, float (&v)[8]) {
  if (kind == KIND_F32) {
    const uint32_t words[8] = {raw.low.x, raw.low.y, raw.low.z, raw.low.w, raw.high.x, raw.high.y, raw.high.z,
                               raw.high.w};
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = __uint_as_float(words[i]);
    return;
  }
  const uint32_t words[4] = {raw.low.x, raw.low.y, raw.low.z, raw.low.w};
  if (kind == KIND_F16) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = to_float(reinterpret_cast<const f16*>(words)[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
  }
}

__device__ __forceinline__ void store_eight(int kind, char* at, const float (&v)[8]) {
  if (kind == KIND_F32) {
    reinterpret_cast<float4*>(at)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4*>(at)[1] = make_float4(v[4], v[5], v[6], v[7]);
    return;
  }
  __align__(16) uint16_t halves[8];
#pragma unroll
  for (int i = 0; i < 8; i++) store_float(kind, reinterpret_cast<char*>(&halves[i]), v[i]);
  *reinterpret_cast<uint4*>(at) = *reinterpret_cast<const uint4*>(halves);
}

__device__ __forceinline__ bool is_aligned(const void* at) { return (reinterpret_cast<uint64_t>(at) & 15) == 0; }

// The quotient of two numbers >= 0 and what is left: in 32 bits where both fit, else bit by bit. The compiler's own
// division of 64 bits is a call, which costs all around it registers, and is hardly ever needed.
__device__ __forceinline__ int64_t divided(int64_t a, int64_t b, int64_t& left) {
  if (!((static_cast<uint64_t>(a) | static_cast<uint64_t>(b)) >> 32)) {
    const uint32_t quotient = static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
    left = static_cast<uint32_t>(a) - quotient * static_cast<uint32_t>(b);
    return quotient;
  }
  int64_t quotient = 0, rest = 0;
#pragma unroll 1
  for (int bit = 62; bit >= 0; bit--) {
    rest = rest << 1 | (a >> bit & 1);
    const bool fits = rest >= b;
    if (fits) rest -= b;
    quotient = quotient << 1 | fits;
  }
  left = rest;
  return quotient;
}

// The indices of item number i in row-major order, where rows have `last` items.
__device__ __forceinline__ Indices indices_in(const Tensor& t, int64_t last, int64_t i) {
  Indices n;
  const int64_t row = divided(i, last, n.i3);
  n.i0 = divided(divided(row, t.shape[2], n.i2), t.shape[1], n.i1);
  return n;
}

// Address of row number `row`, counted over axes 0 to 2.
__device__ __forceinline__ char* row_address(const Tensor& t, int64_t row) {
  Indices n;
  n.i0 = divided(divided(row, t.shape[2], n.i2), t.shape[1], n.i1);
  return t.data + n.i0 * t.strides[0] + n.i1 * t.strides[1] + n.i2 * t.strides[2];
}

// A tensor that is read: axes of length 1 repeat. `flat`: all is one dense row instead.
struct Operand {
  const char* data;
  int64_t steps[4];
  int kind;

  __device__ __forceinline__ Operand(const Tensor& t, int kind, bool flat) : data(t.data), kind(kind) {
#pragma unroll
    for (int axis = 0; axis < 4; axis++) steps[axis] = t.shape[axis] == 1 ? 0 : t.strides[axis];
    if (flat) steps[3] = float_bytes(kind);
  }
  __device__ __forceinline__ const char* address(const Indices& n) const {
    return data + n.i0 * steps[0] + n.i1 * steps[1] + n.i2 * steps[2] + n.i3 * steps[3];
  }
  __device__ __forceinline__ float one(const Indices& n) const { return load_as_float(kind, address(n)); }
  // Eight neighbours of a row, or one eight times where the row repeats it.
  __device__ __forceinline__ RawEight raw(const Indices& n) const {
    if (steps[3]) return load_raw(kind, address(n));
    const uint32_t bits = __float_as_uint(one(n));
    return {make_uint4(bits, bits, bits, bits), make_uint4(bits, bits, bits, bits)};
  }
  __device__ __forceinline__ void unpacked(const RawEight& raw, float (&v)[8]) const {
    unpack(steps[3] ? kind : KIND_F32, raw, v);
  }
  __device__ __forceinline__ bool can_be_loaded_by_eight() const { return !steps[3] || is_aligned(data); }
};
