// Root mean square norm of rows: y = x / sqrt(mean(x²) + eps) · weight, where x may be a sum that is kept too: a + b,
// or a + (b + c), each addition rounded to its own dtype.
//
// A row is shared by the threads of one threadIdx.y: a warp for each 256 elements, 32 warps at most. Each thread holds
// eight neighbours (loads of 16 bytes), so that a row of up to 8192 is read once and written once; a longer row, or one
// that is not aligned, is read twice. Bound by bandwidth; for one row by latency.
#include "row_reductions.cuh"

// A row of x's terms, or of weights.
struct Row {
  const char* data;
  int64_t step;
  int kind;

  // WIDTH neighbours from element i on.
  template <int WIDTH> __device__ __forceinline__ void load(int i, float (&v)[WIDTH]) const {
    const char* at = data + i * step;
    if constexpr (WIDTH == 8) unpack(kind, load_raw(kind, at), v);
    else v[0] = load_as_float(kind, at);
  }
};

template <int WIDTH> __device__ __forceinline__ void store(int kind, char* at, const float (&v)[WIDTH]) {
  if constexpr (WIDTH == 8) store_eight(kind, at, v);
  else store_float(kind, at, v[0]);
}

// v += the row's elements, rounded to a dtype.
template <int WIDTH> __device__ __forceinline__ void add_row(float (&v)[WIDTH], const Row& row, int i, int kind) {
  float more[WIDTH];
  row.load<WIDTH>(i, more);
#pragma unroll
  for (int j = 0; j < WIDTH; j++) v[j] = rounded_to(kind, v[j] + more[j]);
}

template <int TERMS, int WIDTH>
__device__ __forceinline__ void normalise(char* y, char* sum, const Row& a, const Row& b, const Row& c,
                                          const Row& weight, int n, int kind, int inner_kind, float eps,
                                          float* shared) {
  const int bytes = float_bytes(kind), first = threadIdx.x * WIDTH, pace = blockDim.x * WIDTH;
  const bool is_held = n <= pace;
  float v[WIDTH], weights[WIDTH], squares = 0;
  if (is_held && weight.data && first < n) weight.load<WIDTH>(first, weights);  // under way while the row is summed up
  for (int i = first; i < n; i += pace) {
    if constexpr (TERMS == 3) {
      b.load<WIDTH>(i, v);
      add_row<WIDTH>(v, c, i, inner_kind);
      add_row<WIDTH>(v, a, i, kind);
    } else {
      a.load<WIDTH>(i, v);
      if constexpr (TERMS == 2) add_row<WIDTH>(v, b, i, kind);
    }
    if constexpr (TERMS > 1) store<WIDTH>(kind, sum + (int64_t)i * bytes, v);
#pragma unroll
    for (int j = 0; j < WIDTH; j++) squares += v[j] * v[j];
  }
  const float factor = rsqrtf(__fdividef(over_row<Sum>(squares, shared), n) + eps);
  const Row total = TERMS > 1 ? Row{sum, bytes, kind} : a;
  for (int i = first; i < n; i += pace) {
    if (!is_held) {
      total.load<WIDTH>(i, v);
      if (weight.data) weight.load<WIDTH>(i, weights);
    }
#pragma unroll
    for (int j = 0; j < WIDTH; j++) v[j] *= weight.data ? factor * weights[j] : factor;
    store<WIDTH>(kind, y + (int64_t)i * bytes, v);
  }
}

// y and sum: dense, of `kind`; a, b, c: TERMS of them, of one shape, the others not read; b + c has inner_kind; weight:
// [D], or null. by_eight: whether rows are made of eights, at aligned steps.
template <int TERMS>
__global__ void __launch_bounds__(1024) rms_norm(Tensor y, Tensor sum, Tensor a, Tensor b, Tensor c, const char* weight,
                                                 int kind, int a_kind, int b_kind, int c_kind, int inner_kind,
                                                 int weight_kind, int weight_step, int by_eight, float eps) {
  __shared__ float shared[32];
  const int64_t row = row_of_thread();
  if (row >= y.shape[0] * y.shape[1] * y.shape[2]) return;
  const int n = (int)y.shape[3];
  const int64_t start = row * n * float_bytes(kind);
  const Row row_a = {row_address(a, row), a.strides[3], a_kind};
  const Row row_b = {TERMS > 1 ? row_address(b, row) : nullptr, b.strides[3], b_kind};
  const Row row_c = {TERMS > 2 ? row_address(c, row) : nullptr, c.strides[3], c_kind};
  const Row weights = {weight, weight_step, weight_kind};
  const bool aligned = is_aligned(y.data) && is_aligned(sum.data) && is_aligned(row_a.data) && is_aligned(row_b.data) &&
                       is_aligned(row_c.data) && is_aligned(weight);
  if (by_eight && aligned)
    normalise<TERMS, 8>(y.data + start, sum.data + start, row_a, row_b, row_c, weights, n, kind, inner_kind, eps,
                        shared);
  else
    normalise<TERMS, 1>(y.data + start, sum.data + start, row_a, row_b, row_c, weights, n, kind, inner_kind, eps,
                        shared);
}
