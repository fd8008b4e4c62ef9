// Attention to latents on tensor cores of compute capability 9.0: attention_tiles.cu's y = softmax(scale · q · kᵀ) · v
// for many rows, where values are the first elements of keys, up to 512 of up to 576. Arguments are that kernel's;
// those of values are not looked at, nor `resumed`.
//
// Grid (blocks of 64 rows, kv heads, parts of the cells). Block: a warpgroup that brings a tile of 64 cells to shared
// memory while the one before is at work; and two that multiply. Of scores each takes 32 cells, of the mix 256 columns
// of values, so that powers go through shared memory: they lie in the tile where the last 64 elements of its keys were,
// which are no values. Products are wgmma's, of operands in shared memory, with sums in registers: 16 and 128 a thread.
//   Queries and tiles: nine slices of 64 elements, each 64 rows of 128 bytes in wgmma's 128-byte swizzle. Keys are read
//   K-major, values of the same bytes with their columns side by side.
//   A tile's buffer is full when the four warps that bring it have arrived at a barrier, empty when the eight that
//   multiply have. 217 KiB of shared memory: one block a processor.
// Bytes: 72 KiB a tile, which blocks that share cells read from L2. Bound: a tile's scores by shared memory, 1728
// cycles of 128 bytes each, where tensor cores take 1152; its mix by tensor cores, 1024. In between, at two barriers
// and 16 powers a thread, nobody multiplies.
#include "attention_tiles.cuh"
#include "hopper.cuh"

constexpr int BRINGING = 128, MULTIPLYING = 256, THREADS = BRINGING + MULTIPLYING;
constexpr int ROWS = 64, CELLS = 64, KEY = 576, VALUE = 512, PIECES = KEY / 8;
constexpr int SLICE = 64 * 128, SLICES = KEY / 64, TILE = SLICES * SLICE;  // in bytes
constexpr int OF_SCORES = CELLS / 2, OF_MIX = VALUE / 2;  // cells and columns of a warpgroup that multiplies
constexpr int POWERS = (SLICES - 1) * SLICE;              // where they lie in a tile

constexpr int AT_FIRST = 65536 / THREADS / 8 * 8, KEPT = 88, TAKEN = 208;  // registers of a thread
static_assert(BRINGING * KEPT + MULTIPLYING * TAKEN <= THREADS * AT_FIRST, "those that take more would wait forever");

// What is known of the two tiles' cells.
struct Cells {
  int64_t sequences[2][CELLS];
  int positions[2][CELLS];
  unsigned char seen[2][CELLS];
  bool all_see_all[2];
};

// Where eight elements of a row lie.
__device__ __forceinline__ int place_of(int row, int piece) {
  return piece / 8 * SLICE + row * 128 + (piece % 8 ^ row % 8) * 16;
}

// A block's queries as T, by the warps that multiply: each row times a power of two that makes its largest element 1 to
// 2, and what undoes that.
template <class T>
__device__ __forceinline__ void bring_queries(char* queries, float* row_scales, const Tensor& q, int q_kind,
                                              const int* places, float scale) {
  constexpr int AT_ONCE = (PIECES + 31) / 32;
  const int lane = threadIdx.x % 32, heads = (int)q.shape[2], width = (int)q.shape[3];
#pragma unroll 1
  for (int r = (threadIdx.x - BRINGING) / 32; r < ROWS; r += MULTIPLYING / 32) {
    const int place = places[r];
    const char* source = q.data + place / heads * q.strides[1] + place % heads * q.strides[2];
    const int end = place < 0 ? 0 : width;
    float v[AT_ONCE][8], largest = 0;
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
      for (int e = 0; e < 8; e++) {
        const int element = (i * 32 + lane) * 8 + e;
        v[i][e] = element < end ? load_as_float(q_kind, source + element * q.strides[3]) : 0.0f;
        largest = fmaxf(largest, fabsf(v[i][e]));
      }
    const int exponent = __float_as_int(warp_max(largest)) >> 23 & 255;
    const bool usual = exponent > 0 && exponent < 254;
    const float factor = usual ? __int_as_float((254 - exponent) << 23) : 1.0f;
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const float(&x)[8] = v[i];
      const auto both = [&](int e) { return packed(x[e] * factor, x[e + 1] * factor, T()); };
      if (i * 32 + lane < PIECES)
        store_operand(queries + place_of(r, i * 32 + lane), make_uint4(both(0), both(2), both(4), both(6)));
    }
    if (lane == 0) row_scales[r] = usual ? scale * __int_as_float(exponent << 23) : scale;
  }
  fence_operands();
}

