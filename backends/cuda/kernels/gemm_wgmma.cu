// y[n, m] = sum over k of w[m, k] · x[n, k] for many rows n of x on tensor cores of compute capability 9.0: what gemm.cu
// does, where wgmma reads both operands from shared memory. Arguments are gemm.cu's, and the width of tiles.
//
// Grid: (tiles of y · batches, parts of k), as in gemm.cu. A tile is 128 rows of w by up to 256 rows of x. Block: a warpgroup that brings operands,
// and two that multiply, each 64 rows of w by all columns, so that registers hold 128 sums of a thread. A step is 64
// elements of k, rows of 128 bytes in wgmma's 128-byte swizzle: eight threads bring a row, 16 bytes each.
//   x: bf16 rows (gemm_rows.cu) by asynchronous copies two steps ahead, into four slabs of 32 KiB.
//   w: bytes as they are a chunk ahead (gemm_weights.cuh), expanded to bf16 into two slabs of 16 KiB; bfloat16 ones are
//      copied as x is, into four.
// A step's slabs are full when the four warps that bring them have arrived at a barrier, empty when the eight that
// multiply have; step i waits for step i - 2 to be empty. At most 224 KiB of shared memory: one block a processor.
// Bound: wgmma, 1024 cycles a step in tiles of 256 columns; shared memory, 137 KB a step at 128 bytes a cycle, comes to
// 1070, and expansion (8 times some 35 instructions of four warps) to 300 on each scheduler. Narrow tiles are bound by
// expansion.
#include "gemm_tiles.cuh"
#include "gemm_weights.cuh"
#include "hopper.cuh"

constexpr int BRINGING = 128, MULTIPLYING = 256, THREADS = BRINGING + MULTIPLYING;
constexpr int ROWS = MULTIPLYING / 2, COLUMNS = 256;
constexpr int DEPTH = 64, ROW_BYTES = 2 * DEPTH;  // elements of k in a step
constexpr int STAGES = 2, SLABS = 4;              // steps that are expanded, and that are copied
constexpr int X_SLAB = COLUMNS * ROW_BYTES, W_SLAB = ROWS * ROW_BYTES;

template <class W> constexpr bool LIES_READY = false;  // as wgmma takes it
template <> constexpr bool LIES_READY<bf16> = true;

// Where everything lies in shared memory.
struct Room {
  int w_slabs;
  char *x, *w, *chunks;
  char** destinations;
  uint64_t *full, *empty;
  __device__ __forceinline__ Room(char* shared, int w_slabs, int chunk_bytes) : w_slabs(w_slabs) {
    x = shared, w = x + SLABS * X_SLAB, chunks = w + w_slabs * W_SLAB;
    destinations = reinterpret_cast<char**>(chunks + 2 * chunk_bytes);
    full = reinterpret_cast<uint64_t*>(destinations + COLUMNS), empty = full + STAGES;
  }
};

// Sums of 64 rows of w by N of x, N at least `count`, and where they go.
template <int N>
__device__ __forceinline__ void multiply(const Room& room, int steps, int count, int row0, int rows, int64_t y_step) {
  const int group = (threadIdx.x - BRINGING) / 128, lane = threadIdx.x % 32;
  float sums[N / 2] = {};
#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    const uint64_t a = descriptor_of(room.w + step % room.w_slabs * W_SLAB + group * 64 * ROW_BYTES);
    const uint64_t b = descriptor_of(room.x + step % SLABS * X_SLAB);
    barrier_wait(&room.full[step % STAGES], step / STAGES);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < DEPTH / 16; k++) wgmma(sums, a + k * NEXT_16, b + k * NEXT_16);
    wgmma_commit();
    wgmma_wait<1>(sums);  // that of the step before
    if (step > 0 && lane == 0) barrier_arrive(&room.empty[(step - 1) % STAGES]);
  }
  wgmma_wait<0>(sums);
  sync_threads<2, MULTIPLYING>();  // destinations are there for all
  const int first = row0 + group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
  const int64_t low = first * y_step, high = low + 8 * y_step;
  const int left = count - lane % 4 * 2, left_of_low = first < rows ? left : 0, left_of_high = first + 8 < rows ? left : 0;
#pragma unroll
  for (int j = 0; j < N; j += 32) {
    char* to[8];
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = room.destinations[j + i / 2 * 8 + lane % 4 * 2 + i % 2];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int column = j + i / 2 * 8 + i % 2, sum = j / 2 + i / 2 * 4 + i % 2;
      if (column < left_of_low) *(float*)(to[i] + low) = sums[sum];
      if (column < left_of_high) *(float*)(to[i] + high) = sums[sum + 2];
    }
  }
}

