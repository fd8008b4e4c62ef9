// What stands before and after gemm.cu and gemm_wgmma.cu, and before cuBLAS: operands as rows of bf16, and the sum over
// parts of k.
//
// rows_to_bf16: x, and weights that gemm.cu cannot take as they lie (float32, rows that are not dense), become rows
// [row, k] of bf16, k padded with zeros to whole steps. Reads each element once, writes two bytes for each (six in
// three parts), bound by memory. A thread converts eight neighbours of axis 3.
//   Block (x, y), grid (blocks along y, blocks along x): x along k, y along rows of all batches; the other way round
//   where neighbours lie in neighbouring rows. Transposed, x is along rows, y along k, and grid z along batches.
//
// x_to_tiles: the rows of x for gemm_wgmma.cu, which reads a step of a tile by one bulk copy: [tile, step of 64, row of
// the tile, 128 bytes] in wgmma's 128-byte swizzle. Experts' rows are gathered, in the order of their tiles.
//   Block and grid as above, with the places of all tiles for rows.
//
// dense_rows_to_bf16: the same of dense rows of whole blocks, for cuBLAS, without the divisions that layouts take. A
// thread converts eight neighbours in 100 (q4_0) to 150 (q6_k) instructions and writes 16 bytes: bound by memory, too.
// Block: 256 threads along k, grid (rows, pieces of 2048 elements).
//
// Where both operands are float32, two parts of 8 bits each stand for a number: high + low. Products of three parts
// add up in one row three times as long: w = [high, high, low] by x = [high, low, high].
#include "blocks.cuh"
#include "gemm_tiles.cuh"

// As products_many.py numbers them.
enum Parts { ONE = 1, OF_X = 2, OF_W = 3 };
enum Layout { ALONG_ROWS = 0, ACROSS_ROWS = 1, TRANSPOSED = 2 };

// Elements k … k + 7 of a row, zeros past its end.
template <class T> __device__ __forceinline__ void load8(const Tensor& t, const char* row, int64_t k, float (&v)[8]) {
  constexpr int LENGTH = Blocks<T>::elements;
  const int64_t left = t.shape[3] * LENGTH - k;
  if (left >= 8 && (LENGTH > 1 || t.strides[3] == Blocks<T>::bytes)) {
    Blocks<T>::dequantize8(row + k / LENGTH * t.strides[3], k % LENGTH, v);
  } else if constexpr (LENGTH == 1) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = i < left ? to_float(*(const T*)(row + (k + i) * t.strides[3])) : 0.0f;
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = 0;
  }
}

// A number as parts of bf16 for the first, second and third stretch of a row.
__device__ __forceinline__ void split(float v, int parts, bf16 (&made)[3]) {
  made[0] = __float2bfloat16_rn(v);
  if (parts == ONE) return;
  const bool finite = fabsf(v) < INFINITY;  // an infinity or NaN stands in the first part, and zeros in the others
  if (finite) made[0] = __float2bfloat16_rn(__int_as_float(__float_as_int(v) & (int)0xffff0000));
  const bf16 low = __float2bfloat16_rn(finite ? v - __bfloat162float(made[0]) : 0.0f);
  const bf16 high = finite ? made[0] : __float2bfloat16_rn(0.0f);
  made[1] = parts == OF_X ? low : high;
  made[2] = parts == OF_X ? high : low;
}

// Eight numbers as parts, 16 bytes each: put(part, bytes).
template <class F> __device__ __forceinline__ void split8(const float (&v)[8], int parts, F put) {
  __align__(16) bf16 made[3][8];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    bf16 of[3];
    split(v[i], parts, of);
#pragma unroll
    for (int part = 0; part < 3; part++) made[part][i] = of[part];
  }
#pragma unroll
  for (int part = 0; part < 3; part++)
    if (part == 0 || parts != ONE) put(part, made[part]);
}

__device__ __forceinline__ void load8_of(int dtype, const Tensor& t, const char* row, int64_t k, float (&v)[8]) {
#define LOAD(T) load8<T>(t, row, k, v)
  FOR_WEIGHT_DTYPE(dtype, LOAD)
#undef LOAD
}

