// What a token's experts made, added up: y[t, d] = sum over u of weights[t, u] · x[t, u, d], u = 0 first.
//
// Grid (tokens, pieces of a row), a thread for each element of y; reads x once. Rounded as the CPU's: product, sum.
#include "common.cuh"

template <class X, class W>
__global__ void __launch_bounds__(256)
    weighted_sum(Tensor y, Tensor x, Tensor weights, int64_t token_step, int64_t rank_step) {
  const int64_t token = blockIdx.x, d = blockIdx.y * (int64_t)blockDim.x + threadIdx.x;
  if (d >= x.shape[3]) return;
  const char* by = weights.data + token * token_step;
  float sum = 0;
  for (int u = 0; u < x.shape[2]; u++) {
    const float weight = to_float(*reinterpret_cast<const W*>(by + u * rank_step));
    sum = __fadd_rn(sum, __fmul_rn(weight, to_float(at<X>(x, 0, token, u, d))));
  }
  at<X>(y, 0, 0, token, d) = from_float<X>(sum);
}
