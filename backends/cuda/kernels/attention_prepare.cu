// Before attention: which chunks of cells each block of rows can see, and keys or values as rows of one float dtype.
#include "attention.cuh"
#include "blocks.cuh"
#include "rotation.cuh"

// visible[b, 0, w] bit i: some row of block b may see some cell of chunk 32 w + i; visible[b, 1, w]: all rows see all.
//
// Grid (words, any): a warp takes a chunk, each of its lanes a block of rows, and compares positions and sequences of
// the chunk at large. Reads 12 bytes a cell for each of gridDim.y.
__global__ void __launch_bounds__(1024, 1)
    mark_chunks(uint32_t* visible, Tensor q_pos, Tensor q_seq, Tensor cell_pos, Tensor cell_seq, int row_blocks,
                int rows, int group, int chunk_cells, int window) {
  __shared__ unsigned flags[2][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, words = gridDim.x;
  const int64_t cells = cell_pos.shape[3], first = ((int64_t)blockIdx.x * 32 + warp) * chunk_cells;
  int lowest = 0x7fffffff, highest = -1;
  uint32_t joined[2] = {0, 0}, common[2] = {~0u, ~0u};
  for (int64_t cell = first + lane; cell < first + chunk_cells; cell += 32) {
    const int position = cell < cells ? at<i32>(cell_pos, 0, 0, 0, cell) : -1;
    const int64_t sequences = position < 0 ? 0 : at<i64>(cell_seq, 0, 0, 0, cell);
    if (position >= 0) lowest = min(lowest, position);
    highest = max(highest, position);
    for (int half = 0; half < 2; half++) {
      const uint32_t bits = (uint32_t)(sequences >> 32 * half);
      joined[half] |= bits;
      common[half] &= bits;
    }
  }
#pragma unroll
  for (int distance = 16; distance; distance >>= 1) {
    lowest = min(lowest, __shfl_xor_sync(ALL_LANES, lowest, distance));
    highest = max(highest, __shfl_xor_sync(ALL_LANES, highest, distance));
    for (int half = 0; half < 2; half++) {
      joined[half] |= __shfl_xor_sync(ALL_LANES, joined[half], distance);
      common[half] &= __shfl_xor_sync(ALL_LANES, common[half], distance);
    }
  }
  const int64_t tokens = q_pos.shape[3];
  for (int first_block = blockIdx.y * 32; first_block < row_blocks; first_block += 32 * gridDim.y) {
    const int block = first_block + lane;
    const int64_t last = block < row_blocks ? min(((int64_t)block * rows + rows - 1) / group, tokens - 1) : -1;
    bool any = false, all = true;
    for (int64_t token = (int64_t)block * rows / group; token <= last; token++) {
      const Viewer viewer = viewer_of(q_pos, q_seq, token);
      const int half = viewer.sequence / 32, bit = viewer.sequence % 32;
      any |= highest >= 0 && lowest <= viewer.position && (joined[half] >> bit & 1) &&
             (window == 0 || (int64_t)viewer.position - highest < window);
      all &= highest <= viewer.position && (common[half] >> bit & 1) &&
             (window == 0 || (int64_t)viewer.position - lowest < window);
    }
    const unsigned any_of_block = __ballot_sync(ALL_LANES, any), all_of_block = __ballot_sync(ALL_LANES, any && all);
    if (lane == 0) flags[0][warp] = any_of_block, flags[1][warp] = all_of_block;
    __syncthreads();
    if (warp < 2 && block < row_blocks) {
      uint32_t word = 0;
      for (int chunk = 0; chunk < 32; chunk++) word |= (flags[warp][chunk] >> lane & 1) << chunk;
      visible[((int64_t)block * 2 + warp) * words + blockIdx.x] = word;
    }
    __syncthreads();
  }
}

__device__ __forceinline__ int elements_of_block(int dtype) {
  int elements = 1;
#define COUNT(T) elements = Blocks<T>::elements
  FOR_WEIGHT_DTYPE(dtype, COUNT)
#undef COUNT
  return elements;
}

// Eight elements from `first` on of a row of `width`; past its end there are zeros.
__device__ __forceinline__ void read8(int dtype, const char* row, int first, int width, float (&v)[8]) {
  if (first + 8 > width) {  // of plain elements, as blocks are longer
#pragma unroll 1
    for (int i = 0; i < 8; i++) {
      const int element = first + i;
      if (element >= width) v[i] = 0;
      else if (dtype == 0) v[i] = reinterpret_cast<const float*>(row)[element];
      else if (dtype == 1) v[i] = to_float(reinterpret_cast<const f16*>(row)[element]);
      else v[i] = to_float(reinterpret_cast<const bf16*>(row)[element]);
    }
    return;
  }
#define READ(T) \
  Blocks<T>::dequantize8(row + first / Blocks<T>::elements * Blocks<T>::bytes, first % Blocks<T>::elements, v)
  FOR_WEIGHT_DTYPE(dtype, READ)
#undef READ
}

// The elements that those from `first` on turn with, of a row that turns from element `begin` on: each pair is two
// neighbours, or one element of each half.
__device__ __forceinline__ void read_others(int dtype, const char* row, int first, int width, const float (&v)[8],
                                            int begin, int pairs, bool neighbours, float (&others)[8]) {
  if (neighbours && begin % 2 == 0) {
#pragma unroll
    for (int j = 0; j < 8; j++) others[j] = v[j ^ 1];
  } else if (!neighbours && begin % 8 == 0 && pairs % 8 == 0) {
    const bool is_inside = first >= begin && first < begin + 2 * pairs;
    const int shift = first - begin < pairs ? pairs : -pairs;
    if (is_inside) read8(dtype, row, first + shift, width, others);
  } else {
#pragma unroll 1
    for (int j = 0; j < 8; j++) {
      const int element = first + j - begin;
      if (element < 0 || element >= 2 * pairs) continue;
      const int other = begin + (neighbours ? element ^ 1 : element < pairs ? element + pairs : element - pairs);
      float around[8];
      read8(dtype, row, other / 8 * 8, width, around);
      others[j] = around[other % 8];
    }
  }
}

// x [A, B, width] of any dtype -> rows of the float dtype `kind`, `pitch` elements each, with zeros behind the width.
// Where there are cells, A counts them, and empty ones are left out; where pairs > 0, rows turn from element `first` on
// by rotation[a].
//
// A block takes a cell at a time, or a part of it, a thread eight elements. Reads x once (twice what turns by halves),
// and writes it once.
__global__ void __launch_bounds__(128)
    convert_rows(char* y, int kind, Tensor x, int dtype, int pitch, Tensor cell_pos, int has_cells, Tensor rotation,
                 Tensor factors, int has_factors, float magnitude, int first, int pairs, int neighbours,
                 int64_t log2_base, int64_t freq_scale, int64_t ext_factor, int ramp_low, float ramp_width) {
  DYNAMIC_SHARED(double, speeds);  // [pairs], then cosines and sines
  float2* turns = reinterpret_cast<float2*>(speeds + pairs);
  const Rotation by = {2 * pairs, double_of(log2_base), double_of(freq_scale), double_of(ext_factor), ramp_low,
                       ramp_width};
  for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x)
    speeds[pair] = speed_of(by, pair) / (has_factors ? (double)at<f32>(factors, 0, 0, 0, pair) : 1.0);
  const int heads = (int)x.shape[2], pieces = pitch / 8, width = (int)x.shape[3] * elements_of_block(dtype);
  for (int64_t cell = blockIdx.x; cell < x.shape[1]; cell += gridDim.x) {
    if (has_cells && at<i32>(cell_pos, 0, 0, 0, cell) < 0) continue;
    __syncthreads();
    for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
      float cosine, sine;
      cosine_and_sine(speeds[pair] * at<i32>(rotation, 0, 0, 0, cell), cosine, sine);
      turns[pair] = {magnitude * cosine, magnitude * sine};
    }
    __syncthreads();
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < heads * pieces; i += gridDim.y * blockDim.x) {
      const int head = i / pieces, piece = i % pieces * 8;
      const char* row = x.data + cell * x.strides[1] + head * x.strides[2];
      float v[8];
      read8(dtype, row, piece, width, v);
      if (piece + 8 > first && piece < first + 2 * pairs) {
        float others[8];
        read_others(dtype, row, piece, width, v, first, pairs, neighbours, others);
#pragma unroll
        for (int j = 0; j < 8; j++) {
          const int element = piece + j - first;
          if (element < 0 || element >= 2 * pairs) continue;
          const float2 turn = turns[neighbours ? element / 2 : element % pairs];
          const bool is_second = neighbours ? element % 2 : element >= pairs;
          v[j] = v[j] * turn.x + (is_second ? others[j] * turn.y : -others[j] * turn.y);
        }
      }
      store_eight(kind, y + ((cell * heads + head) * pitch + piece) * float_bytes(kind), v);
    }
  }
}
