// y[n, m] = sum over k of w[m, k] · x[n, k] for some rows n of x, on tensor cores: products of whole numbers in int8,
// sums of up to 32 of them in int32, and these, times the scales of both, in float32.
//
// x comes in int8 (q8.cuh); w as it lies in the model, in blocks, each row dense. Batches, experts, the grid and
// `partial` are gemm.cu's; tiles are of 64 rows of w and up to 64 of x. Block: four warps, each 16 rows of w by all
// columns of the tile. Bytes of weights go to shared memory as they are, a chunk ahead, x six steps ahead.
// Bound: memory, while columns are few. Then what is done to an instruction's sums: 12 operations of each lane, 16 with
// offsets, beside 4096 products; some 40 columns on an H200, 100 on devices with less memory bandwidth for their cores.
#include "gemm_tiles.cuh"
#include "gemm_weights.cuh"
#include "q8.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS;
constexpr int ROWS = 16 * WARPS, COLUMNS = 64;  // of a block
constexpr int PAIRS = 4;                        // of steps of x in shared memory: one that is read, three that come
constexpr int STEP_BYTES = COLUMNS * STEP, PAIR_BYTES = 2 * STEP_BYTES + COLUMNS * 2 * (int)sizeof(Factor);

// mma's sums begin as this whole number. As a float it is 1.5 · 2^23, and a sum below 2^22 makes it greater by itself.
constexpr int BIAS = 0x4b400000;
__device__ __forceinline__ float unbiased(int sum) { return __int_as_float(sum) - 12582912.0f; }

// A step of a lane's two rows of 16: codes as mma takes them, as int8, and the scales of their first and last 16.
template <class W> struct Fragment {
  static constexpr bool OFFSET = Blocks<W>::has_offset && ZERO<W> < 0, HALVES = Blocks<W>::scaled == 16;
  uint32_t codes[4];
  Scales first[2], last[2];

  // Of row 8i from lane / 4 on; k = 8t … 8t + 7 (t = lane % 4), which x has in the same places.
  __device__ __forceinline__ void load(int i, const char* block, int start) {
    uint32_t eight[2];
    codes8<W>(block, start + threadIdx.x % 4 * 8, eight);
#pragma unroll
    for (int half = 0; half < 2; half++) codes[2 * half + i] = with_sign(eight[half]);
    first[i] = Blocks<W>::scales(block, start);
    if (HALVES) last[i] = Blocks<W>::scales(block, start + 16);
  }

  // The code that stands for 0 is taken off four at a time: with the top bits set, none borrows from the next.
  static __device__ __forceinline__ uint32_t with_sign(uint32_t four) {
    return ZERO<W> < 0 ? four : ((four | 0x80808080u) - ZERO<W> * 0x01010101u) ^ 0x80808080u;
  }

  // Adds products with 8 columns: `b` is what mma takes of them, `factors` those of this lane's two columns.
  __device__ __forceinline__ void multiply(const uint32_t (&b)[2], const Factor (&factors)[2], float (&sums)[4]) const {
    if constexpr (HALVES) {  // a half at a time; lanes 0 and 1 of four have the first
      const bool is_first = threadIdx.x % 4 < 2;
      const uint32_t low[2] = {is_first ? b[0] : 0, is_first ? b[1] : 0};
      const uint32_t high[2] = {is_first ? 0 : b[0], is_first ? 0 : b[1]};
      const float of_low[2] = {factors[0].d * factors[0].first_sum(), factors[1].d * factors[1].first_sum()};
      const float of_high[2] = {factors[0].d * factors[0].second_sum(), factors[1].d * factors[1].second_sum()};
      add(low, factors, of_low, first, sums);
      add(high, factors, of_high, last, sums);
    } else {
      const float of_all[2] = {factors[0].d * (factors[0].first_sum() + factors[0].second_sum()),
                               factors[1].d * (factors[1].first_sum() + factors[1].second_sum())};
      add(b, factors, of_all, first, sums);
    }
  }

  // x_sums: the sums of the columns' elements.
  __device__ __forceinline__ void add(const uint32_t (&b)[2], const Factor (&factors)[2], const float (&x_sums)[2],
                                      const Scales (&scales)[2], float (&sums)[4]) const {
    int dots[4] = {BIAS, BIAS, BIAS, BIAS};
    mma_int8(dots, codes, b);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      sums[i] += unbiased(dots[i]) * (scales[i / 2].scale * factors[i % 2].d);
      if (OFFSET) sums[i] += scales[i / 2].offset * x_sums[i % 2];
    }
  }
};

