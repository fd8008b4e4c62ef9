// Quantized feed-forward layers of one row of x, and those of few tokens' experts, in two kernels:
//
// gated   h[s, f] = activation(gate[f, :] · x) · (up[f, :] · x), for each slot s: a token's expert, or the one row; h
//         is written as int8 (q8.cuh), which is how the next product wants it. Grid (slots, hidden / 32), 8 warps of
//         which each takes 4 rows of gate and of up, so that a block makes one block of h.
// summed  y[t, d] = sum over u of shares[t, u] · (down[ids[t, u]][d, :] · h[t, u, :]). Grid (tokens, groups of rows);
//         rows and warps as in products_few.cuh, each over all experts of the token.
//
// Experts that see every token come with those of one token: as slots after its own, each as wide as one of those, and
// with a share of 1.
//
// What a warp does: mmvq.cuh. Reads the experts' weights once: bound by memory. An expert that is not there makes NaN.
#include "activations.cuh"
#include "mmvq.cuh"

constexpr int GATED_WARPS = 8, TURNS = 4, MOST_USED = 32;

__device__ __forceinline__ float activate(int kind, float x) {
  return kind == 0 ? silu_of(x) : kind == 1 ? gelu_of(x) : relu_of(x);
}

// `used` is 0 where there are no ids; up's rows begin at row `up_first` of its matrix; `values` and `own` are as in
// mmvq.cu. Slots from `slots` on are those of the shared experts.
template <class T>
__global__ void __launch_bounds__(GATED_WARPS * 32)
    gated(Tensor gate, Tensor up, Tensor ids, const int8_t* codes, const Factor* factors, Tensor values, int own,
          int8_t* h_codes, Factor* h_factors, int64_t up_first, int used, int x_used, int activation,
          Tensor shared_gate, Tensor shared_up, int slots) {
  DYNAMIC_SHARED(char, shared);
  __shared__ float h[GATED_WARPS * TURNS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, slot = blockIdx.x;
  const int64_t row0 = blockIdx.y * (int64_t)(GATED_WARPS * TURNS) + warp * TURNS;
  const bool is_shared = slot >= slots;
  const int64_t gate_step = is_shared ? shared_gate.strides[2] : gate.strides[2];
  const int64_t up_step = is_shared ? shared_up.strides[2] : up.strides[2];
  const char *gate_row = gate.data, *up_row = up.data + up_first * up_step;
  int64_t x_row = slot;
  bool known = true;
  if (is_shared) {
    const int64_t first = (slot - slots) * (int64_t)(gridDim.y * GATED_WARPS * TURNS);
    gate_row = shared_gate.data + first * gate_step;
    up_row = shared_up.data + first * up_step;
    x_row = 0;
  } else if (used) {
    const int id = at<int32_t>(ids, 0, 0, slot / used, slot % used);
    known = 0 <= id && id < gate.shape[1];
    gate_row += id * gate.strides[1];
    up_row += id * up.strides[1];
    if (x_used == 1) x_row = slot / used;
  }
  gate_row += row0 * gate_step;
  up_row += row0 * up_step;
  Codes x = {codes, factors, (unsigned)gate.shape[3] * (Blocks<T>::elements / 32)};
  if (own) x = own_codes(shared + GATED_WARPS * Step<T>::room_of_warp, x.blocks);
  float sum[TURNS][ROWS] = {};
  static_assert(ROWS == 2, "a row of gate and one of up");
  multiply_rows<T, 1>(
      shared + warp * Step<T>::room_of_warp, x.blocks, x, known ? TURNS : 0, 0, 1, 1,
      [&]() {
        if (own) fill_own_codes(x, row_address(values, x_row));
      },
      [&](int turn, int r) { return r == 0 ? gate_row + turn * gate_step : up_row + turn * up_step; },
      [&](int turn) { return own ? 0 : x_row; },
      [&](int turn, int r, int c, float product) {
#pragma unroll
        for (int t = 0; t < TURNS; t++) sum[t][r] += t == turn ? product : 0;
      });
#pragma unroll
  for (int t = 0; t < TURNS; t++) {
    const float of_gate = warp_sum(sum[t][0]), of_up = warp_sum(sum[t][1]);
    if (lane == 0) h[warp * TURNS + t] = known ? activate(activation, of_gate) * of_up : NAN;
  }
  __syncthreads();
  if (warp == 0) write_block(h[lane], h_codes, h_factors, slot, gridDim.y, blockIdx.y);
}

template <class T>
__global__ void __launch_bounds__(WARPS * 32)
    summed(Tensor y, Tensor down, Tensor ids, const char* shares, int64_t token_step, int64_t rank_step,
           const int8_t* codes, const Factor* factors, int used, int split, Tensor shared_down, int shared_count) {
  DYNAMIC_SHARED(char, shared);
  __shared__ const char* matrices[MOST_USED];
  __shared__ int64_t steps[MOST_USED];  // from row to row
  __shared__ float share[MOST_USED];
  const int warp = threadIdx.x / 32, rank = threadIdx.x;
  const int64_t token = blockIdx.x;
  if (rank < used) {
    const int id = at<int32_t>(ids, 0, 0, token, rank);
    const bool known = 0 <= id && id < down.shape[1];
    matrices[rank] = down.data + (known ? id : 0) * down.strides[1];
    steps[rank] = down.strides[2];
    share[rank] = known ? *reinterpret_cast<const float*>(shares + token * token_step + rank * rank_step) : NAN;
  } else if (rank < used + shared_count) {
    matrices[rank] = shared_down.data + (rank - used) * down.shape[3] * Blocks<T>::bytes;
    steps[rank] = shared_down.strides[2];
    share[rank] = 1;
  }
  __syncthreads();
  const unsigned blocks = down.shape[3] * (Blocks<T>::elements / 32);
  int64_t row[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) row[r] = min(first_row(blockIdx.y, warp, split) + r, down.shape[2] - 1);
  float sum[ROWS][1] = {};
  multiply_rows<T, 1>(
      shared + warp * Step<T>::room_of_warp, blocks, Codes{codes, factors, blocks}, used + shared_count, warp % split,
      split, 1, []() {}, [&](int turn, int r) { return matrices[turn] + row[r] * steps[turn]; },
      [&](int turn) { return token * used + turn; },
      [&](int turn, int r, int c, float product) { sum[r][0] += share[turn] * product; });
  write_rows(y, sum, blockIdx.y, token, 1, split, true);
}
