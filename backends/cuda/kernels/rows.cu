// Rows by number: read, written, added. Ids are data: a row that does not exist reads as NaN (0 for integers), is not
// written, and adds NaN; no memory outside the tensors is touched.
//
// A thread takes `width` neighbours of a row, 8 by loads of 16 bytes where rows and strides allow that, else 1; of
// quantized rows that are read 8; a warp makes each block of 32 that is written. Every byte moves once; bound by
// bandwidth, for the few rows of a decode step by latency.
#include "blocks.cuh"
#include "items.cuh"
#include "write_blocks.cuh"

// The id for indices i0, i1, i2 of axes 1 to 3, of which those of length 1 repeat; -1 for one not below `rows`.
__device__ __forceinline__ int64_t id_of(const Tensor& ids, int bytes, const Indices& n, int64_t rows) {
  const int64_t i0 = ids.shape[1] == 1 ? 0 : n.i0, i1 = ids.shape[2] == 1 ? 0 : n.i1, i2 = ids.shape[3] == 1 ? 0 : n.i2;
  const int64_t id = load_integer(bytes, ids.data + i0 * ids.strides[1] + i1 * ids.strides[2] + i2 * ids.strides[3]);
  return id >= 0 && id < rows ? id : -1;
}

__device__ __forceinline__ int64_t thread_number() { return blockIdx.x * (int64_t)256 + threadIdx.x; }

// y[i0, i1, k, :] = x[i0, i1, ids[i0, i1, k], :] of floats, y f32 and dense.
__global__ void __launch_bounds__(256) get_rows(Tensor y, Tensor x, Tensor ids, int id_bytes, int kind, int width) {
  const int64_t first = thread_number() * width;
  if (first >= elements_of(y)) return;
  const Indices n = indices_in(y, y.shape[3], first);
  const int64_t chosen = id_of(ids, id_bytes, n, x.shape[2]);
  const char* source = x.data + n.i0 * x.strides[0] + n.i1 * x.strides[1] + chosen * x.strides[2] + n.i3 * x.strides[3];
  float* target = reinterpret_cast<float*>(y.data) + first;
  if (width == 8 && chosen >= 0 && is_aligned(source) && is_aligned(target)) {
    float v[8];
    unpack(kind, load_raw(kind, source), v);
    store_eight(KIND_F32, reinterpret_cast<char*>(target), v);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < width; i++) target[i] = chosen >= 0 ? load_as_float(kind, source + i * x.strides[3]) : NAN;
}

// The same of integers of `bytes`, as they are.
__global__ void __launch_bounds__(256) get_rows_of_integers(Tensor y, Tensor x, Tensor ids, int id_bytes, int bytes) {
  const int64_t i = thread_number();
  if (i >= elements_of(y)) return;
  const Indices n = indices_in(y, y.shape[3], i);
  const int64_t chosen = id_of(ids, id_bytes, n, x.shape[2]);
  const char* source = x.data + n.i0 * x.strides[0] + n.i1 * x.strides[1] + chosen * x.strides[2] + n.i3 * x.strides[3];
  store_integer(bytes, y.data + i * bytes, chosen >= 0 ? load_integer(bytes, source) : 0);
}

// The same of quantized rows, `block` elements in a block; `number` as in FOR_WEIGHT_DTYPE.
__global__ void __launch_bounds__(256) get_rows_of_blocks(Tensor y, Tensor x, Tensor ids, int id_bytes, int number,
                                                          int block) {
  const int64_t first = thread_number() * 8;
  if (first >= elements_of(y)) return;
  const Indices n = indices_in(y, y.shape[3], first);
  const int64_t chosen = id_of(ids, id_bytes, n, x.shape[2]);
  float v[8] = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
  if (chosen >= 0) {
    const int at = (int)n.i3, within = at % block;
    const char* row = x.data + n.i0 * x.strides[0] + n.i1 * x.strides[1] + chosen * x.strides[2];
    const char* source = row + at / block * x.strides[3];
#define READ(T) Blocks<T>::dequantize8(source, within, v)
    FOR_WEIGHT_DTYPE(number, READ)
#undef READ
  }
  store_eight(KIND_F32, y.data + first * 4, v);
}

