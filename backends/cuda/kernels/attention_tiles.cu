// Attention on tensor cores: y = softmax(scale · q · kᵀ) · v, in tiles of 16-bit floats with sums in float32.
//
// Grid (blocks of 16 · TILES rows, kv heads, parts of the cells). All rows of a block share each tile of CELLS keys
// and values in shared memory, so that a cell's bytes are read once for all heads that share them; the next tile
// arrives while one is multiplied. For scores, warps share out rows and cells; for the mix, columns of values, so that
// powers go through shared memory, and each warp keeps its columns of all rows in registers. SHARED: values are the
// first DV elements of keys. Decoding (TILES = 1) is bound by the cache's bytes, prompts and 128 heads of MLA
// (TILES = 4) by tensor cores and shared memory; the latter are attention_wgmma.cu's where there is wgmma.
#include "attention_tiles.cuh"

template <class T, int DK, int DV, bool SHARED, int TILES, int WARPS, int CELLS>
__global__ void __launch_bounds__(32 * WARPS, WARPS == 4 ? 2 : 1)
    attend_tiles(Tensor y, Tensor q, int q_kind, const char* k, int64_t k_cell, int64_t k_head, const char* v,
                 int64_t v_cell, int64_t v_head, Tensor q_pos, Tensor q_seq, Tensor cell_pos, Tensor cell_seq,
                 Tensor sinks, int sink_kind, const uint32_t* visible, int words_in_all, int first_word, int words,
                 float* partial_data, int resumed, float scale, float softcap, int window, int k_dtype, int v_dtype) {
  using P = Plan<DK, DV, SHARED, TILES, WARPS, CELLS>;
  constexpr int ROWS = P::ROWS;
  DYNAMIC_SHARED(T, queries);          // [ROWS, KEY]
  T* tiles = queries + ROWS * P::KEY;  // two of [CELLS, KEY], [CELLS, VALUE]
  T* powers = tiles + 2 * P::TILE;     // [ROWS, POWER]
  float* exchange = reinterpret_cast<float*>(powers);  // in the same place: scores are done before there are powers
  __shared__ float maxima[P::CELL_WARPS][ROWS], row_scales[ROWS], shrinks[ROWS];
  __shared__ int64_t sequences[3][CELLS];  // of the tile at work, the next one and the one after it
  __shared__ int positions[3][CELLS];
  __shared__ unsigned char seen[3][CELLS];
  __shared__ Viewer viewers[ROWS];
  __shared__ int places[ROWS];  // of rows in y, counted over tokens and heads; -1 where there is none

  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, head = blockIdx.y;
  const int group = (int)q.shape[2] / gridDim.y, row_block = gridDim.x - 1 - blockIdx.x;  // late rows see most: first
  const int existing = min(ROWS, (int)q.shape[1] * group - row_block * ROWS);
  if (thread < ROWS) {
    const int row = row_block * ROWS + thread, token = row / group;
    places[thread] = thread < existing ? token * (int)q.shape[2] + head * group + row % group : -1;
    viewers[thread] = thread < existing ? viewer_of(q_pos, q_seq, token) : Viewer{-1, 0};
  }

  const int cells = (int)cell_pos.shape[3] - first_word * 32 * CELLS;  // k and v begin with the first of these
  const auto cell_of = [&](int chunk) { return (int64_t)(first_word * 32 + chunk) * CELLS + thread; };
  const auto keep_cells = [&](int slot, int chunk, int position, int64_t all) {
    if (thread >= CELLS || chunk < 0) return;
    bool any = false;
    for (int r = 0; r < existing + group - 1 && !any; r += group)  // a row of each token
      any = sees(viewers[min(r, existing - 1)], position, all, window);
    positions[slot][thread] = position, sequences[slot][thread] = all, seen[slot][thread] = any;
  };
  const Cache keys(k + head * k_head, k_cell, k_dtype, ((int)q.shape[3] + 7) / 8 * 8);
  const Cache values(v + head * v_head, v_cell, v_dtype, ((int)y.shape[3] + 7) / 8 * 8);
  const int width = ((int)q.shape[3] + 31) / 32 * 32;

  // Of scores: rows first_row + 16 i + 8 half, cells first_cell + 8 j + e. Of the mix: columns first_column + 8 j + e.
  const int first_row = warp / P::CELL_WARPS * P::ROW_TILES * 16 + lane / 4;
  const int cell_warp = warp % P::CELL_WARPS, first_cell = cell_warp * P::CELL_TILES * 8 + lane % 4 * 2;
  const int first_column = warp * P::COLUMN_TILES * 8 + lane % 4 * 2;
  float highest[P::ROW_TILES][2], sums[P::ROW_TILES][2] = {}, mix[TILES][P::COLUMN_TILES][4] = {};
#pragma unroll
  for (int i = 0; i < P::ROW_TILES; i++) highest[i][0] = highest[i][1] = -INFINITY;

  Chunks chunks(visible, words_in_all, row_block, first_word, words, (cells + CELLS - 1) / CELLS);
  int chunk = -1, next = -1, slot = 0, buffer = 0;  // the next one's cells are known, the one after it is looked up
  while (true) {
    const int after = chunks.next(), next_slot = slot == 2 ? 0 : slot + 1, after_slot = slot == 0 ? 2 : slot - 1;
    const bool exists = thread < CELLS && after >= 0 && after * CELLS + thread < cells;
    const int position_after = exists ? at<i32>(cell_pos, 0, 0, 0, cell_of(after)) : -1;
    const int64_t sequences_after = exists ? at<i64>(cell_seq, 0, 0, 0, cell_of(after)) : 0;
    wait_for_copies<0>();
    __syncthreads();
    if (next >= 0)
      load_tile<T, P, DK, DV, SHARED, TILES, CELLS>(tiles + (buffer ^ 1) * P::TILE, keys, values,
                                                    (int64_t)next * CELLS, seen[next_slot]);
    if (chunk < 0 && next >= 0) load_queries<T, P, DK>(queries, row_scales, q, q_kind, places, scale);
    if (chunk >= 0) {
      const T* tile = tiles + buffer * P::TILE;
      const bool is_whole = chunks.is_whole(chunk);
      float s[P::ROW_TILES][P::CELL_TILES][4] = {};
      score<T, P>(s, queries + (first_row - lane / 4) * P::KEY, tile, width, exchange);
#pragma unroll
      for (int i = 0; i < P::ROW_TILES; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int r = first_row + i * 16 + half * 8;
          const float row_scale = row_scales[r];
          const Viewer viewer = viewers[r];
          float most = -INFINITY;
#pragma unroll
          for (int j = 0; j < P::CELL_TILES; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
              const int n = first_cell + j * 8 + e;
              float& logit = s[i][j][2 * half + e];
              logit = logit_of(logit, row_scale, softcap);
              if (!is_whole && !sees(viewer, positions[slot][n], sequences[slot][n], window)) logit = -INFINITY;
              most = fmaxf(most, logit);
            }
          most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
          most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
          if (lane % 4 == 0) maxima[cell_warp][r] = most;
        }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < P::ROW_TILES; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int r = first_row + i * 16 + half * 8;
          float now = highest[i][half];
#pragma unroll
          for (int w = 0; w < P::CELL_WARPS; w++) now = fmaxf(now, maxima[w][r]);
          const float base = base_of(now), shrink = exp2f(highest[i][half] - base);
          if (cell_warp == 0 && lane % 4 == 0) shrinks[r] = shrink;
          highest[i][half] = now;
          sums[i][half] *= shrink;
#pragma unroll
          for (int j = 0; j < P::CELL_TILES; j++) {
            const float low = exp2f(s[i][j][2 * half] - base), high = exp2f(s[i][j][2 * half + 1] - base);
            sums[i][half] += low + high;
            *reinterpret_cast<uint32_t*>(powers + r * P::POWER + first_cell + j * 8) = packed(low, high, T());
          }
        }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        const float upper = shrinks[i * 16 + lane / 4], lower = shrinks[i * 16 + 8 + lane / 4];
#pragma unroll
        for (int j = 0; j < P::COLUMN_TILES; j++)
#pragma unroll
          for (int e = 0; e < 4; e++) mix[i][j][e] *= e < 2 ? upper : lower;
      }
      add_values<T, P, TILES, CELLS>(mix, powers, tile + P::VALUES + (first_column - lane % 4 * 2));
    }
    keep_cells(after_slot, after, position_after, sequences_after);
    if (next < 0 && after < 0) break;
    chunk = next, next = after, slot = next_slot, buffer ^= 1;
  }

  __syncthreads();
