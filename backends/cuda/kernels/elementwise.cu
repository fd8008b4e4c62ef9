// Arithmetic element by element: on two tensors with broadcasting, or on one tensor and numbers p and q.
// The geometry is in elementwise.cuh.
#include "elementwise.cuh"

#define BINARY(name, operation)                                                                         \
  struct name {                                                                                         \
    static constexpr bool two = true;                                                                   \
    __device__ static float of(float a, float b, float, float) { return a operation b; }                \
  }

BINARY(add, +);
BINARY(sub, -);
BINARY(mul, *);
BINARY(div_, /);

struct scale {
  static constexpr bool two = false;
  __device__ static float of(float x, float, float factor, float bias) { return factor * x + bias; }
};
struct clamp {  // comparisons leave NaN as it is
  static constexpr bool two = false;
  __device__ static float of(float x, float, float low, float high) { return x < low ? low : x > high ? high : x; }
};

// y = value everywhere: `nbytes` of dense memory, `bits` eight bytes of them. A thread writes 16 bytes.
__global__ void __launch_bounds__(256) fill(char* y, int64_t nbytes, int64_t bits) {
  const int64_t first = (blockIdx.x * (int64_t)256 + threadIdx.x) * 16;
  if (first + 16 <= nbytes && is_aligned(y)) {
    *reinterpret_cast<longlong2*>(y + first) = make_longlong2(bits, bits);
    return;
  }
  for (int64_t i = first; i < first + 16 && i < nbytes; i++) y[i] = static_cast<char>(bits >> 8 * (i % 8));
}
