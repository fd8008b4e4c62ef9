// y[n, m] = sum over k of w[m, k] · x[n, k] for many rows n of x, on tensor cores: products in bf16, sums in float32.
//
// x comes as rows of bf16 (gemm_rows.cu), padded with zeros to whole steps of 32; w as it lies in the model, each row
// dense. Batches: w and x advance by strides that may be 0. Experts (mul_mat_id): a list of tiles from moe_sort.cu says
// which rows of x go to which matrix, and the grid has room for the longest list.
//
// Grid: (tiles of y · batches, parts of k), whose sums land in `partial` for gemm_rows.cu where there are several.
// Neighbouring blocks share rows of w, and a group of tiles of x stays in L2. Block: four warps, each 32 rows of w by
// all columns of the tile (columns of mma are rows of x). Weights go to shared memory as they are, a chunk ahead, x two
// steps ahead; a warp expands the weights of the next step while the tensor cores multiply those of this one.
// Bound: mma.sync in wide tiles, 256 instructions of 4096 operations a step beside some 900 others on four schedulers;
// in narrow ones the expansion of weights.
#include "gemm_tiles.cuh"
#include "gemm_weights.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS;
constexpr int ROW_TILES = 2, ROWS = WARPS * ROW_TILES * 16;  // of mma, to a warp; rows of w, to a block
constexpr int SLABS = 4;              // steps of x in shared memory: two that are read, two that come
constexpr int PARTS = 2 * ROW_TILES;  // of a tile's columns, passed over where no column is left

