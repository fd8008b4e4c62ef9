// y[n, m] = sum over k of w[m, k] · x[n, k] for many rows n of x on tensor cores of compute capability 9.0: gemm.cu's
// products, where wgmma reads both operands from shared memory. Arguments: gemm.cu's, x in tiles, and how y is cut.
//
// Grid: a block for each processor, which makes one tile of y after the other, 128 rows of w by up to 256 rows of x
// over a part of k. Experts' tiles differ in work, so blocks take the next one when they are done.
// Block: a warpgroup that brings operands, also those of the next tile, while sums of this one are stored; and two that
// multiply, each 64 rows of w by all columns, so that registers hold 128 sums of a thread. A step is 64 elements of k,
// rows of 128 bytes in wgmma's 128-byte swizzle.
//   x: tiles that lie so in the workspace (x_to_tiles of gemm_rows.cu), a step by one bulk copy, which TMA makes, two
//      steps ahead, into four slabs of 32 KiB. A slab is full when a barrier has counted its bytes.
//   w: eight threads bring a row, 16 bytes each: bytes as they are a chunk ahead (gemm_weights.cuh), expanded to bf16
//      into two slabs of 16 KiB; bfloat16 ones by asynchronous copies two steps ahead, into four. A slab is full when
//      the four warps have arrived at a barrier.
// A step's slabs are empty when the eight warps that multiply have arrived; step i waits for step i - 2 to be empty. At
// most 227 KiB of shared memory: one block a processor.
// Bytes: a step of a tile reads 32 KiB of x from L2, and 64 elements of 128 rows of w, which are read once for every
// 256 rows of x. Bound: wgmma, 1024 cycles a step of 256 columns. Shared memory moves 137 KB a step, 1070 cycles at 128
// bytes each; four warps expand and copy by some 310 instructions on a scheduler each (q4_0; q6_k 590). Narrow tiles
// are bound by the latter.
#include "gemm_tiles.cuh"
#include "gemm_weights.cuh"
#include "hopper.cuh"

constexpr int BRINGING = 128, MULTIPLYING = 256, THREADS = BRINGING + MULTIPLYING;
constexpr int ROWS = MULTIPLYING / 2, COLUMNS = 256;
constexpr int DEPTH = 64, ROW_BYTES = 2 * DEPTH;  // elements of k in a step
constexpr int STAGES = 2, SLABS = 4;              // steps that are expanded, and that are copied
constexpr int X_SLAB = COLUMNS * ROW_BYTES, W_SLAB = ROWS * ROW_BYTES;
constexpr int PER_ROW = 8, APART = BRINGING / PER_ROW;  // threads of a row, and rows from one of a thread to the next
constexpr int JOBS = 4;  // some that multiply may yet read the one before the last, even where jobs have one step

template <class W> constexpr bool LIES_READY = false;  // as wgmma takes it
template <> constexpr bool LIES_READY<bf16> = true;

// A tile over a part of k; no `count` ends the block. Its rows of x are tile number `x_tile` of its batch's.
struct Job {
  TileOfY tile;
  int expert, part, first_step, steps, x_tile;
};

// How all of y is cut.
struct Cut {
  int rows, columns, tile_columns, column_tiles, parts, jobs, all_steps, chunk_steps;

  __device__ __forceinline__ Job job(int number, const MoeTile* moe_tiles) const {
    if (number >= jobs) return {};
    const int tiles = jobs / parts, part = number / tiles;
    Job job{tile_of_y(number % tiles, rows, ROWS, columns, tile_columns, column_tiles), 0, part};
    job.x_tile = job.tile.first / tile_columns;
    if (moe_tiles) {
      const MoeTile of = moe_tiles[job.x_tile];
      job.expert = of.expert, job.tile.first = of.first, job.tile.count = of.count;
    }
    const int chunks = (all_steps + chunk_steps - 1) / chunk_steps;
    job.first_step = chunks * part / parts * chunk_steps;
    job.steps = min(all_steps, chunks * (part + 1) / parts * chunk_steps) - job.first_step;
    return job;
  }
};