// Calls bring_piece(to, row, piece) for a thread's pieces of a tile's keys, from cell `first` on. Rows that nobody sees
// become zeros, whatever they hold.
template <int AT_ONCE, class BringPiece>
__device__ __forceinline__ void each_piece(char* tile, const Cache& keys, int64_t first, const unsigned char* seen,
                                           BringPiece bring_piece) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll 1
  for (int piece = lane; piece < PIECES; piece += 32) {
    const bool is_inside = piece * 8 < keys.width;
    const char* row = keys.data + (first + warp) * keys.step;
#pragma unroll AT_ONCE
    for (int r = warp; r < CELLS; r += BRINGING / 32, row += BRINGING / 32 * keys.step) {
      char* const to = tile + place_of(r, piece);
      if (is_inside && seen[r])
        bring_piece(to, row, piece);
      else
        store_operand(to, make_uint4(0, 0, 0, 0));
    }
  }
}

// Begin to bring the keys of a tile.
template <class T>
__device__ __forceinline__ void bring_tile(char* tile, const Cache& keys, int64_t first, const unsigned char* seen) {
  if (keys.can_be_copied)
    each_piece<8>(tile, keys, first, seen,
                  [](char* to, const char* row, int piece) { copy_async(to, row + piece * 16); });
  else
    each_piece<1>(tile, keys, first, seen, [&](char* to, const char* row, int piece) {
      store_operand(to, expanded8<T>(row, piece * 8, keys.dtype));
    });
  commit_copies();
}

// The warpgroup that brings tiles, one after the other, and says of each what is known of its cells.
template <class T>
__device__ __forceinline__ void bring(char* tiles, uint64_t* full, uint64_t* empty, Cells& cells, const Cache& keys,
                                      Chunks chunks, const Viewer* viewers, int viewers_apart, int existing,
                                      const Tensor& cell_pos, const Tensor& cell_seq, int64_t before, int window) {
  const int thread = threadIdx.x, count = (int)(cell_pos.shape[3] - before);  // keys begin with cell `before`
  int position = -1;
  int64_t sequences = 0;
  bool all_see_all = false;
  const auto look_up = [&](int chunk) {
    const bool exists = thread < CELLS && chunk >= 0 && chunk * CELLS + thread < count;
    position = exists ? at<i32>(cell_pos, 0, 0, 0, before + chunk * CELLS + thread) : -1;
    sequences = exists ? at<i64>(cell_seq, 0, 0, 0, before + chunk * CELLS + thread) : 0;
    all_see_all = chunk >= 0 && chunks.is_whole(chunk);
  };
  int chunk = chunks.next();
  look_up(chunk);
#pragma unroll 1
  for (unsigned i = 0; chunk >= 0; i++) {
    const int buffer = i % 2;
    bool any = false;
    for (int r = 0; r < existing + viewers_apart - 1 && !any; r += viewers_apart)  // a row of each token
      any = sees(viewers[min(r, existing - 1)], position, sequences, window);
    if (i >= 2) barrier_wait(&empty[buffer], i / 2 - 1);
    if (thread == 0) cells.all_see_all[buffer] = all_see_all;
    if (thread < CELLS) {
      cells.positions[buffer][thread] = position, cells.sequences[buffer][thread] = sequences;
      cells.seen[buffer][thread] = any;
    }
    sync_threads<1, BRINGING>();
    bring_tile<T>(tiles + buffer * TILE, keys, (int64_t)chunk * CELLS, cells.seen[buffer]);
    chunk = chunks.next();
    look_up(chunk);
    wait_for_copies<0>();
    fence_operands();
    __syncwarp();
    if (thread % 32 == 0) barrier_arrive(&full[buffer]);
  }
}

