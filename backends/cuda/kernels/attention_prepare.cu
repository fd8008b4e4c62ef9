// Before attention: which chunks of cells each block of rows can see, and keys or values as rows of one float dtype.
#include "attention.cuh"
#include "blocks.cuh"

// visible[b, 0, w] bit i: some row of block b may see some cell of chunk 32 w + i; visible[b, 1, w]: all rows see all.
//
// Grid (words, any): a warp takes a chunk, and goes through the blocks of rows by positions and sequences of the chunk
// at large. Reads 12 bytes a cell for each of gridDim.y.
__global__ void __launch_bounds__(1024)
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
  for (int block = blockIdx.y; block < row_blocks; block += gridDim.y) {
    const int64_t last = min(((int64_t)block * rows + rows - 1) / group, tokens - 1);
    bool any = false, all = true;
    for (int64_t token = (int64_t)block * rows / group + lane; token <= last; token += 32) {
      const Viewer viewer = viewer_of(q_pos, q_seq, token);
      const int half = viewer.sequence / 32, bit = viewer.sequence % 32;
      any |= highest >= 0 && lowest <= viewer.position && (joined[half] >> bit & 1) &&
             (window == 0 || (int64_t)viewer.position - highest < window);
      all &= highest <= viewer.position && (common[half] >> bit & 1) &&
             (window == 0 || (int64_t)viewer.position - lowest < window);
    }
    any = __any_sync(ALL_LANES, any);
    all = __all_sync(ALL_LANES, all);
    if (lane == 0) flags[0][warp] = any, flags[1][warp] = any && all;
    __syncthreads();
    if (warp < 2) {
      const uint32_t word = __ballot_sync(ALL_LANES, flags[warp][lane]);
      if (lane == 0) visible[((int64_t)block * 2 + warp) * words + blockIdx.x] = word;
    }
    __syncthreads();
  }
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

// How keys turn: pairs of elements from `first` on, "neox": halves of them, else neighbours. The ramp is YaRN's.
struct Turning {
  int pairs, first, neox;
  double base, freq_scale, ext_factor;
  int ramp_low, ramp_high;
  float magnitude;

  // The angle of a pair at position 1: see `frequencies` in ops/rope.py.
  __device__ __forceinline__ double speed(int pair) const {
    const double theta = pow(base, -2.0 * pair / (2 * pairs));
    if (ext_factor == 0) return freq_scale * theta;
    const double width = ramp_high > ramp_low ? ramp_high - ramp_low : 0.001;
    const double ramp = ext_factor * (1 - fmin(fmax((pair - ramp_low) / width, 0.0), 1.0));
    return theta * (freq_scale * (1 - ramp) + ramp);
  }
};

__device__ __forceinline__ double double_of(int64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// x [A, B, width] of any dtype -> rows of T, `pitch` elements each, with zeros behind the width; where there are cells,
// A counts them, empty ones are left out, and keys turn by cell_rotation if pairs > 0.
//
// A block takes a cell at a time, a thread eight elements of it. Reads x once, and writes it once.
template <class T>
__global__ void __launch_bounds__(128)
    convert_rows(T* y, Tensor x, int dtype, int width, int pitch, Tensor cell_pos, int has_cells, Tensor rotation,
                 Tensor factors, int has_factors, int pairs, int first, int neox, int64_t base, int64_t freq_scale,
                 int64_t ext_factor, int ramp_low, int ramp_high, float magnitude) {
  DYNAMIC_SHARED(double, speeds);  // [pairs], then cosines and sines
  float2* turns = reinterpret_cast<float2*>(speeds + pairs);
  const Turning turning = {pairs,    first,     neox,     double_of(base), double_of(freq_scale), double_of(ext_factor),
                           ramp_low, ramp_high, magnitude};
  for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x)
    speeds[pair] = turning.speed(pair) / (has_factors ? (double)at<f32>(factors, 0, 0, 0, pair) : 1.0);
  const int heads = (int)x.shape[2], pieces = pitch / 8;
  for (int64_t cell = blockIdx.x; cell < x.shape[1]; cell += gridDim.x) {
    if (has_cells && at<i32>(cell_pos, 0, 0, 0, cell) < 0) continue;
    __syncthreads();
    for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
      const double angle = speeds[pair] * at<i32>(rotation, 0, 0, 0, cell), turn = 6.283185307179586;
      const float rest = (float)(angle - turn * rint(angle / turn));
      turns[pair] = {magnitude * cosf(rest), magnitude * sinf(rest)};
    }
    __syncthreads();
    for (int i = threadIdx.x; i < heads * pieces; i += blockDim.x) {
      const int head = i / pieces, piece = i % pieces * 8;
      const char* row = x.data + cell * x.strides[1] + head * x.strides[2];
      float v[8];
      read8(dtype, row, piece, width, v);
#pragma unroll 1
      for (int j = 0; j < 8; j++) {
        const int element = piece + j - first;
        if (element < 0 || element >= 2 * pairs) continue;
        const int pair = neox ? element % pairs : element / 2;
        const bool second = neox ? element >= pairs : element % 2;
        const int other = first + (neox ? pair + (second ? 0 : pairs) : 2 * pair + !second);
        float around[8];
        read8(dtype, row, other / 8 * 8, width, around);
        const float mine = v[j], its = around[other % 8];
        const float2 turn = turns[pair];
        T& target = y[(cell * heads + head) * pitch + piece + j];
        target = from_float<T>(second ? its * turn.y + mine * turn.x : mine * turn.x - its * turn.y);
      }
      for (int j = 0; j < 8; j++) {
        const int element = piece + j - first;
        if (element < 0 || element >= 2 * pairs)
          y[(cell * heads + head) * pitch + piece + j] = from_float<T>(v[j]);
      }
    }
  }
}