// Args: `padded`, the elements of a part of an output row; in layout TRANSPOSED axis 2 of t runs along output rows.
__global__ void __launch_bounds__(256) rows_to_bf16(Tensor t, bf16* out, int dtype, int block_length, int padded,
                                                    int parts, int layout) {
  const bool transposed = layout == TRANSPOSED;
  const int64_t along = t.shape[3] * block_length, width = (int64_t)padded * (parts == ONE ? 1 : 3);
  const int64_t rows = transposed ? t.shape[2] : t.shape[0] * t.shape[1] * t.shape[2];
  const int64_t x = blockIdx.y * (int64_t)blockDim.x + threadIdx.x, y = blockIdx.x * (int64_t)blockDim.y + threadIdx.y;
  const int64_t row = layout == ALONG_ROWS ? y : x, k = (layout == ALONG_ROWS ? x : y) * 8;
  if (row >= (transposed ? padded : rows) || k >= (transposed ? along : padded)) return;
  float v[8] = {};
  if (row < rows) load8_of(dtype, t, row_of(t, blockIdx.z * t.shape[2] + row), k, v);
  out += blockIdx.z * along * width;  // batches, where it is transposed
  split8(v, parts, [&](int part, const bf16(&eight)[8]) {
    if (transposed) {
#pragma unroll
      for (int i = 0; i < 8; i++)
        if (k + i < along) out[(k + i) * width + part * padded + row] = eight[i];
    } else {
      *reinterpret_cast<uint4*>(out + row * width + part * padded + k) = *reinterpret_cast<const uint4*>(eight);
    }
  });
}

// out [tile, step, row, 64]. Args: `column_tiles` of a batch, of `columns` rows of x, or of all experts, whose `tiles`
// tell of their rows; `rows`, those of all tiles.
__global__ void __launch_bounds__(256)
x_to_tiles(Tensor x, char* out, const MoeTile* tiles, const int* pairs, int pairs_of_row, int dtype, int block_length,
           int padded, int parts, int layout, int columns, int tile_columns, int column_tiles, int rows) {
  const int along = blockIdx.y * blockDim.x + threadIdx.x, across = blockIdx.x * blockDim.y + threadIdx.y;
  const int place = layout == ALONG_ROWS ? across : along, k = (layout == ALONG_ROWS ? along : across) * 8;
  if (place >= rows || k >= padded) return;
  const int tile = place / tile_columns, in_tile = place % tile_columns;
  int64_t row;
  if (tiles) {
    if (in_tile >= tiles[tile].count) return;
    row = pairs[tiles[tile].first + in_tile] / pairs_of_row;
  } else {
    const int column = tile % column_tiles * tile_columns + in_tile;
    if (column >= columns) return;
    row = (int64_t)(tile / column_tiles) * columns + column;
  }
  float v[8];
  load8_of(dtype, x, row_of(x, row), k, v);
  const int64_t steps = padded * (parts == ONE ? 1 : 3) / 64;
  split8(v, parts, [&](int part, const bf16(&eight)[8]) {
    const int at = part * padded + k, piece = at / 8 % 8 ^ in_tile % 8;
    char* to = out + ((tile * steps + at / 64) * tile_columns + in_tile) * 128 + piece * 16;
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(eight);
  });
}

// out [row, width]: rows that lie `step` bytes apart, of whole blocks of the dtype.
__global__ void __launch_bounds__(256) dense_rows_to_bf16(const char* rows, int64_t step, bf16* out, int dtype,
                                                          unsigned width) {
  const unsigned k = (blockIdx.y * 256 + threadIdx.x) * 8;
  if (k >= width) return;
  const char* row = rows + blockIdx.x * step;
  float v[8];
#define LOAD(T) Blocks<T>::dequantize8(row + k / Blocks<T>::elements * Blocks<T>::bytes, k % Blocks<T>::elements, v)
  FOR_WEIGHT_DTYPE(dtype, LOAD)
#undef LOAD
  __align__(16) bf16 eight[8];
#pragma unroll
  for (int i = 0; i < 8; i++) eight[i] = __float2bfloat16_rn(v[i]);
  *reinterpret_cast<uint4*>(out + (int64_t)blockIdx.x * width + k) = *reinterpret_cast<uint4*>(eight);
}

// y = the sum over parts of partial [parts, rows of y, elements of a row]. A thread adds up an element, in order.
__global__ void __launch_bounds__(256) sum_parts(Tensor y, const float* partial, int parts) {
  const int64_t count = elements_of(y);
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
    float sum = 0;
    for (int part = 0; part < parts; part++) sum += partial[part * count + i];
    *(float*)(row_of(y, i / y.shape[3]) + i % y.shape[3] * y.strides[3]) = sum;
  }
}
