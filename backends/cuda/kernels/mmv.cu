// Products of weights and a few rows of x in float32: y[n, m] = sum over k of x[n, k] · w[m, k].
//
// Geometry: products_few.cuh. `mmv` is for floats whose rows begin at multiples of 16 bytes: a lane has 64 bytes of
// each row of w on their way at a time, 32 for several rows of x. Reads w once, and x from the caches once for ROWS
// rows of w: bound by memory. `mmv_any` is for all else, of any dtype and strides, and slow.
#include "blocks.cuh"
#include "products_few.cuh"

template <class W> struct Eight {
  uint4 words[sizeof(W) / 2];
  __device__ __forceinline__ void load(const char* source) {
#pragma unroll
    for (int i = 0; i < (int)sizeof(W) / 2; i++) words[i] = reinterpret_cast<const uint4*>(source)[i];
  }
  __device__ __forceinline__ float dot(const float4& low, const float4& high, float sum) const {
    const W* v = reinterpret_cast<const W*>(words);
    sum = to_float(v[0]) * low.x + sum;
    sum = to_float(v[1]) * low.y + sum;
    sum = to_float(v[2]) * low.z + sum;
    sum = to_float(v[3]) * low.w + sum;
    sum = to_float(v[4]) * high.x + sum;
    sum = to_float(v[5]) * high.y + sum;
    sum = to_float(v[6]) * high.z + sum;
    return to_float(v[7]) * high.w + sum;
  }
};

template <class W, int COLUMNS>
__global__ void __launch_bounds__(WARPS * 32, 4)
    mmv(Tensor y, Tensor w, Tensor ids, Tensor x, const float* expanded, int64_t pitch, PLACE_PARAMETERS) {
  constexpr int AT_ONCE = (COLUMNS == 1 ? 8 : 4) / sizeof(W), STEP = 256 * AT_ONCE;
  const Place<COLUMNS> place(y, w, ids, blockIdx.y, PLACE_ARGUMENTS);
  const int64_t width = place.known ? w.shape[3] : 0, whole = width / 8 * 8;
  const char *rows[ROWS], *columns[COLUMNS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) rows[r] = place.row_of_w(w, r);
#pragma unroll
  for (int c = 0; c < COLUMNS; c++)
    columns[c] = row_of_x(x, expanded, pitch, place.x_row + min(c, place.columns - 1));

  float sum[ROWS][COLUMNS] = {};
#pragma unroll 1
  for (int64_t step = place.part * STEP; step < whole; step += place.split * STEP) {
    const int64_t k0 = step + threadIdx.x % 32 * 8;
    Eight<W> eight[AT_ONCE][ROWS];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
      for (int r = 0; r < ROWS; r++) eight[i][r].load(rows[r] + (k0 + i * 256 < whole ? k0 + i * 256 : 0) * sizeof(W));
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int64_t k = k0 + i * 256 < whole ? k0 + i * 256 : 0;  // past the end, the first eight again, for nothing
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        const float4* eight_of_x = reinterpret_cast<const float4*>(columns[c] + k * 4);
        const float4 low = eight_of_x[0], high = eight_of_x[1];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const float product = eight[i][r].dot(low, high, 0);
          sum[r][c] += k0 + i * 256 < whole ? product : 0;
        }
      }
    }
  }
  const int64_t last = whole + threadIdx.x % 32;
  if (place.part == 0 && last < width) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int c = 0; c < COLUMNS; c++)
        sum[r][c] += to_float(reinterpret_cast<const W*>(rows[r])[last]) *
                     reinterpret_cast<const float*>(columns[c])[last];
  }
  write_rows(y, sum, blockIdx.y, place.y_row, place.columns, place.split, place.known);
}

__global__ void __launch_bounds__(WARPS * 32)
    mmv_any(Tensor y, Tensor w, Tensor ids, Tensor x, const float* expanded, int64_t pitch, PLACE_PARAMETERS,
            int64_t width, int dtype) {
  const Place<1> place(y, w, ids, blockIdx.y, PLACE_ARGUMENTS);
  const char* of_x = row_of_x(x, expanded, pitch, place.x_row);
  float sum[ROWS][1] = {};
  for (int64_t k = (place.part * 32 + threadIdx.x % 32) * 8; place.known && k < width; k += place.split * 256) {
    float a[8], b[8];
    load8<f32>(of_x, 4, k, width, b);
#pragma unroll 1
    for (int r = 0; r < ROWS; r++) {
      load8_any(dtype, place.row_of_w(w, r), w.strides[3], k, width, a);
#pragma unroll
      for (int i = 0; i < 8; i++) sum[r][0] += a[i] * b[i];
    }
  }
  write_rows(y, sum, blockIdx.y, place.y_row, place.columns, place.split, place.known);
}