#pragma unroll
  for (int i = 0; i < P::ROW_TILES; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = first_row + i * 16 + half * 8;
      float sum = sums[i][half];
      sum += __shfl_xor_sync(ALL_LANES, sum, 1);
      sum += __shfl_xor_sync(ALL_LANES, sum, 2);
      if (lane % 4 == 0) maxima[cell_warp][r] = sum;
      if (lane % 4 == 0 && cell_warp == 0) shrinks[r] = highest[i][half];
    }
  __syncthreads();
  const int heads = (int)q.shape[2], dv = (int)y.shape[3];
  const int64_t all_rows = q.shape[1] * heads, part = all_rows * blockIdx.z;
  const Partial partial = {partial_data, all_rows * gridDim.z, dv};
  if (thread < existing) {
    float sum = 0, factor = 1, factor_before = 0, most = shrinks[thread];
    for (int w = 0; w < P::CELL_WARPS; w++) sum += maxima[w][thread];
    if (partial_data) {
      float* scales = partial.scales(part + places[thread]);
      if (resumed) {
        const float now = fmaxf(most, scales[0]), base = base_of(now);
        factor = exp2f(most - base), factor_before = exp2f(scales[0] - base);
        sum = sum * factor + scales[1] * factor_before;
        most = now;
      }
      scales[0] = most, scales[1] = sum;
    } else {
      factor = final_factor(most, sum, sinks, sink_kind, places[thread] % heads);
    }
    row_scales[thread] = factor, shrinks[thread] = factor_before;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < TILES; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = i * 16 + half * 8 + lane / 4;
      if (r >= existing) continue;
      const int token = places[r] / heads, query = places[r] % heads;
      float* target = (partial_data ? partial.mix(part + places[r]) : &at<f32>(y, 0, token, query, 0)) + first_column;
      const float factor = row_scales[r], factor_before = shrinks[r];
#pragma unroll
      for (int j = 0; j < P::COLUMN_TILES; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          if (8 * j + e >= dv - first_column) continue;
          float value = mix[i][j][2 * half + e] * factor;
          if (resumed) value += target[8 * j + e] * factor_before;
          target[8 * j + e] = value;
        }
    }
}
