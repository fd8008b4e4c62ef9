// Attention in float32: y = softmax(scale · q · kᵀ) · v, for rows of keys and values in f32, of any width.
//
// Grid (blocks of ROWS rows, kv heads, parts of the cells), 128 threads. For each visible chunk of 64 cells, a warp
// takes 4 cells at a time, its lanes the elements of their keys: 8 x 4 sums, which 31 exchanges bring to one lane each.
// Then every thread mixes columns of values. Each block reads the keys and values that it sees once: decoding is bound
// by these bytes. Products of prompts run on plain float32 units.
#include "attention.cuh"

constexpr int ROWS = 8, CELLS = 64, TOGETHER = 4;

// Of 32 values in each lane, the sum of value number `lane` over all lanes.
__device__ __forceinline__ float sum_of_own(float (&values)[32]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 16; half; half >>= 1) {
    const bool upper = lane & half;
#pragma unroll
    for (int i = 0; i < 16; i++) {  // a count that does not change is unrolled, and values stay in registers
      if (i >= half) break;
      const float sent = upper ? values[i] : values[i + half];
      values[i] = (upper ? values[i + half] : values[i]) + __shfl_xor_sync(ALL_LANES, sent, half);
    }
  }
  return values[0];
}

__global__ void __launch_bounds__(128, 3)
    attend_rows(Tensor y, Tensor q, int q_kind, const char* k, int64_t k_cell, int64_t k_head, const char* v,
                int64_t v_cell, int64_t v_head, Tensor q_pos, Tensor q_seq, Tensor cell_pos, Tensor cell_seq,
                Tensor sinks, int sink_kind, const uint32_t* visible, int words_in_all, int first_word, int words,
                float* partial_data, int resumed, float scale, float softcap, int window) {
  DYNAMIC_SHARED(float, queries);  // [ROWS, dk], then the mix [ROWS, dv]
  __shared__ float powers[ROWS][CELLS], highest[ROWS], sums[ROWS], shrink[ROWS];
  __shared__ int64_t sequences[CELLS];
  __shared__ int positions[CELLS], seen[CELLS];
  __shared__ Viewer viewers[ROWS];
  const int dk = (int)q.shape[3], dv = (int)y.shape[3], thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int group = (int)(q.shape[2] / gridDim.y), head = blockIdx.y;
  const int64_t rows = q.shape[1] * group, first_row = (int64_t)blockIdx.x * ROWS, cells = cell_pos.shape[3];
  const int64_t first_cell = (int64_t)first_word * 32 * CELLS, all_rows = q.shape[1] * q.shape[2];
  const Partial partial = {partial_data, all_rows * gridDim.z, dv};
  float* mix = queries + ROWS * dk;
  k += head * k_head;
  v += head * v_head;

  for (int i = thread; i < ROWS * dk; i += 128) {
    const int64_t row = first_row + i / dk;
    const char* at_q = q.data + row / group * q.strides[1] + (head * group + row % group) * q.strides[2];
    queries[i] = row < rows ? load_as_float(q_kind, at_q + i % dk * q.strides[3]) : 0.0f;
  }
  const auto number_of = [&](int64_t row) {  // among the rows of all parts
    return all_rows * blockIdx.z + row / group * q.shape[2] + head * group + row % group;
  };
  for (int i = thread; i < ROWS * dv; i += 128) {
    const int64_t row = first_row + i / dv;
    mix[i] = resumed && row < rows ? partial.mix(number_of(row))[i % dv] : 0.0f;
  }
  if (thread < ROWS) {
    const int64_t row = first_row + thread;
    viewers[thread] = row < rows ? viewer_of(q_pos, q_seq, row / group) : Viewer{-1, 0};
    highest[thread] = resumed && row < rows ? partial.scales(number_of(row))[0] : -INFINITY;
    sums[thread] = resumed && row < rows ? partial.scales(number_of(row))[1] : 0.0f;
  }

  Chunks chunks(visible, words_in_all, blockIdx.x, first_word, words,
                (int)((cells - first_cell + CELLS - 1) / CELLS));
  for (int chunk = chunks.next(); chunk >= 0; chunk = chunks.next()) {
    __syncthreads();
    const int64_t begin = (int64_t)chunk * CELLS;  // counted from first_cell, as k and v are
    if (thread < CELLS) {
      const int64_t cell = first_cell + begin + thread;
      const int position = cell < cells ? at<i32>(cell_pos, 0, 0, 0, cell) : -1;
      const int64_t all = position < 0 ? 0 : at<i64>(cell_seq, 0, 0, 0, cell);
      bool any = false;
      for (int row = 0; row < ROWS; row++) any |= sees(viewers[row], position, all, window);
      positions[thread] = position, sequences[thread] = all, seen[thread] = any;
    }
    __syncthreads();
    for (int n = warp * (CELLS / 4); n < (warp + 1) * (CELLS / 4); n += TOGETHER) {
      float products[ROWS * TOGETHER] = {};
      for (int i = lane; i < dk; i += 32) {
        float key[TOGETHER];
#pragma unroll
        for (int c = 0; c < TOGETHER; c++)
          key[c] = seen[n + c] ? reinterpret_cast<const float*>(k + (begin + n + c) * k_cell)[i] : 0.0f;
#pragma unroll
        for (int row = 0; row < ROWS; row++)
#pragma unroll
          for (int c = 0; c < TOGETHER; c++) products[row * TOGETHER + c] += queries[row * dk + i] * key[c];
      }
      const int row = lane / TOGETHER, cell = n + lane % TOGETHER;
      const float logit = logit_of(sum_of_own(products), scale, softcap);
      powers[row][cell] = sees(viewers[row], positions[cell], sequences[cell], window) ? logit : -INFINITY;
    }
    __syncthreads();
    for (int row = warp; row < ROWS; row += 4) {
      const float low = powers[row][lane], high = powers[row][lane + 32], before = highest[row];
      const float now = fmaxf(before, warp_max(fmaxf(low, high))), base = base_of(now);
      const float power_low = exp2f(low - base), power_high = exp2f(high - base);
      powers[row][lane] = power_low, powers[row][lane + 32] = power_high;
      const float sum = warp_sum(power_low + power_high);
      __syncwarp();
      if (lane == 0) {
        shrink[row] = exp2f(before - base);
        sums[row] = sums[row] * shrink[row] + sum;
        highest[row] = now;
      }
    }
    __syncthreads();
    for (int column = thread; column < dv; column += 128) {
      float total[ROWS];
#pragma unroll
      for (int row = 0; row < ROWS; row++) total[row] = mix[row * dv + column] * shrink[row];
#pragma unroll 8
      for (int n = 0; n < CELLS; n++) {
        const float value = seen[n] ? reinterpret_cast<const float*>(v + (begin + n) * v_cell)[column] : 0.0f;
#pragma unroll
        for (int row = 0; row < ROWS; row++) total[row] += powers[row][n] * value;
      }
#pragma unroll
      for (int row = 0; row < ROWS; row++) mix[row * dv + column] = total[row];
    }
  }

  __syncthreads();
  for (int i = thread; i < ROWS * dv; i += 128) {
    const int64_t row = first_row + i / dv;
    if (row >= rows) continue;
    const int r = i / dv, query = (int)(head * group + row % group);
    if (partial_data) {
      partial.mix(number_of(row))[i % dv] = mix[i];
      if (i % dv < 2) partial.scales(number_of(row))[i % dv] = i % dv ? sums[r] : highest[r];
      if (dv == 1) partial.scales(number_of(row))[1] = sums[r];
    } else {
      at<f32>(y, 0, row / group, query, i % dv) = mix[i] * final_factor(highest[r], sums[r], sinks, sink_kind, query);
    }
  }
}