// Where everything lies in shared memory.
struct Room {
  int w_slabs;
  char *x, *w, *chunks;
  char** destinations;
  Job* jobs;
  uint64_t *full, *empty, *x_full;
  __device__ __forceinline__ Room(char* shared, int w_slabs, int chunk_bytes) : w_slabs(w_slabs) {
    x = shared, w = x + SLABS * X_SLAB, chunks = w + w_slabs * W_SLAB;
    destinations = reinterpret_cast<char**>(chunks + 2 * chunk_bytes);
    jobs = reinterpret_cast<Job*>(destinations + COLUMNS);
    full = reinterpret_cast<uint64_t*>(jobs + JOBS), empty = full + STAGES;
    x_full = empty + STAGES;
  }
};

// Where sums go.
struct Results {
  const Tensor& y;
  float* partial;
  const int* moe_pairs;
  int rows, columns;

  __device__ __forceinline__ char* row(const Job& job, int column) const {
    const int at = job.tile.first + column, row = moe_pairs ? moe_pairs[at] : job.tile.batch * columns + at;
    const int inner = (int)y.shape[2], middle = (int)y.shape[1], rest = row / inner;
    if (partial) return (char*)(partial + (y.shape[0] * y.shape[1] * inner * job.part + row) * rows);
    return y.data + rest / middle * y.strides[0] + rest % middle * y.strides[1] + row % inner * y.strides[2];
  }
};

// Sums of 64 rows of w by N of x, N at least the tile's; `done` steps were multiplied before.
template <int N>
__device__ __forceinline__ void multiply(const Room& room, const Results& results, const Job& job, unsigned done) {
  const int group = (threadIdx.x - BRINGING) / 128, lane = threadIdx.x % 32;
  float sums[N / 2] = {};
#pragma unroll 1
  for (unsigned step = done; step < done + job.steps; step++) {
    const uint64_t a = descriptor_of(room.w + step % room.w_slabs * W_SLAB + group * 64 * ROW_BYTES);
    const uint64_t b = descriptor_of(room.x + step % SLABS * X_SLAB);
    barrier_wait(&room.full[step % STAGES], step / STAGES);
    barrier_wait(&room.x_full[step % SLABS], step / SLABS);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < DEPTH / 16; k++) wgmma<bf16>(sums, a + k * NEXT_16, b + k * NEXT_16);
    wgmma_commit();
    if (step == done) {
      sync_threads<2, MULTIPLYING>();  // nobody stores by the tile before any longer
      const int column = threadIdx.x - BRINGING;
      if (column < job.tile.count) room.destinations[column] = results.row(job, column);
    }
    wgmma_wait<1>(sums);  // that of the step before
    if (step > done && lane == 0) barrier_arrive(&room.empty[(step - 1) % STAGES]);
  }
  wgmma_wait<0>(sums);
  if (lane == 0) barrier_arrive(&room.empty[(done + job.steps - 1) % STAGES]);
  sync_threads<2, MULTIPLYING>();

  const int first = job.tile.row0 + group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4, rows = results.rows;
  const int64_t y_step = results.partial ? (int64_t)sizeof(float) : results.y.strides[3];
  const int64_t low = first * y_step, high = low + 8 * y_step;
  const int left = job.tile.count - lane % 4 * 2;
  const int left_of_low = first < rows ? left : 0, left_of_high = first + 8 < rows ? left : 0;
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