template <class W>
__global__ void __launch_bounds__(THREADS, 4)
mmq(Tensor y, const char* w, int64_t w_row, int64_t w_outer, int64_t w_inner, const int8_t* codes,
    const Factor* factors, int64_t x_outer, int64_t x_inner, float* partial, const MoeTile* moe_tiles,
    const int* moe_pairs, int pairs_of_row, int rows, int columns, int inner, int row_bytes, int steps,
    int column_tiles) {
  constexpr int CHUNK_STEPS = Chunk<W>::STEPS, LENGTH = Blocks<W>::elements;
  using Weights = WeightTile<W, ROWS>;
  DYNAMIC_SHARED(char, pairs);
  char* const chunks = pairs + PAIRS * PAIR_BYTES;
  __shared__ char* destinations[COLUMNS];
  __shared__ int64_t x_rows[COLUMNS];

  // Which tile.
  const Operands operands = operands_of(tile_of_y(blockIdx.x, rows, ROWS, columns, COLUMNS, column_tiles), COLUMNS,
                                        inner, w_outer, w_inner, x_outer, x_inner, moe_tiles);
  const int batch = operands.tile.batch, row0 = operands.tile.row0;
  const int first = operands.tile.first, count = operands.tile.count;
  if (count <= 0) return;

  // Which rows of x, and where the results go.
  const int64_t y_step = partial ? (int64_t)sizeof(float) : y.strides[3];
  for (int column = threadIdx.x; column < count; column += THREADS) {
    const int pair = moe_pairs ? moe_pairs[first + column] : 0;
    const int64_t row = moe_pairs ? pair : (int64_t)batch * columns + first + column;
    const int64_t all_rows = y.shape[0] * y.shape[1] * y.shape[2];
    destinations[column] = partial ? (char*)(partial + (blockIdx.y * all_rows + row) * rows) : row_of(y, row);
    x_rows[column] = moe_pairs ? pair / pairs_of_row : operands.x_offset + first + column;
  }
  __syncthreads();
  const Weights weights{w + operands.w_offset + row0 * w_row, w_row, rows - row0, row_bytes};

  // This part of k, in whole chunks.
  const int all_chunks = (steps + CHUNK_STEPS - 1) / CHUNK_STEPS;
  const int begin = (int)((int64_t)all_chunks * blockIdx.y / gridDim.y) * CHUNK_STEPS;
  const int end = min(steps, (int)((int64_t)all_chunks * (blockIdx.y + 1) / gridDim.y) * CHUNK_STEPS);

  // Two steps of x at a time, since factors of two are 16 bytes; rows have room for the second, be it past the end.
  auto copy_x = [&](int step) {
    if (step >= end) return;
    char* const pair = pairs + step / 2 % PAIRS * PAIR_BYTES;
    const int half = threadIdx.x % 4;  // of the two steps' blocks
    for (int column = threadIdx.x / 4; column < count; column += THREADS / 4)
      copy_async(pair + half / 2 * STEP_BYTES + column * STEP + half % 2 * 16,
                 codes + codes_at(x_rows[column], steps, step + half / 2, half % 2));
    if ((int)threadIdx.x < count)
      copy_async(pair + 2 * STEP_BYTES + threadIdx.x * 2 * sizeof(Factor),
                 factors + factor_at(x_rows[threadIdx.x], steps, step));
  };
  auto place_of = [&](int chunk) { return chunks + chunk % 2 * Weights::BYTES; };
  auto copy_chunk = [&](int step) {
    const int chunk = step / CHUNK_STEPS;
    if (step < end) weights.template copy<THREADS>(place_of(chunk), chunk);
  };
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16 + lane / 4;
  const int shifts[2] = {weights.shift(warp_row), weights.shift(warp_row + 8)};

  float sums[COLUMNS / 8][4] = {};
  // Copies end in the order in which they began: those of x, and a chunk or nothing, in turns. A chunk may take all of
  // the steps of the one before it.
  constexpr int LATEST = CHUNK_STEPS > 4 ? 2 * PAIRS - 3 : 2;
  copy_chunk(begin);
#pragma unroll
  for (int i = 0; i < PAIRS - 1; i++) {
    copy_x(begin + 2 * i);
    commit_copies();
    commit_copies();
  }

#pragma unroll 1
  for (int step = begin; step < end; step++) {
    if (step % 2 == 0) {
      wait_for_copies<LATEST>();
      __syncthreads();  // what two steps read is there for all, and nobody reads what is copied over now
      copy_x(step + 2 * (PAIRS - 1));
      commit_copies();
      if (step % CHUNK_STEPS == 0) copy_chunk(step + CHUNK_STEPS);
      commit_copies();
    }
    const int chunk = step / CHUNK_STEPS;
    Fragment<W> fragment;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const char* block = weights.block(place_of(chunk), warp_row + 8 * i, shifts[i], chunk, step % CHUNK_STEPS);
      fragment.load(i, block, step * STEP % LENGTH);
    }
    const char* pair = pairs + step / 2 % PAIRS * PAIR_BYTES;
    const char* of_step = pair + step % 2 * STEP_BYTES + lane / 4 * STEP + lane % 4 * 8;
    const Factor* of_pair = reinterpret_cast<const Factor*>(pair + 2 * STEP_BYTES) + lane % 4 * 4 + step % 2;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++) {
      if (j * 8 >= count) break;
      const uint2 eight = *reinterpret_cast<const uint2*>(of_step + j * 8 * STEP);
      fragment.multiply({eight.x, eight.y}, {of_pair[j * 16], of_pair[j * 16 + 2]}, sums[j]);
    }
  }

#pragma unroll
  for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int column = j * 8 + lane % 4 * 2 + i % 2, row = row0 + warp_row + i / 2 * 8;
      if (column < count && row < rows) *(float*)(destinations[column] + row * y_step) = sums[j][i];
    }
}
