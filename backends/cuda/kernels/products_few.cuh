// What the products of few rows of x share: which matrix and which rows of x a block takes, and its results' way out.
//
// A block has 4 warps; a warp takes ROWS rows of w for COLUMNS rows of x, and where there are few rows, `split` warps
// share the k of theirs. mul_mat: grid (groups of COLUMNS columns, groups of rows, batch). mul_mat_id: grid (slots,
// groups of rows), a slot for each expert of a token, whose number is read here.
#pragma once
#include "elements.cuh"

constexpr int WARPS = 4, ROWS = 2;

// count: rows of x of a batch, or all slots; used: experts of a token, 0 for mul_mat; x_used: rows of x of a token;
// x_outer, x_inner: x's batch axes.
#define PLACE_PARAMETERS int count, int used, int x_used, int x_outer, int x_inner, int split
#define PLACE_ARGUMENTS count, used, x_used, x_outer, x_inner, split

// A row of x in float32: of `expanded`, where that is given, which has rows of `pitch` elements; else of x itself.
__device__ __forceinline__ const char* row_of_x(const Tensor& x, const float* expanded, int64_t pitch, int64_t row) {
  return expanded ? reinterpret_cast<const char*>(expanded + row * pitch) : row_address(x, row);
}

// The first of the ROWS rows that a warp takes, in the group of rows number `group`.
__device__ __forceinline__ int64_t first_row(int64_t group, int warp, int split) {
  return (group * (WARPS / split) + warp / split) * ROWS;
}

template <int COLUMNS> struct Place {
  bool known;              // whether the expert exists
  const char* matrix;
  int64_t x_row;           // of all rows of x
  int64_t y_row;           // of all rows of y
  int columns;             // that there are, of COLUMNS
  int64_t row;             // the warp's first one of w
  int part, split;

  __device__ __forceinline__ Place(const Tensor& y, const Tensor& w, const Tensor& ids, int64_t group, PLACE_PARAMETERS)
      : known(true), matrix(w.data), part(threadIdx.x / 32 % split), split(split) {
    const int first = blockIdx.x * COLUMNS;
    columns = min(COLUMNS, count - first);
    row = first_row(group, threadIdx.x / 32, split);
    x_row = first;
    y_row = blockIdx.z * (int64_t)count + first;
    if (used) {
      const int id = at<int32_t>(ids, 0, 0, first / used, first % used);
      known = 0 <= id && id < w.shape[1];
      matrix += id * w.strides[1];
      if (x_used == 1) x_row = first / used;
    } else {
      const unsigned outer = blockIdx.z / (unsigned)y.shape[1], inner = blockIdx.z % (unsigned)y.shape[1];
      matrix += (w.shape[0] > 1 ? outer : 0) * w.strides[0] + (w.shape[1] > 1 ? inner : 0) * w.strides[1];
      x_row += (int64_t)((x_outer > 1 ? outer : 0) * x_inner + (x_inner > 1 ? inner : 0)) * count;
    }
  }

  // Row r of the warp's, or the last one there is; so many rows may be joined to one.
  __device__ __forceinline__ const char* row_of_w(const Tensor& w, int r, int joined = 1) const {
    return matrix + min(row + r, w.shape[2] / joined - 1) * (w.strides[2] * joined);
  }
};

// Row number `row` of y, counted over all axes but the last; rows are all the same distance apart.
__device__ __forceinline__ float* row_of_y(const Tensor& y, int64_t row) {
  return reinterpret_cast<float*>(y.data + row * (y.shape[2] > 1 ? y.strides[2] : y.strides[1]));
}

// Adds up what lanes, and warps of the same rows, have summed for a group of rows of w, and writes it to rows y_row …
// of y; NaN if not `known`.
template <int COLUMNS>
__device__ __forceinline__ void write_rows(const Tensor& y, float (&sum)[ROWS][COLUMNS], int64_t group, int64_t y_row,
                                           int columns, int split, bool known) {
  __shared__ float sums[WARPS][ROWS * COLUMNS];
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      const float total = warp_sum(sum[r][c]);
      if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32][r * COLUMNS + c] = total;
    }
  __syncthreads();
  for (int i = threadIdx.x; i < WARPS / split * ROWS * COLUMNS; i += WARPS * 32) {
    const int warp = i / (ROWS * COLUMNS) * split, r = i / COLUMNS % ROWS, c = i % COLUMNS;
    const int64_t row = first_row(group, warp, split) + r;
    float total = known ? 0 : NAN;
    for (int other = 0; other < split; other++) total += sums[warp + other][r * COLUMNS + c];
    if (row < y.shape[3] && c < columns) row_of_y(y, y_row + c)[row] = total;
  }
}

// The same where `joined` rows of w are one, each of so many neighbouring lanes, and one warp takes them.
template <int COLUMNS>
__device__ __forceinline__ void write_joined_rows(const Tensor& y, float (&sum)[ROWS][COLUMNS], int64_t group,
                                                  int joined, int64_t y_row, int columns, bool known) {
  const int lanes = 32 / joined, lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      float total = sum[r][c];
      for (int distance = 1; distance < lanes; distance *= 2) total += __shfl_xor_sync(ALL_LANES, total, distance);
      const int64_t row = (first_row(group, threadIdx.x / 32, 1) + r) * joined + lane / lanes;
      if (lane % lanes == 0 && row < y.shape[3] && c < columns)
        row_of_y(y, y_row + c)[row] = known ? total : NAN;
    }
}