// What a thread of those that bring operands does for a job: it copies pieces of 16 bytes of w, and expands eight
// elements of them at once; the first one begins the copies of x.
template <class W> struct Bringer {
  using Weights = WeightTile<W, ROWS>;
  using C = Chunk<W>;
  static constexpr int CHUNK_STEPS = C::STEPS * STEP / DEPTH, CHUNK = LIES_READY<W> ? 0 : Weights::BYTES;

  const Room& room;
  const Job job;
  const Weights weights;
  const char* x;  // the tile's first step
  int x_step;     // bytes from a step to the next
  const int row = threadIdx.x / PER_ROW, piece = threadIdx.x % PER_ROW;
  const int place = row * ROW_BYTES + (piece ^ row % 8) * 16;
  int shifts[ROWS / APART];

  __device__ __forceinline__ void copy_x(int step, unsigned done) const {
    if (threadIdx.x > 0 || step >= job.steps) return;
    const int slab = (done + step) % SLABS, bytes = job.tile.count * ROW_BYTES;
    barrier_arrive_expecting(&room.x_full[slab], bytes);
    copy_bulk(room.x + slab * X_SLAB, x + (int64_t)(job.first_step + step) * x_step, bytes, &room.x_full[slab]);
  }

  __device__ __forceinline__ void copy_ready(int step, unsigned done) const {
    if (!LIES_READY<W> || step >= job.steps) return;
    char* const to = room.w + (done + step) % SLABS * W_SLAB + place;
    const char* from = weights.data + row * weights.stride + (job.first_step + step) * ROW_BYTES + piece * 16;
#pragma unroll
    for (int i = 0; i < ROWS / APART; i++, from += APART * weights.stride)
      if (row + APART * i < weights.rows) copy_async(to + APART * ROW_BYTES * i, from);
  }

  // Rows begin at any address: their pieces are copied from a multiple of 16 on.
  __device__ __forceinline__ void copy_chunk(int step) const {
    if (step >= job.steps) return;
    char* const to = room.chunks + step / CHUNK_STEPS % 2 * CHUNK;
    const int chunk = (job.first_step + step) / CHUNK_STEPS;
    const int bytes = min((int)C::BYTES, weights.row_bytes - chunk * C::BYTES);
    const char* start = weights.data + row * weights.stride + (int64_t)chunk * C::BYTES;
#pragma unroll
    for (int i = 0; i < ROWS / APART; i++, start += APART * weights.stride) {
      const int shift = (int)(int64_t)start & 15, end = row + APART * i < weights.rows ? shift + bytes : 0;
#pragma unroll
      for (int n = 0; n < C::PIECES; n += PER_ROW)
        if ((n + piece) * 16 < end)
          copy_async(to + C::template place<ROWS>(row + APART * i, n + piece), start - shift + (n + piece) * 16);
    }
  }

  __device__ __forceinline__ void expand(int step, unsigned done) const {
    if constexpr (!LIES_READY<W>) {
      const char* chunk = room.chunks + step / CHUNK_STEPS % 2 * CHUNK;
      char* const to = room.w + (done + step) % STAGES * W_SLAB + place;
      uint32_t packed[ROWS / APART][4];  // all of them, lest loads wait for stores
#pragma unroll
      for (int i = 0; i < ROWS / APART; i++)
        weights.expand(chunk, row + APART * i, shifts[i], (job.first_step + step) / CHUNK_STEPS,
                       step % CHUNK_STEPS * (DEPTH / STEP) + piece / 4, packed[i]);
#pragma unroll
      for (int i = 0; i < ROWS / APART; i++)
        store_operand(to + APART * ROW_BYTES * i, {packed[i][0], packed[i][1], packed[i][2], packed[i][3]});
    }
  }
};

