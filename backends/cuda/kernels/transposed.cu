// Products with matrices as they are stored: y[n, k] = sum over m of x[n, m] · w[m, k], for a few rows of x.
//
// Grid (groups of 64 k, groups of COLUMNS rows of x, batch). A block has 8 warps; 8 lanes take 8 neighbours of k each,
// of every 32nd row of w, so a block reads 32 stretches of w at a time. What they sum is added up in shared memory.
//
// Reads w once for COLUMNS rows of x: bound by memory, and by latency for the small matrices that it is used with.
#include "blocks.cuh"
#include "products_few.cuh"

constexpr int COLUMNS = 4, WIDTH = 64, ROW_GROUPS = 32;

struct by_number;  // a dtype that is known by its number only
template <class A, class B> struct Same { static constexpr bool value = false; };
template <class A> struct Same<A, A> { static constexpr bool value = true; };

template <class W>
__global__ void __launch_bounds__(256)
    transposed(Tensor y, Tensor w, Tensor x, const float* expanded, int64_t pitch, int count, int x_outer, int x_inner,
               int dtype) {
  constexpr int AT_ONCE = Same<W, by_number>::value ? 1 : 4;
  __shared__ float sums[8][COLUMNS][WIDTH];
  const int64_t width = y.shape[3], height = w.shape[2];
  const int64_t k = blockIdx.x * (int64_t)WIDTH + threadIdx.x % 8 * 8;
  const unsigned outer = blockIdx.z / (unsigned)y.shape[1], inner = blockIdx.z % (unsigned)y.shape[1];
  const int first = blockIdx.y * COLUMNS, columns = min(COLUMNS, count - first);
  const char* matrix = w.data;
  matrix += (w.shape[0] > 1 ? outer : 0) * w.strides[0] + (w.shape[1] > 1 ? inner : 0) * w.strides[1];
  const int64_t x_row = (int64_t)((x_outer > 1 ? outer : 0) * x_inner + (x_inner > 1 ? inner : 0)) * count + first;
  const float* of_x[COLUMNS];
#pragma unroll
  for (int c = 0; c < COLUMNS; c++)
    of_x[c] = reinterpret_cast<const float*>(row_of_x(x, expanded, pitch, x_row + min(c, columns - 1)));

  float sum[COLUMNS][8] = {};
  if (k < width) {
#pragma unroll 1
    for (int64_t m0 = threadIdx.x / 8; m0 < height; m0 += ROW_GROUPS * AT_ONCE) {
      float v[AT_ONCE][8] = {};
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++)
        if (m0 + i * ROW_GROUPS < height) {
          const char* row = matrix + (m0 + i * ROW_GROUPS) * w.strides[2];
          if constexpr (Same<W, by_number>::value)
            load8_any(dtype, row, w.strides[3], k, width, v[i]);
          else
            load8<W>(row, w.strides[3], k, width, v[i]);
        }
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) {
        if (m0 + i * ROW_GROUPS >= height) break;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          if (c >= columns) break;
          const float factor = of_x[c][m0 + i * ROW_GROUPS];
#pragma unroll
          for (int j = 0; j < 8; j++) sum[c][j] += factor * v[i][j];
        }
      }
    }
  }

#pragma unroll
  for (int c = 0; c < COLUMNS; c++) {
    if (c >= columns) break;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float total = sum[c][j];
      total += __shfl_xor_sync(ALL_LANES, total, 8);
      total += __shfl_xor_sync(ALL_LANES, total, 16);
      if (threadIdx.x % 32 < 8) sums[threadIdx.x / 32][c][threadIdx.x % 8 * 8 + j] = total;
    }
  }
  __syncthreads();
  const int c = threadIdx.x / WIDTH, j = threadIdx.x % WIDTH;
  const int64_t column = blockIdx.x * (int64_t)WIDTH + j;
  if (c < columns && column < width) {
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < 8; warp++) total += sums[warp][c][j];
    reinterpret_cast<float*>(y.data)[(blockIdx.z * (int64_t)count + first + c) * width + column] = total;
  }
}