// Scores of a warpgroup: queries by half of a tile's keys.
template <class T> __device__ __forceinline__ void score(float (&s)[OF_SCORES / 2], uint64_t queries, uint64_t keys) {
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < KEY / 16; step++) {
    const uint64_t further = step / 4 * (SLICE >> 4) + step % 4 * NEXT_16;
    if (step == 0)
      first_wgmma<T>(s, queries, keys);
    else
      wgmma<T>(s, queries + further, keys + further);
  }
  wgmma_commit();
  wgmma_wait<0>(s);
}

// Where a thread's two rows of the mix go, at the end; `sums` of powers are those of either half of the cells.
__device__ __forceinline__ void write_results(const Tensor& y, const Tensor& q, const Tensor& sinks, int sink_kind,
                                              float* partial_data, const int* places, int row, int group,
                                              const float (&highest)[2], const float (&sums)[2][ROWS],
                                              const float (&mix)[OF_MIX / 2]) {
  const int lane = threadIdx.x % 32, heads = (int)q.shape[2], dv = (int)y.shape[3];
  const int64_t all_rows = q.shape[1] * heads, part = all_rows * blockIdx.z;
  const Partial partial = {partial_data, all_rows * gridDim.z, dv};
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int r = row + 8 * half, place = places[r], first_column = group * OF_MIX + lane % 4 * 2;
    if (place < 0) continue;
    const float sum = sums[0][r] + sums[1][r];
    float factor = 1;
    if (!partial_data) {
      factor = final_factor(highest[half], sum, sinks, sink_kind, place % heads);
    } else if (group == 0 && lane % 4 == 0) {
      float* scales = partial.scales(part + place);
      scales[0] = highest[half], scales[1] = sum;
    }
    float* target = partial_data ? partial.mix(part + place) : &at<f32>(y, 0, place / heads, place % heads, 0);
#pragma unroll
    for (int j = 0; j < OF_MIX / 8; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int column = first_column + 8 * j + e;
        if (column < dv) target[column] = mix[4 * j + 2 * half + e] * factor;
      }
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS, 1)
    attend_wgmma(Tensor y, Tensor q, int q_kind, const char* k, int64_t k_cell, int64_t k_head, const char*, int64_t,
                 int64_t, Tensor q_pos, Tensor q_seq, Tensor cell_pos, Tensor cell_seq, Tensor sinks, int sink_kind,
                 const uint32_t* visible, int words_in_all, int first_word, int words, float* partial_data, int,
                 float scale, float softcap, int window, int k_dtype, int) {
  DYNAMIC_SHARED(char, queries);
  char* const tiles = queries + TILE;
  uint64_t *const full = reinterpret_cast<uint64_t*>(tiles + 2 * TILE), *const empty = full + 2;
  __shared__ Cells cells;
  __shared__ Viewer viewers[ROWS];
  __shared__ int places[ROWS];  // of rows in y, counted over tokens and heads; -1 where there is none
  __shared__ float row_scales[ROWS], maxima[2][ROWS];

  const int thread = threadIdx.x, lane = thread % 32, head = blockIdx.y, heads = (int)q.shape[2];
  const int of_head = heads / gridDim.y, row_block = gridDim.x - 1 - blockIdx.x;  // late rows see most: first
  const int existing = min(ROWS, (int)q.shape[1] * of_head - row_block * ROWS);
  if (thread < ROWS) {
    const int row = row_block * ROWS + thread, token = row / of_head;
    places[thread] = thread < existing ? token * heads + head * of_head + row % of_head : -1;
    viewers[thread] = thread < existing ? viewer_of(q_pos, q_seq, token) : Viewer{-1, 0};
  }
  if (thread < 2) barrier_init(&full[thread], BRINGING / 32), barrier_init(&empty[thread], MULTIPLYING / 32);
  __syncthreads();

  const int64_t before = (int64_t)first_word * 32 * CELLS;
  const Chunks chunks(visible, words_in_all, row_block, first_word, words,
                      (int)((cell_pos.shape[3] - before + CELLS - 1) / CELLS));
  if (thread < BRINGING) {
    give_registers<KEPT>();
    bring<T>(tiles, full, empty, cells, Cache(k + head * k_head, k_cell, k_dtype, ((int)q.shape[3] + 7) / 8 * 8),
             chunks, viewers, of_head, existing, cell_pos, cell_seq, before, window);
    return;
  }
  const unsigned tiles_in_all = chunks.left;
  take_registers<TAKEN>();
  bring_queries<T>(queries, row_scales, q, q_kind, places, scale);
  sync_threads<2, MULTIPLYING>();

  // A thread has rows row and row + 8, and of its warpgroup's cells and columns 8 j + first and the next.
  const int group = thread / 128 - 1, row = thread % 128 / 32 * 16 + lane / 4, first = lane % 4 * 2;
  float highest[2] = {-INFINITY, -INFINITY}, sums[2] = {}, mix[OF_MIX / 2] = {};
  const uint64_t a = descriptor_of(queries);
#pragma unroll 1
  for (unsigned i = 0; i < tiles_in_all; i++) {
    const int buffer = i % 2;
    char* const tile = tiles + buffer * TILE;
    const uint64_t b = descriptor_of(tile + group * OF_SCORES * 128);
    float s[OF_SCORES / 2];
    barrier_wait(&full[buffer], i / 2);
    score<T>(s, a, b);

    const bool all_see_all = cells.all_see_all[buffer];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = row + 8 * half;
      float most = -INFINITY;
#pragma unroll
      for (int j = 0; j < OF_SCORES / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int n = group * OF_SCORES + 8 * j + first + e;
          float& logit = s[4 * j + 2 * half + e];
          logit = logit_of(logit, row_scales[r], softcap);
          if (!all_see_all && !sees(viewers[r], cells.positions[buffer][n], cells.sequences[buffer][n], window))
            logit = -INFINITY;
          most = fmaxf(most, logit);
        }
      most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
      most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
      if (lane % 4 == 0) maxima[group][r] = most;
    }
    sync_threads<2, MULTIPLYING>();  // nor does anybody read the last elements of keys any longer
    float shrink[2];
    uint32_t powers[OF_SCORES / 8][2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = row + 8 * half;
      const float now = fmaxf(highest[half], fmaxf(maxima[0][r], maxima[1][r])), base = base_of(now);
      shrink[half] = exp2f(highest[half] - base), highest[half] = now;
      sums[half] *= shrink[half];
#pragma unroll
      for (int j = 0; j < OF_SCORES / 8; j++) {
        const float low = exp2f(s[4 * j + 2 * half] - base), high = exp2f(s[4 * j + 2 * half + 1] - base);
        sums[half] += low + high;
        powers[j][half] = packed(low, high, T());
      }
    }
#pragma unroll
    for (int j = 0; j < OF_SCORES / 8; j += 2) {
      const int r = row - lane / 4 + lane / 8 % 2 * 8 + lane % 8, piece = group * (OF_SCORES / 8) + j + lane / 16;
      store_matrices(tile + POWERS + place_of(r, piece),
                     {powers[j][0], powers[j][1], powers[j + 1][0], powers[j + 1][1]});
    }
    fence_operands();
    if (__any_sync(ALL_LANES, shrink[0] != 1 || shrink[1] != 1))
#pragma unroll
      for (int n = 0; n < OF_MIX / 2; n++) mix[n] *= shrink[n / 2 % 2];
    sync_threads<2, MULTIPLYING>();

    const uint64_t of_powers = descriptor_of(tile + POWERS);
    const uint64_t of_values = transposed_descriptor_of(tile + group * (OF_MIX / 64) * SLICE, SLICE);
    wgmma_fence(mix);
#pragma unroll
    for (int step = 0; step < CELLS / 16; step++)
      wgmma_transposed<T>(mix, of_powers + step * NEXT_16, of_values + step * NEXT_16_TRANSPOSED);
    wgmma_commit();
    wgmma_wait<0>(mix);
    if (lane == 0) barrier_arrive(&empty[buffer]);
  }

#pragma unroll
  for (int half = 0; half < 2; half++) {
    sums[half] += __shfl_xor_sync(ALL_LANES, sums[half], 1);
    sums[half] += __shfl_xor_sync(ALL_LANES, sums[half], 2);
    if (lane % 4 == 0) maxima[group][row + 8 * half] = sums[half];
  }
  sync_threads<2, MULTIPLYING>();
  write_results(y, q, sinks, sink_kind, partial_data, places, row, group, highest, maxima, mix);
}
