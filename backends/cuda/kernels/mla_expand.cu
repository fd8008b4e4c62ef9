// Keys and values of all heads out of latents, for a range of cells: k[n, h] = [Wk[h] · c[n] | k_pe[n]], v[n, h] = Wv[h] · c[n].
//
// Grid (tiles of 64 cells, tiles of outputs: those of keys, of values, and one for k_pe, heads). A tile of cells that
// nobody sees is left out. Latents [N, r + dr] and weights [H, dn, r] (or [H, r, dn]) are of one float dtype, rows padded
// to eight elements. r · (dn + dv) products a cell and head: bound by tensor cores, for f32 by plain float32 units.
#include "attention.cuh"

constexpr int CELLS = 64;

// Whether any block of rows may see any of the 64 cells from `cell` on.
__device__ __forceinline__ bool anybody_sees(const uint32_t* visible, int row_blocks, int words, int64_t cell,
                                             int chunk_cells) {
  const int64_t chunk = cell / chunk_cells;
  const uint32_t bits = (chunk_cells == 32 ? 3u : 1u) << chunk % 32;
  bool any = false;
  for (int block = threadIdx.x % 32; block < row_blocks; block += 32)
    any |= (visible[(int64_t)block * 2 * words + chunk / 32] & bits) != 0;
  return __any_sync(ALL_LANES, any);
}

// The rotated parts of 64 cells into a head's keys, and zeros behind them.
template <class T>
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
  constexpr int OUTPUTS = 64, STEP = 16;
  __shared__ float from[STEP][CELLS + 4], by[STEP][OUTPUTS + 4];
  const int heads = gridDim.z, head = blockIdx.z, thread = threadIdx.x;
  const int key_tiles = (nope + OUTPUTS - 1) / OUTPUTS;
  const int64_t cell = (int64_t)blockIdx.x * CELLS;
  if (!anybody_sees(visible, row_blocks, words, first_cell + cell, chunk_cells)) return;
  latent += first_cell * latent_cell;
  if (blockIdx.y == gridDim.y - 1) {
    copy_rotated(k, latent, latent_cell, cell, cells, heads, rank, nope, rope, k_pitch);
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
                     ? reinterpret_cast<const float*>(weight + (by_column ? element : output) * pitch)[by_column ? output : element]
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
