// Copies: dense, strided, tiled, joined; and conversions between dtypes, into blocks and out of them.
//
//   copy_dense   64 bytes a thread, by loads of 16
//   transpose    32 x 32 elements a block, through shared memory, where x is dense along another axis than y
//   copy_items   and join: an item a thread, 16 bytes of dense rows where strides allow that, else an element or block
//   convert      plain dtypes; eight elements a thread where both are floats in rows of eights, else one
//   from_blocks  eight elements of a quantized tensor a thread, to dense floats
//   to_blocks    a block of 32 elements a warp
// Every byte moves once; bound by bandwidth.
#include "blocks.cuh"
#include "items.cuh"
#include "write_blocks.cuh"

__device__ __forceinline__ int64_t thread_number() { return blockIdx.x * (int64_t)256 + threadIdx.x; }

__device__ __forceinline__ char* address_in(const Tensor& t, const Indices& n, int64_t step) {
  return t.data + n.i0 * t.strides[0] + n.i1 * t.strides[1] + n.i2 * t.strides[2] + n.i3 * step;
}

// A block copies 16 KiB.
__global__ void __launch_bounds__(256) copy_dense(char* y, const char* x, int64_t nbytes) {
  const int64_t first = (blockIdx.x * (int64_t)1024 + threadIdx.x) * 16;
  if (is_aligned(y) && is_aligned(x) && first + 3 * 4096 + 16 <= nbytes) {
    uint4 items[4];
#pragma unroll
    for (int i = 0; i < 4; i++) items[i] = *reinterpret_cast<const uint4*>(x + first + i * 4096);
#pragma unroll
    for (int i = 0; i < 4; i++) *reinterpret_cast<uint4*>(y + first + i * 4096) = items[i];
    return;
  }
  for (int64_t at = first; at < first + 4 * 4096 && at < nbytes; at += 4096)
    copy_item(y + at, x + at, (int)min((int64_t)16, nbytes - at));
}

// y: dense; x: of its shape, elements side by side along `axis`, 0 to 2. Block: 32 x 8; grid: tiles of axis 3, tiles of
// `axis`, indices of the two others.
template <class T> __global__ void __launch_bounds__(256) transpose(Tensor y, Tensor x, int axis) {
  __shared__ T tile[32][33];
  const int a = axis == 0 ? 1 : 0, b = axis == 2 ? 1 : 2;  // the others
  const int64_t ia = blockIdx.z / y.shape[b], ib = blockIdx.z % y.shape[b];
  const int64_t first = blockIdx.x * (int64_t)32, first_of_axis = blockIdx.y * (int64_t)32;
  const char* source = x.data + ia * x.strides[a] + ib * x.strides[b];
  char* target = y.data + ia * y.strides[a] + ib * y.strides[b];
  for (int i = threadIdx.y; i < 32; i += 8) {
    const int64_t column = first + i, row = first_of_axis + threadIdx.x;
    if (column < y.shape[3] && row < y.shape[axis])
      tile[i][threadIdx.x] = *reinterpret_cast<const T*>(source + row * x.strides[axis] + column * x.strides[3]);
  }
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += 8) {
    const int64_t column = first + threadIdx.x, row = first_of_axis + i;
    if (column < y.shape[3] && row < y.shape[axis])
      *reinterpret_cast<T*>(target + row * y.strides[axis] + column * y.strides[3]) = tile[threadIdx.x][i];
  }
}

enum Places { IN_ORDER, SAME, TILED };  // as copy.py names them

// `count` items of `bytes`; rows of y have n_y of them, y_step bytes apart, rows of x n_x. Item number i of y is item
// number i of x (IN_ORDER), or that of the same indices (SAME), or of the same where x repeats (TILED).
template <int PLACES>
__global__ void __launch_bounds__(256) copy_items(Tensor y, Tensor x, int64_t count, int64_t n_y, int64_t n_x,
                                                  int64_t y_step, int64_t x_step, int bytes) {
  const int64_t i = thread_number();
  if (i >= count) return;
  const Indices to = indices_in(y, n_y, i);
  Indices from = PLACES == IN_ORDER ? indices_in(x, n_x, i) : to;
  if constexpr (PLACES == TILED) {
    divided(to.i0, x.shape[0], from.i0);
    divided(to.i1, x.shape[1], from.i1);
    divided(to.i2, x.shape[2], from.i2);
    divided(to.i3, n_x, from.i3);
  }
  copy_item(address_in(y, to, y_step), address_in(x, from, x_step), bytes);
}

