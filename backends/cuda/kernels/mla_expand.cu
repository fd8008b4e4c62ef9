// Keys and values of all heads out of latents, for a range of cells: k[n, h] = [Wk[h] · c[n] | k_pe[n]] and
// v[n, h] = Wv[h] · c[n].
//
// Grid (tiles of cells, tiles of outputs: those of keys, of values, and one for k_pe, heads), 256 threads. A tile of
// cells that nobody sees is left out. Latents [N, r + dr] and weights [H, dn, r] (or [H, r, dn]) are of one float
// dtype. r · (dn + dv) products a cell and head: bound by tensor cores, for f32 by plain float32 units.
#include "attention_tiles.cuh"

// Whether any block of rows may see any of `count` cells from `cell` on.
__device__ __forceinline__ bool anybody_sees(const uint32_t* visible, int row_blocks, int words, int64_t cell,
                                             int count, int chunk_cells) {
  const int64_t chunk = cell / chunk_cells;
  const uint32_t bits = ((1u << count / chunk_cells) - 1) << chunk % 32;
  bool any = false;
  for (int block = threadIdx.x % 32; block < row_blocks; block += 32)
    any |= (visible[(int64_t)block * 2 * words + chunk / 32] & bits) != 0;
  return __any_sync(ALL_LANES, any);
}

// The rotated parts of a tile of cells into a head's keys, and zeros behind them.
template <class T, int CELLS>
__device__ __forceinline__ void copy_rotated(T* k, const char* latent, int64_t latent_cell, int64_t cell, int64_t cells,
                                             int heads, int rank, int nope, int rope, int pitch) {
  const int rest = pitch - nope;
  for (int i = threadIdx.x; i < CELLS * rest; i += blockDim.x) {
    const int64_t n = cell + i / rest;
    const int element = i % rest;
    if (n >= cells) break;
    const T* row = reinterpret_cast<const T*>(latent + n * latent_cell);
    k[(n * heads + blockIdx.z) * pitch + nope + element] = element < rope ? row[rank + element] : from_float<T>(0);
  }
}

// In float32: 256 threads, each 4 cells by 4 outputs of 64 by 64.
__global__ void __launch_bounds__(256)
    expand_rows(float* k, float* v, const char* latent, int64_t latent_cell, const char* keys, int64_t keys_head,
                int64_t keys_row, int transposed, const char* values, int64_t values_head, int64_t values_row,
                const uint32_t* visible, int row_blocks, int words, int chunk_cells, int64_t first_cell, int64_t cells,
                int rank, int nope, int rope, int value, int k_pitch, int v_pitch) {
  constexpr int CELLS = 64, OUTPUTS = 64, STEP = 16;
  __shared__ float from[STEP][CELLS + 4], by[STEP][OUTPUTS + 4];
  const int heads = gridDim.z, head = blockIdx.z, thread = threadIdx.x;
  const int key_tiles = (nope + OUTPUTS - 1) / OUTPUTS;
  const int64_t cell = (int64_t)blockIdx.x * CELLS;
  if (!anybody_sees(visible, row_blocks, words, first_cell + cell, CELLS, chunk_cells)) return;
  latent += first_cell * latent_cell;
  if (blockIdx.y == gridDim.y - 1) {
    copy_rotated<float, CELLS>(k, latent, latent_cell, cell, cells, heads, rank, nope, rope, k_pitch);
    return;
  }
  const bool is_key = (int)blockIdx.y < key_tiles;
  const int first = (is_key ? blockIdx.y : blockIdx.y - key_tiles) * OUTPUTS, outputs = is_key ? nope : value;
  const char* weight = is_key ? keys + head * keys_head : values + head * values_head;
  const int64_t pitch = is_key ? keys_row : values_row;
  const bool by_column = is_key && transposed;
  float sums[4][4] = {};
  for (int start = 0; start < rank; start += STEP) {
    for (int i = thread; i < STEP * CELLS; i += 256) {
      const int64_t n = cell + i / STEP;
      const int element = start + i % STEP;
      from[i % STEP][i / STEP] =
          n < cells && element < rank ? reinterpret_cast<const float*>(latent + n * latent_cell)[element] : 0.0f;
    }
    for (int i = thread; i < STEP * OUTPUTS; i += 256) {
      const int r = by_column ? i / OUTPUTS : i % STEP, o = by_column ? i % OUTPUTS : i / STEP;
      const int64_t element = start + r, output = first + o;
      by[r][o] = element < rank && output < outputs
                     ? reinterpret_cast<const float*>(weight + (by_column ? element : output) *
                                                                   pitch)[by_column ? output : element]
                     : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < STEP; r++)
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] += from[r][thread / 16 * 4 + i] * by[r][thread % 16 + 16 * j];
    __syncthreads();
  }
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++) {
      const int64_t n = cell + thread / 16 * 4 + i;
      const int output = first + thread % 16 + 16 * j;
      if (n >= cells || output >= outputs) continue;
      (is_key ? k[(n * heads + head) * k_pitch + output] : v[(n * heads + head) * v_pitch + output]) = sums[i][j];
    }
}

