// Root mean square norm of rows: y = x / sqrt(mean(x²) + eps) · weight, where x may be a sum a + b that is kept too.
//
// A row is shared by the threads of one threadIdx.y: a warp for each 256 elements, 32 warps at most. Each thread holds
// eight neighbours (loads of 16 bytes), so that a row of up to 8192 is read once and written once; a longer row, or one
// that is not aligned, is read twice. Bound by bandwidth; for one row by latency.
#include "row_reductions.cuh"

struct Settings {
  int kind, b_kind, weight_kind, weight_step;
  float eps;
};

// The row's elements that a thread has, WIDTH neighbours at a time.
template <int WIDTH> __device__ __forceinline__ void load(int kind, const char* at, float (&v)[WIDTH]) {
  if constexpr (WIDTH == 8) {
    const RawEight raw = load_raw(kind, at);
    unpack(kind, raw, v);
  } else {
    v[0] = load_as_float(kind, at);
  }
}

template <int WIDTH> __device__ __forceinline__ void store(int kind, char* at, const float (&v)[WIDTH]) {
  if constexpr (WIDTH == 8) store_eight(kind, at, v);
  else store_float(kind, at, v[0]);
}

template <bool ADDS, int WIDTH>
__device__ __forceinline__ void normalise(char* y, char* sum, const char* a, int64_t a_step, const char* b, int64_t b_step,
                                          const char* weight, int n, const Settings& is, float* shared) {
  const int bytes = float_bytes(is.kind), first = threadIdx.x * WIDTH, pace = blockDim.x * WIDTH;
  float v[WIDTH], squares = 0;
  for (int i = first; i < n; i += pace) {
    load<WIDTH>(is.kind, a + i * a_step, v);
    if constexpr (ADDS) {
      float added[WIDTH];
      load<WIDTH>(is.b_kind, b + i * b_step, added);
#pragma unroll
      for (int j = 0; j < WIDTH; j++) v[j] = rounded_to(is.kind, v[j] + added[j]);
      store<WIDTH>(is.kind, sum + (int64_t)i * bytes, v);
    }
#pragma unroll
    for (int j = 0; j < WIDTH; j++) squares += v[j] * v[j];
  }
  const float factor = rsqrtf(over_row<Sum>(squares, shared) / n + is.eps);
  for (int i = first; i < n; i += pace) {
    if (n > pace) load<WIDTH>(is.kind, ADDS ? sum + (int64_t)i * bytes : a + i * a_step, v);
    if (weight) {
      float weights[WIDTH];
      load<WIDTH>(is.weight_kind, weight + (int64_t)i * is.weight_step, weights);
#pragma unroll
      for (int j = 0; j < WIDTH; j++) v[j] = v[j] * factor * weights[j];
    } else {
#pragma unroll
      for (int j = 0; j < WIDTH; j++) v[j] *= factor;
    }
    store<WIDTH>(is.kind, y + (int64_t)i * bytes, v);
  }
}

// y and sum: dense, in a's dtype; a and b: of one shape, b and sum for ADDS only; weight: [D], or null.
// by_eight: whether rows are made of eights, at aligned steps.
template <bool ADDS>
__global__ void __launch_bounds__(1024) rms_norm(Tensor y, Tensor sum, Tensor a, Tensor b, const char* weight, int kind,
                                                 int b_kind, int weight_kind, int weight_step, int by_eight, float eps) {
  __shared__ float shared[32];
  const int64_t row = row_of_thread();
  if (row >= y.shape[0] * y.shape[1] * y.shape[2]) return;
  const int n = (int)y.shape[3];
  const Settings is = {kind, b_kind, weight_kind, weight_step, eps};
  const int64_t start = row * n * float_bytes(kind);
  const char* a_row = row_address(a, row);
  const char* b_row = ADDS ? row_address(b, row) : nullptr;
  const bool aligned = is_aligned(y.data) && is_aligned(a.data) && is_aligned(weight) &&
                       (!ADDS || (is_aligned(b.data) && is_aligned(sum.data)));
  if (by_eight && aligned) {
    normalise<ADDS, 8>(y.data + start, sum.data + start, a_row, float_bytes(kind), b_row, float_bytes(b_kind), weight, n,
                       is, shared);
  } else {
    normalise<ADDS, 1>(y.data + start, sum.data + start, a_row, a.strides[3], b_row, b.strides[3], weight, n, is, shared);
  }
}