// The items of a, count_a of them, and those of b, `offset` bytes further on in y; `count` in all.
__global__ void __launch_bounds__(256) join(Tensor y, Tensor a, Tensor b, int64_t count_a, int64_t count, int64_t n_a,
                                            int64_t n_b, int64_t y_step, int64_t a_step, int64_t b_step, int64_t offset,
                                            int bytes) {
  const int64_t i = thread_number();
  if (i >= count) return;
  const bool is_b = i >= count_a;
  const Indices n = is_b ? indices_in(b, n_b, i - count_a) : indices_in(a, n_a, i);
  const char* from = is_b ? address_in(b, n, b_step) : address_in(a, n, a_step);
  copy_item(address_in(y, n, y_step) + (is_b ? offset : 0), from, bytes);
}

// Element number i of x as a float; of dense float32 where x was expanded to that.
__device__ __forceinline__ float element_of(const Tensor& x, const float* expanded, int kind, int64_t i) {
  if (expanded) return expanded[i];
  return number_at(kind, address_in(x, indices_in(x, x.shape[3], i), x.strides[3]));
}

// y's elements, in order, are x's, `count` in all; integers stay exact, everything else goes through float32.
__global__ void __launch_bounds__(256) convert(Tensor y, Tensor x, const float* expanded, int64_t count, int y_kind,
                                               int x_kind, int width, int flat) {
  const int64_t first = thread_number() * width;
  if (first >= count) return;
  if (width == 8 && first + 8 <= count) {
    const Indices n = flat ? Indices{0, 0, 0, first} : indices_in(x, x.shape[3], first);
    const char* from = flat ? x.data + first * float_bytes(x_kind) : address_in(x, n, x.strides[3]);
    char* to = flat ? y.data + first * float_bytes(y_kind) : address_in(y, n, y.strides[3]);
    if (is_aligned(from) && is_aligned(to)) {
      float v[8];
      unpack(x_kind, load_raw(x_kind, from), v);
      store_eight(y_kind, to, v);
      return;
    }
  }
  const int y_bytes = integer_bytes(y_kind), x_bytes = expanded ? 0 : integer_bytes(x_kind);
#pragma unroll 1
  for (int64_t i = first; i < min(first + width, count); i++) {
    char* to = address_in(y, indices_in(y, y.shape[3], i), y.strides[3]);
    if (y_bytes && x_bytes)
      store_integer(y_bytes, to, load_integer(x_bytes, address_in(x, indices_in(x, x.shape[3], i), x.strides[3])));
    else
      store_number(y_kind, to, element_of(x, expanded, x_kind, i));
  }
}

// y: dense floats; x: quantized, `block` elements in a block, `number` as in FOR_WEIGHT_DTYPE; count: elements.
__global__ void __launch_bounds__(256) from_blocks(char* y, Tensor x, int64_t count, int y_kind, int number,
                                                   int block) {
  const int64_t first = thread_number() * 8;
  if (first >= count) return;
  int64_t within;
  const int64_t i = divided(first, block, within);
  const char* at = address_in(x, indices_in(x, x.shape[3], i), x.strides[3]);
  float v[8];
#define READ(T) Blocks<T>::dequantize8(at, (int)within, v)
  FOR_WEIGHT_DTYPE(number, READ)
#undef READ
  char* to = y + first * float_bytes(y_kind);
  if (is_aligned(to)) return store_eight(y_kind, to, v);
#pragma unroll
  for (int i = 0; i < 8; i++) store_float(y_kind, to + i * float_bytes(y_kind), v[i]);
}

// y's elements, in order, are x's; count: blocks of 32 of them.
__global__ void __launch_bounds__(256) to_blocks(Tensor y, Tensor x, const float* expanded, int64_t count, int y_kind,
                                                 int x_kind) {
  const int64_t block = thread_number() / 32;
  if (block >= count) return;
  const float value = element_of(x, expanded, x_kind, block * 32 + threadIdx.x % 32);
  write_block(y_kind, address_in(y, indices_in(y, y.shape[3], block), y.strides[3]), value);
}