// Rows of a matrix of T into shared memory: ROWS by WIDTH elements from (row, element) on, zeros past rows and width.
template <class T, int ROWS, int WIDTH>
__device__ __forceinline__ void load_matrix(T* target, const char* source, int64_t step, int64_t row, int64_t rows,
                                            int element, int width) {
  const bool is_aligned16 = ((reinterpret_cast<uint64_t>(source) | (uint64_t)step) & 15) == 0;
#pragma unroll 2
  for (int i = threadIdx.x; i < ROWS * (WIDTH / 8); i += 256) {
    const int r = i / (WIDTH / 8), piece = i % (WIDTH / 8) * 8;
    T* to = target + r * (WIDTH + PADDING) + piece;
    const char* from = source + (row + r) * step;
    if (row + r >= rows || element + piece >= width)
      *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
    else if (is_aligned16)
      copy_async(to, from + 2 * (element + piece));
    else
      *reinterpret_cast<uint4*>(to) = expanded8<T>(from, element + piece, 1);
  }
}

// On tensor cores: 8 warps, each 64 cells by 32 outputs of 128 by 128. r is a multiple of 8.
template <class T>
__global__ void __launch_bounds__(256)
    expand_tiles(T* k, T* v, const char* latent, int64_t latent_cell, const char* keys, int64_t keys_head,
                 int64_t keys_row, int transposed, const char* values, int64_t values_head, int64_t values_row,
                 const uint32_t* visible, int row_blocks, int words, int chunk_cells, int64_t first_cell, int64_t cells,
                 int rank, int nope, int rope, int value, int k_pitch, int v_pitch) {
  constexpr int CELLS = 128, OUTPUTS = 128, STEP = 64, FROM = CELLS * (STEP + PADDING);
  constexpr int BY = OUTPUTS * (STEP + PADDING);  // a transposed tile takes less
  DYNAMIC_SHARED(T, from);                        // two of [CELLS, STEP]
  T* by = from + 2 * FROM;                        // two of [OUTPUTS, STEP] or [STEP, OUTPUTS]
  const int heads = gridDim.z, head = blockIdx.z, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int key_tiles = (nope + OUTPUTS - 1) / OUTPUTS;
  const int64_t cell = (int64_t)blockIdx.x * CELLS;
  if (!anybody_sees(visible, row_blocks, words, first_cell + cell, CELLS, chunk_cells)) return;
  latent += first_cell * latent_cell;
  if (blockIdx.y == gridDim.y - 1) {
    copy_rotated<T, CELLS>(k, latent, latent_cell, cell, cells, heads, rank, nope, rope, k_pitch);
    return;
  }
  const bool is_key = (int)blockIdx.y < key_tiles, by_column = is_key && transposed;
  const int first = (is_key ? blockIdx.y : blockIdx.y - key_tiles) * OUTPUTS, outputs = is_key ? nope : value;
  const char* weight = is_key ? keys + head * keys_head : values + head * values_head;
  const auto load = [&](int start, int buffer) {
    load_matrix<T, CELLS, STEP>(from + buffer * FROM, latent, latent_cell, cell, cells, start, rank);
    if (by_column)
      load_matrix<T, STEP, OUTPUTS>(by + buffer * BY, weight, keys_row, start, rank, first, outputs);
    else
      load_matrix<T, OUTPUTS, STEP>(by + buffer * BY, weight, is_key ? keys_row : values_row, first, outputs, start,
                                    rank);
    commit_copies();
  };
  const int first_row = warp / 4 * 64, first_column = warp % 4 * 32;
  const bool has_results = cell + first_row < cells && first + first_column < outputs;
  float sums[4][4][4] = {};
  int buffer = 0;
  for (int start = -STEP; start < rank; start += STEP, buffer ^= 1) {
    wait_for_copies<0>();
    __syncthreads();
    if (start + STEP < rank) load(start + STEP, buffer ^ 1);
    if (start < 0 || !has_results) continue;
    const T* a_row = from + buffer * FROM + (first_row + lane % 16) * (STEP + PADDING) + lane / 16 * 8;
#pragma unroll
    for (int r = 0; r < STEP; r += 16) {
      uint32_t a[4][4];
#pragma unroll
      for (int i = 0; i < 4; i++) ldmatrix(a[i], a_row + i * 16 * (STEP + PADDING) + r);
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        uint32_t b[4];
        const T* tile = by + buffer * BY;
        const int column = first_column + j * 8;
        if (by_column)
          ldmatrix_transposed(b, tile + (r + lane % 16) * (OUTPUTS + PADDING) + column + lane / 16 * 8);
        else
          ldmatrix(b, tile + (column + lane % 8 + lane / 16 * 8) * (STEP + PADDING) + r + lane / 8 % 2 * 8);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          multiply(sums[i][j], a[i], {b[0], b[1]}, T());
          multiply(sums[i][j + 1], a[i], {b[2], b[3]}, T());
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int64_t n = cell + first_row + i * 16 + half * 8 + lane / 4;
      if (n >= cells) continue;
      T* target = is_key ? k + (n * heads + head) * k_pitch : v + (n * heads + head) * v_pitch;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int output = first + first_column + j * 8 + lane % 4 * 2;
        const float low = sums[i][j][2 * half], high = sums[i][j][2 * half + 1];
        if (output + 1 < outputs)
          *reinterpret_cast<uint32_t*>(target + output) = packed(low, high, T());
        else if (output < outputs)
          target[output] = from_float<T>(low);
      }
    }
}
