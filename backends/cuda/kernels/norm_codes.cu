// The norm of norm.cu, written in int8 (q8.cuh) for the products that read it: y = x / sqrt(mean(x²) + eps) · weight,
// where x may be a sum a + b that is kept. All of it is float32, in rows of up to 8192 that begin at multiples of 16
// bytes; y itself is written where somebody else reads it.
//
// A block takes a row, a thread 8 neighbours of it, which it holds in registers: all is read once. Bound by latency.
#include "q8.cuh"
#include "row_reductions.cuh"

// sum, b: for ADDS only; weight and y may be null.
template <bool ADDS>
__global__ void __launch_bounds__(1024)
    rms_norm_codes(char* y, char* sum, Tensor a, Tensor b, const char* weight, float eps, int8_t* codes,
                   Factor* factors) {
  __shared__ float shared[32];
  const int n = (int)a.shape[3], first = threadIdx.x * 8;
  const int64_t row = blockIdx.x, at = (row * n + first) * 4;
  float v[8] = {}, weights[8], squares = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) weights[i] = 1;
  if (first < n) {
    unpack(KIND_F32, load_raw(KIND_F32, row_address(a, row) + first * 4), v);
    if (weight) unpack(KIND_F32, load_raw(KIND_F32, weight + first * 4), weights);
    if constexpr (ADDS) {
      float added[8];
      unpack(KIND_F32, load_raw(KIND_F32, row_address(b, row) + first * 4), added);
#pragma unroll
      for (int i = 0; i < 8; i++) v[i] += added[i];
      store_eight(KIND_F32, sum + at, v);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) squares += v[i] * v[i];
  }
  const float factor = rsqrtf(over_row<Sum>(squares, shared) / n + eps);
  if (first >= n) return;
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = v[i] * factor * weights[i];
  if (y) store_eight(KIND_F32, y + at, v);
  write_eights(v, codes, factors, row, n / 32, first / 32);
}