template <class W>
__global__ void __launch_bounds__(THREADS, 1)
gemm_wgmma(Tensor y, const char* w, int64_t w_row, int64_t w_outer, int64_t w_inner, const bf16* x, int64_t x_outer,
           int64_t x_inner, float* partial, const MoeTile* moe_tiles, const int* moe_pairs, int pairs_of_row, int rows,
           int columns, int inner, int row_bytes, int half_steps, int column_tiles, int tile_columns) {
  DYNAMIC_SHARED(char, shared);
  const Room room(shared, LIES_READY<W> ? SLABS : STAGES, LIES_READY<W> ? 0 : WeightTile<W, ROWS>::BYTES);
  TileOfY tile = tile_of_y(blockIdx.x, rows, ROWS, columns, tile_columns, column_tiles);
  int64_t w_offset = tile.batch / inner * w_outer + tile.batch % inner * w_inner;
  if (moe_tiles) {
    const MoeTile of = moe_tiles[tile.first / tile_columns];
    tile.first = of.first, tile.count = of.count, w_offset = of.expert * w_inner;
  }
  if (tile.count <= 0) return;

  if (threadIdx.x < STAGES) {
    barrier_init(&room.full[threadIdx.x], BRINGING / 32);
    barrier_init(&room.empty[threadIdx.x], MULTIPLYING / 32);
  }
  __syncthreads();

  // This part of k, in whole chunks.
  constexpr int CHUNK_STEPS = Chunk<W>::STEPS * STEP / DEPTH;
  const int all_steps = half_steps / 2, all_chunks = (all_steps + CHUNK_STEPS - 1) / CHUNK_STEPS;
  const int first_chunk = (int)((int64_t)all_chunks * blockIdx.y / gridDim.y);
  const int end_chunk = (int)((int64_t)all_chunks * (blockIdx.y + 1) / gridDim.y);
  const int first_step = first_chunk * CHUNK_STEPS, steps = min(all_steps, end_chunk * CHUNK_STEPS) - first_step;

  if (threadIdx.x >= BRINGING) {
    const int column = threadIdx.x - BRINGING;
    if (column < tile.count) {
      const int64_t row = moe_pairs ? moe_pairs[tile.first + column] : (int64_t)tile.batch * columns + tile.first + column;
      const int64_t all_rows = y.shape[0] * y.shape[1] * y.shape[2];
      room.destinations[column] = partial ? (char*)(partial + (blockIdx.y * all_rows + row) * rows) : row_of(y, row);
    }
    const int64_t y_step = partial ? (int64_t)sizeof(float) : y.strides[3];
    if (tile.count <= 64)
      multiply<64>(room, steps, tile.count, tile.row0, rows, y_step);
    else if (tile.count <= 128)
      multiply<128>(room, steps, tile.count, tile.row0, rows, y_step);
    else if (tile.count <= 192)
      multiply<192>(room, steps, tile.count, tile.row0, rows, y_step);
    else
      multiply<256>(room, steps, tile.count, tile.row0, rows, y_step);
    return;
  }

  using Weights = WeightTile<W, ROWS>;
  constexpr int APART = BRINGING / 8;
  const Weights weights{w + w_offset + tile.row0 * w_row, w_row, rows - tile.row0, row_bytes};
  const int row = threadIdx.x / 8, piece = threadIdx.x % 8, place = row * ROW_BYTES + (piece ^ row % 8) * 16;

  // Where this thread's pieces of x lie, of every 16th row.
  const char* sources[COLUMNS / APART];
  const int64_t x_offset = tile.batch / inner * x_outer + tile.batch % inner * x_inner + tile.first;
#pragma unroll
  for (int i = 0; i < COLUMNS / APART; i++) {
    const int column = min(row + APART * i, tile.count - 1);
    const int64_t of = moe_pairs ? moe_pairs[tile.first + column] / pairs_of_row : x_offset + column;
    sources[i] = (const char*)(x + of * all_steps * DEPTH) + first_step * ROW_BYTES + piece * 16;
  }
  int shifts[ROWS / APART];
#pragma unroll
  for (int i = 0; i < ROWS / APART; i++) shifts[i] = weights.shift(row + APART * i);
  auto copy_step = [&](int step) {
    if (step >= steps) return;
    char* const to = room.x + step % SLABS * X_SLAB + place;
#pragma unroll
    for (int i = 0; i < COLUMNS / APART; i++) {
      if (i % (64 / APART) == 0 && APART * i >= tile.count) break;  // wgmma takes 64, 128, 192 or 256
      copy_async(to + APART * ROW_BYTES * i, sources[i] + step * ROW_BYTES);
    }
    if constexpr (LIES_READY<W>) {
      char* const w_to = room.w + step % SLABS * W_SLAB + place;
#pragma unroll
      for (int i = 0; i < ROWS / APART; i++)
        if (row + APART * i < weights.rows)
          copy_async(w_to + APART * ROW_BYTES * i,
                     weights.data + (row + APART * i) * weights.stride + (first_step + step) * ROW_BYTES + piece * 16);
    }
  };
  auto copy_chunk = [&](int step) {
    if constexpr (!LIES_READY<W>)
      if (step < steps)
        weights.template copy<BRINGING>(room.chunks + step / CHUNK_STEPS % 2 * Weights::BYTES,
                                        first_chunk + step / CHUNK_STEPS);
  };

  copy_chunk(0);
  copy_step(0);
  commit_copies();
  copy_step(1);
  commit_copies();
#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    if (step >= STAGES) barrier_wait(&room.empty[step % STAGES], step / STAGES - 1);
    wait_for_copies<1>();
    if (!LIES_READY<W>) sync_threads<1, BRINGING>();  // the chunk is there for all, and nobody reads the one before
    copy_step(step + 2);
    if (step % CHUNK_STEPS == 0) copy_chunk(step + CHUNK_STEPS);
    commit_copies();
    if constexpr (!LIES_READY<W>) {
      const char* chunk = room.chunks + step / CHUNK_STEPS % 2 * Weights::BYTES;
      char* const to = room.w + step % STAGES * W_SLAB + place;
      uint32_t packed[ROWS / APART][4];  // all of them, lest loads wait for stores
#pragma unroll
      for (int i = 0; i < ROWS / APART; i++)
        weights.expand(chunk, row + APART * i, shifts[i], first_chunk + step / CHUNK_STEPS,
                       step % CHUNK_STEPS * (DEPTH / STEP) + piece / 4, packed[i]);
#pragma unroll
      for (int i = 0; i < ROWS / APART; i++)
        store_operand(to + APART * ROW_BYTES * i, {packed[i][0], packed[i][1], packed[i][2], packed[i][3]});
    }
    fence_operands();
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(&room.full[step % STAGES]);
  }
}