template <class W>
__global__ void __launch_bounds__(THREADS, 1)
gemm_wgmma(Tensor y, const char* w, int64_t w_row, int64_t w_outer, int64_t w_inner, const char* x, int64_t x_outer,
           int64_t x_inner, float* partial, MoeTile* moe_tiles, const int* moe_pairs, int rows, int columns, int inner,
           int row_bytes, int half_steps, int column_tiles, int tile_columns, int parts, int jobs) {
  DYNAMIC_SHARED(char, shared);
  using Bring = Bringer<W>;
  const Room room(shared, LIES_READY<W> ? SLABS : STAGES, Bring::CHUNK);
  if (threadIdx.x < STAGES) {
    barrier_init(&room.full[threadIdx.x], BRINGING / 32);
    barrier_init(&room.empty[threadIdx.x], MULTIPLYING / 32);
  }
  if (threadIdx.x < SLABS) barrier_init(&room.x_full[threadIdx.x], 1);
  fence_operands();
  __syncthreads();

  unsigned done = 0;  // steps of jobs before this one
  if (threadIdx.x >= BRINGING) {
    const Results results{y, partial, moe_pairs, rows, columns};
#pragma unroll 1
    for (unsigned i = 0;; i++) {
      barrier_wait(&room.full[done % STAGES], done / STAGES);
      const Job job = room.jobs[i % JOBS];
      const int count = job.tile.count;
      if (count == 0) return;
      if (count <= 128)
        multiply<128>(room, results, job, done);  // fewer would take as long, by those that bring operands
      else if (count <= 160)
        multiply<160>(room, results, job, done);
      else if (count <= 192)
        multiply<192>(room, results, job, done);
      else if (count <= 224)
        multiply<224>(room, results, job, done);
      else
        multiply<256>(room, results, job, done);
      done += job.steps;
    }
  }

  const int all_steps = half_steps / 2;
  if (moe_tiles) {
    column_tiles = moe_tiles[column_tiles].count;  // those that have rows
    jobs = (rows + ROWS - 1) / ROWS * column_tiles;
  }
  const Cut cut{rows, columns, tile_columns, column_tiles, parts, jobs, all_steps, Bring::CHUNK_STEPS};
  auto next = [&](int number) { return (int)gridDim.x + (moe_tiles ? atomicAdd(&moe_tiles->taken, 1) : number); };
  int number = blockIdx.x;  // of the next job
#pragma unroll 1
  for (unsigned i = 0;; i++) {
    if (threadIdx.x == 0) {
      room.jobs[i % JOBS] = cut.job(number, moe_tiles);
      if (number < jobs) number = next(number);
    }
    sync_threads<1, BRINGING>();
    const Job job = room.jobs[i % JOBS];
    const TileOfY tile = job.tile;
    if (tile.count == 0) break;

    const int64_t w_offset =
        moe_tiles ? job.expert * w_inner : tile.batch / inner * w_outer + tile.batch % inner * w_inner;
    const int64_t x_batch = tile.batch / inner * x_outer + tile.batch % inner * x_inner;
    const int x_step = tile_columns * ROW_BYTES;
    Bring bring{room, job, {w + w_offset + tile.row0 * w_row, w_row, rows - tile.row0, row_bytes},
                x + (x_batch + job.x_tile) * all_steps * x_step, x_step};
    bring.copy_x(0, done);
    bring.copy_x(1, done);
    if (!LIES_READY<W>) bring.copy_chunk(0);
#pragma unroll
    for (int j = 0; j < ROWS / APART; j++) bring.shifts[j] = bring.weights.shift(bring.row + APART * j);
    bring.copy_ready(0, done);
    commit_copies();
    bring.copy_ready(1, done);
    commit_copies();
#pragma unroll 1
    for (int step = 0; step < job.steps; step++, done++) {
      if (done >= STAGES) barrier_wait(&room.empty[done % STAGES], done / STAGES - 1);
      bring.copy_x(step + 2, done - step);
      const bool is_new = !LIES_READY<W> && step % Bring::CHUNK_STEPS == 0;  // the chunk, of which all read all
      if (LIES_READY<W>) wait_for_copies<1>();
      if (is_new) {
        wait_for_copies<0>();
        sync_threads<1, BRINGING>();  // it is there, and nobody reads the one before
      }
      bring.expand(step, done - step);
      fence_operands();  // a GPU may wait for copies here: those that have time are begun later
      __syncwarp();
      if (threadIdx.x % 32 == 0) barrier_arrive(&room.full[done % STAGES]);
      if (is_new) bring.copy_chunk(step + Bring::CHUNK_STEPS);
      bring.copy_ready(step + 2, done - step);
      commit_copies();
    }
  }
  // No more jobs: what is full then is room.jobs alone.
  if (done >= STAGES) barrier_wait(&room.empty[done % STAGES], done / STAGES - 1);
  if (threadIdx.x % 32 == 0) barrier_arrive(&room.full[done % STAGES]);
}
