// Element by element, in float32: y = f(a, b) with broadcasting, or y = f(a).
//
// Reads and writes every element once; any strides. A thread takes elements one grid apart.
#include "common.cuh"

struct add { __device__ static float of(float a, float b) { return a + b; } };
struct sub { __device__ static float of(float a, float b) { return a - b; } };
struct mul { __device__ static float of(float a, float b) { return a * b; } };
struct div_ { __device__ static float of(float a, float b) { return a / b; } };

template <class F, class A, class B> __global__ void __launch_bounds__(256) binary(Tensor y, Tensor a, Tensor b) {
  const int64_t count = elements_of(y);
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
    const Indices n = indices_of(y, i);
    const float left = to_float(at_repeated<A>(a, n.i0, n.i1, n.i2, n.i3));
    const float right = to_float(at_repeated<B>(b, n.i0, n.i1, n.i2, n.i3));
    at<A>(y, n.i0, n.i1, n.i2, n.i3) = from_float<A>(F::of(left, right));
  }
}