// Where row number `row` of [target's batch][k] goes, `before` bytes into a row of target, and where it is in `rows`;
// `to` is null where the id is no row's.
struct Transfer {
  char* to;
  const char* from;
};
__device__ __forceinline__ Transfer transfer_of(const Tensor& target, const Tensor& rows, const Tensor& ids,
                                                int id_bytes, int64_t row, int64_t before) {
  Indices n;
  n.i0 = divided(divided(row, rows.shape[2], n.i2), target.shape[1], n.i1);
  const int64_t chosen = id_of(ids, id_bytes, n, target.shape[2]);
  char* to = target.data + before + n.i0 * target.strides[0] + n.i1 * target.strides[1] + chosen * target.strides[2];
  const char* from = rows.data + (rows.shape[0] == 1 ? 0 : n.i0 * rows.strides[0]) +
                     (rows.shape[1] == 1 ? 0 : n.i1 * rows.strides[1]) + n.i2 * rows.strides[2];
  return {chosen >= 0 ? to : nullptr, from};
}

// target[i0, i1, ids[i0, i1, k], :] = rows[i0, i1, k, :]; batch axes of rows and ids repeat. count: elements in all.
__global__ void __launch_bounds__(256) set_rows(Tensor target, Tensor rows, Tensor ids, int id_bytes, int64_t count,
                                                int64_t before, int kind, int row_kind, int width) {
  const int64_t first = thread_number() * width;
  if (first >= count) return;
  int64_t at;
  const int64_t row = divided(first, rows.shape[3], at);
  const Transfer way = transfer_of(target, rows, ids, id_bytes, row, before);
  if (!way.to) return;
  char* to = way.to + at * target.strides[3];
  const char* from = way.from + at * rows.strides[3];
  if (width == 8 && is_aligned(to) && is_aligned(from)) {
    float v[8];
    unpack(row_kind, load_raw(row_kind, from), v);
    store_eight(kind, to, v);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < width; i++)
    store_float(kind, to + i * target.strides[3], load_as_float(row_kind, from + i * rows.strides[3]));
}

// The same where target is quantized; count: blocks in all, a warp each.
__global__ void __launch_bounds__(256) set_rows_in_blocks(Tensor target, Tensor rows, Tensor ids, int id_bytes,
                                                          int64_t count, int64_t before, int kind, int row_kind) {
  const int64_t number = thread_number() / 32;
  if (number >= count) return;
  int64_t at;
  const int64_t row = divided(number, rows.shape[3] / 32, at);
  const Transfer way = transfer_of(target, rows, ids, id_bytes, row, before);
  if (!way.to) return;
  const float v = load_as_float(row_kind, way.from + (at * 32 + threadIdx.x % 32) * rows.strides[3]);
  write_block(kind, way.to + at * target.strides[3], v);
}

// y[t, u, :] = x[t, u, :] + bias[ids[t, u], :], on axes 1 to 3; y dense, in x's dtype.
__global__ void __launch_bounds__(256) add_id(Tensor y, Tensor x, Tensor bias, Tensor ids, int id_bytes, int kind,
                                              int bias_kind, int width) {
  const int64_t first = thread_number() * width;
  if (first >= elements_of(y)) return;
  const Indices n = indices_in(y, y.shape[3], first);
  const int64_t chosen = id_of(ids, id_bytes, {n.i0, n.i1, n.i2, 0}, bias.shape[2]);
  const char* from = x.data + n.i1 * x.strides[1] + n.i2 * x.strides[2] + n.i3 * x.strides[3];
  const char* more = bias.data + max(chosen, (int64_t)0) * bias.strides[2] + n.i3 * bias.strides[3];
  char* to = y.data + first * float_bytes(kind);
  const float nothing = chosen >= 0 ? 0.0f : NAN;
  if (width == 8 && is_aligned(from) && is_aligned(more) && is_aligned(to)) {
    const RawEight raw = load_raw(kind, from), raw_bias = load_raw(bias_kind, more);
    float v[8], added[8];
    unpack(kind, raw, v);
    unpack(bias_kind, raw_bias, added);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] += added[i] + nothing;
    store_eight(kind, to, v);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < width; i++) {
    const float own = load_as_float(kind, from + i * x.strides[3]);
    const float added = load_as_float(bias_kind, more + i * bias.strides[3]);
    store_float(kind, to + i * float_bytes(kind), own + added + nothing);
  }
}