// The results of all parts of the cells as one: parts · (dv + 2) floats are read for each row of y.
//
// Grid (rows of y, 64 columns), 4 warps: each adds up a quarter of the parts, a lane two columns.
__global__ void __launch_bounds__(128) combine_parts(Tensor y, float* data, int parts, Tensor sinks, int sink_kind) {
  DYNAMIC_SHARED(float, powers);  // [parts]
  __shared__ float shared[4], totals[4][64];
  const int64_t row = blockIdx.x, rows = y.shape[1] * y.shape[2];
  const int dv = (int)y.shape[3], head = (int)(row % y.shape[2]), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Partial partial = {data, rows * parts, dv};
  float highest = -INFINITY, sum = 0;
  for (int part = threadIdx.x; part < parts; part += 128)
    highest = fmaxf(highest, partial.scales(part * rows + row)[0]);
  highest = block_max<128>(highest, shared);
  const float base = base_of(highest);
  for (int part = threadIdx.x; part < parts; part += 128) {
    const float* scales = partial.scales(part * rows + row);
    powers[part] = exp2f(scales[0] - base);
    sum += scales[1] * powers[part];
  }
  sum = block_sum<128>(sum, shared);
  __syncthreads();
  const int column = blockIdx.y * 64 + lane;
  float low = 0, high = 0;
#pragma unroll 8
  for (int part = warp; part < parts; part += 4) {
    const float* mix = partial.mix(part * rows + row);
    if (column < dv) low += mix[column] * powers[part];
    if (column + 32 < dv) high += mix[column + 32] * powers[part];
  }
  totals[warp][lane] = low, totals[warp][lane + 32] = high;
  __syncthreads();
  const int mine = blockIdx.y * 64 + threadIdx.x;
  if (threadIdx.x >= 64 || mine >= dv) return;
  float total = 0;
  for (int w = 0; w < 4; w++) total += totals[w][threadIdx.x];
  at<f32>(y, 0, row / y.shape[2], head, mine) = total * final_factor(highest, sum, sinks, sink_kind, head);
}