template <class W, int COLUMNS>
__global__ void __launch_bounds__(THREADS, COLUMNS > 64 ? 2 : 3)
gemm(Tensor y, const char* w, int64_t w_row, int64_t w_outer, int64_t w_inner, const bf16* x, int64_t x_outer,
     int64_t x_inner, float* partial, const MoeTile* moe_tiles, const int* moe_pairs, int pairs_of_row, int rows,
     int columns, int inner, int row_bytes, int steps, int column_tiles) {
  constexpr int COLUMN_TILES = COLUMNS / 8, TILES_OF_PART = COLUMN_TILES / PARTS;
  constexpr int CHUNK_STEPS = Chunk<W>::STEPS, SLAB_BYTES = COLUMNS * 2 * STEP;
  using Weights = WeightTile<W, ROWS>;
  DYNAMIC_SHARED(char, slabs);
  char* const chunks = slabs + SLABS * SLAB_BYTES;
  __shared__ char* destinations[COLUMNS];

  // Which tile.
  const Operands operands = operands_of(tile_of_y(blockIdx.x, rows, ROWS, columns, COLUMNS, column_tiles), COLUMNS,
                                        inner, w_outer, w_inner, x_outer, x_inner, moe_tiles);
  const int batch = operands.tile.batch, row0 = operands.tile.row0;
  const int first = operands.tile.first, count = operands.tile.count;
  if (count <= 0) return;

  // Which rows of x, and where the results go.
  const int64_t x_row = (int64_t)steps * STEP;
  const char* sources[COLUMNS / 32];
#pragma unroll
  for (int i = 0; i < COLUMNS / 32; i++) {
    const int column = min((int)threadIdx.x / 4 + 32 * i, count - 1);
    const int64_t row = moe_pairs ? moe_pairs[first + column] / pairs_of_row : operands.x_offset + first + column;
    sources[i] = (const char*)(x + row * x_row) + threadIdx.x % 4 * 16;
  }
  const int64_t y_step = partial ? (int64_t)sizeof(float) : y.strides[3];
#pragma unroll 1
  for (int column = threadIdx.x; column < count; column += THREADS) {
    const int64_t row = moe_pairs ? moe_pairs[first + column] : (int64_t)batch * columns + first + column;
    const int64_t all_rows = y.shape[0] * y.shape[1] * y.shape[2];
    destinations[column] = partial ? (char*)(partial + (blockIdx.y * all_rows + row) * rows) : row_of(y, row);
  }
  const Weights weights{w + operands.w_offset + row0 * w_row, w_row, rows - row0, row_bytes};

  // This part of k, in whole chunks.
  const int all_chunks = (steps + CHUNK_STEPS - 1) / CHUNK_STEPS;
  const int begin = (int)((int64_t)all_chunks * blockIdx.y / gridDim.y) * CHUNK_STEPS;
  const int end = min(steps, (int)((int64_t)all_chunks * (blockIdx.y + 1) / gridDim.y) * CHUNK_STEPS);

  char* const place = slabs + threadIdx.x * 16;
  const int place_column = threadIdx.x / 4;
  // Also the step after it, though it be the first of the next row, or lie past the last: nobody uses it then.
  auto copy_x = [&](int step) {
    if (step >= end) return;
    char* const to = place + (unsigned)step % SLABS * SLAB_BYTES;
#pragma unroll
    for (int i = 0; i < COLUMNS / 32; i++) {
      if (COLUMNS <= 64 && place_column + 32 * i >= count) break;  // wide tiles copy their last row again
      const char* from = sources[i] + step * STEP * (int)sizeof(bf16);
      copy_async(to + THREADS * 16 * i, from);
      copy_async(to + THREADS * 16 * i + SLAB_BYTES, from + STEP * sizeof(bf16));
    }
  };
  auto copy_chunk = [&](int step) {
    if (step < end) weights.template copy<THREADS>(chunks + (unsigned)step / CHUNK_STEPS % 2 * Weights::BYTES,
                                                    (unsigned)step / CHUNK_STEPS);
  };
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * ROW_TILES * 16 + lane / 4;
  int shifts[2 * ROW_TILES];
#pragma unroll
  for (int i = 0; i < 2 * ROW_TILES; i++) shifts[i] = weights.shift(warp_row + 8 * i);
  auto expand = [&](unsigned step, int i, uint32_t (&packed)[4]) {
    const unsigned chunk = step / CHUNK_STEPS;
    const char* shared = chunks + chunk % 2 * Weights::BYTES;
    weights.expand(shared, warp_row + 8 * i, shifts[i], chunk, step % CHUNK_STEPS, packed);
  };

  float sums[ROW_TILES][COLUMN_TILES][4] = {};
  uint32_t expanded[2 * ROW_TILES][4] = {}, next[2 * ROW_TILES][4] = {};
  // Copies end in the order in which they began. A chunk may take four steps, where it has eight.
  constexpr int LATEST = CHUNK_STEPS > 4 ? 1 : 0;
  copy_chunk(begin);
  copy_x(begin);
  commit_copies();
  commit_copies();

  // Once more than there are steps: the first time round, there is nothing to multiply yet.
#pragma unroll 1
  for (int step = begin - 1; step < end; step++) {
    const bool even = step % 2 == 0;
    if (even || step < begin) {
      wait_for_copies<LATEST>();
      __syncthreads();  // what two steps read is there for all, and nobody reads what is copied over now
    }
    if (even) {
      copy_x(step + 2);
      commit_copies();
      if ((unsigned)step % CHUNK_STEPS == 0) copy_chunk(step + CHUNK_STEPS);
      commit_copies();
    }
    const int used = step < begin ? 0 : count;
    const char* slab = slabs + (unsigned)step % SLABS * SLAB_BYTES + lane / 4 * 64 + lane % 4 * 16;
    auto multiply = [&](bool all) {
#pragma unroll
      for (int part = 0; part < PARTS; part++) {
        expand(step + 1, part, next[part]);  // past the end, of what lies there: nobody uses it
        if (!all && part * TILES_OF_PART * 8 >= used) continue;
#pragma unroll
        for (int j = part * TILES_OF_PART; j < (part + 1) * TILES_OF_PART; j++) {
          const uint4 b = *reinterpret_cast<const uint4*>(slab + j * 8 * 64);
          const uint32_t b0[2] = {b.x, b.y}, b1[2] = {b.z, b.w};
#pragma unroll
          for (int i = 0; i < ROW_TILES; i++) {
            const uint32_t(&low)[4] = expanded[2 * i], (&high)[4] = expanded[2 * i + 1];
            mma_bf16(sums[i][j], {low[0], high[0], low[1], high[1]}, b0);
            mma_bf16(sums[i][j], {low[2], high[2], low[3], high[3]}, b1);
          }
        }
      }
    };
    if (COLUMNS > 64 && used == COLUMNS)
      multiply(true);  // without branches, so that weights are read and expanded between products
    else
      multiply(false);
#pragma unroll
    for (int i = 0; i < 2 * ROW_TILES; i++)
#pragma unroll
      for (int k = 0; k < 4; k++) expanded[i][k] = next[i][k];
  }

#pragma unroll
  for (int j = 0; j < COLUMN_TILES; j++)
#pragma unroll
    for (int i = 0; i < ROW_TILES * 4; i++) {
      const int column = j * 8 + lane % 4 * 2 + i % 2, row = row0 + warp_row + i / 2 * 8;
      if (column < count && row < rows) *(float*)(destinations[column] + row * y_step) = sums[i / 4][j][i % 4];
    }
}
