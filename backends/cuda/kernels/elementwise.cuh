// y[i] = f(a[i], b[i]) in float32 for any mix of f32, f16 and bf16, with broadcasting.
//
// A thread takes `width` neighbours of a row: 8, by loads of 16 bytes, where the launch finds rows dense and strides
// aligned, else 1. Moves every element once; bound by bandwidth.
#pragma once
#include "elements.cuh"

// F has `static float of(float a, float b, float p, float q)`, and `two`, whether it reads b.
// y: dense, in a's dtype. flat: all tensors are dense and of one shape. b_offset: bytes added to b's address.
template <class F>
__global__ void __launch_bounds__(256) elementwise(Tensor y, Tensor a, Tensor b, int kind, int b_kind, int width,
                                                   int flat, int64_t b_offset, float p, float q) {
  const int64_t count = elements_of(y), first = (blockIdx.x * (int64_t)256 + threadIdx.x) * width;
  if (first >= count) return;
  const Operand left(a, kind, flat);
  Operand right(b, b_kind, flat);
  right.data += b_offset;
  char* target = y.data + first * float_bytes(kind);
  const bool aligned = is_aligned(y.data) && left.can_be_loaded_by_eight() &&
      (!F::two || right.can_be_loaded_by_eight());
  if (width == 8 && first + 8 <= count && aligned) {
    const Indices n = flat ? Indices{0, 0, 0, first} : indices_in(y, y.shape[3], first);
    const RawEight left_raw = left.raw(n);
    float u[8], v[8];
    if constexpr (F::two) {
      const RawEight right_raw = right.raw(n);
      right.unpacked(right_raw, v);
    }
    left.unpacked(left_raw, u);
#pragma unroll
    for (int i = 0; i < 8; i++) u[i] = F::of(u[i], F::two ? v[i] : 0, p, q);
    store_eight(kind, target, u);
    return;
  }
  const int64_t end = first + width < count ? first + width : count;
#pragma unroll 1
  for (int64_t i = first; i < end; i++, target += float_bytes(kind)) {
    const Indices n = flat ? Indices{0, 0, 0, i} : indices_in(y, y.shape[3], i);
    store_float(kind, target, F::of(left.one(n), F::two ? right.one(n) : 0, p, q));
  }
}
