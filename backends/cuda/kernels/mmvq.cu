// Products of quantized weights and a few rows of x in int8: y[n, m] = sum over k of x[n, k] · w[m, k].
//
// Geometry: products_few.cuh; what a warp does: mmvq.cuh. Up to three matrices are multiplied by the same x, one after
// the other along the grid's axis y: groups of rows before `end` are those of first_w, before `next_end` of next_w.
//
// For one column, x may be given as `values` in float32, of which each block makes codes of its own. `joined` short
// rows, of 2048 elements together, may be taken as one, so that all lanes have work.
//
// Reads w once, 0.56 bytes an element for q4_0, and x from the caches once for ROWS rows of w: bound by memory.
#include "mmvq.cuh"

__device__ __forceinline__ Tensor one_of(int which, const Tensor& a, const Tensor& b, const Tensor& c) {
  Tensor chosen = {which == 0 ? a.data : which == 1 ? b.data : c.data};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    chosen.shape[i] = which == 0 ? a.shape[i] : which == 1 ? b.shape[i] : c.shape[i];
    chosen.strides[i] = which == 0 ? a.strides[i] : which == 1 ? b.strides[i] : c.strides[i];
  }
  return chosen;
}

template <class T, int COLUMNS>
__global__ void __launch_bounds__(WARPS * 32)
    mmvq(Tensor first_y, Tensor first_w, Tensor next_y, Tensor next_w, Tensor last_y, Tensor last_w, int end,
         int next_end, Tensor ids, const int8_t* codes, const Factor* factors, Tensor values, int own, int joined,
         PLACE_PARAMETERS) {
  DYNAMIC_SHARED(char, shared);
  const int which = (int)blockIdx.y < end ? 0 : (int)blockIdx.y < next_end ? 1 : 2;
  const int64_t group = blockIdx.y - (which == 0 ? 0 : which == 1 ? end : next_end);
  const Tensor y = one_of(which, first_y, next_y, last_y), w = one_of(which, first_w, next_w, last_w);
  const Place<COLUMNS> place(y, w, ids, group, PLACE_ARGUMENTS);
  const char* rows[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) rows[r] = place.row_of_w(w, r, joined);
  Codes x = {codes, factors, (unsigned)w.shape[3] * (Blocks<T>::elements / 32)};
  if (COLUMNS == 1 && own) x = own_codes(shared + WARPS * Step<T>::room_of_warp, x.blocks);
  const int64_t x_row = COLUMNS == 1 && own ? 0 : place.x_row;
  float sum[ROWS][COLUMNS] = {};
  multiply_rows<T, COLUMNS>(
      shared + threadIdx.x / 32 * Step<T>::room_of_warp, joined > 1 ? STEP_BLOCKS : x.blocks, x, place.known ? 1 : 0,
      place.part, split, place.columns,
      [&]() {
        if (COLUMNS == 1 && own) fill_own_codes(x, row_address(values, place.x_row));
      },
      [&](int turn, int r) { return rows[r]; }, [&](int turn) { return x_row; },
      [&](int turn, int r, int c, float product) { sum[r][c] += product; });
  if (joined > 1)
    write_joined_rows(y, sum, group, joined, place.y_row, place.columns, place.known);
  else
    write_rows(y, sum, group, place.y_row, place.columns, split, place.known);
}
