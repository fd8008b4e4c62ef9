// Products of quantized weights and a few rows of x in int8 (q8.cuh): y[n, m] = sum over k of x[n, k] · w[m, k].
//
// Geometry: products_few.cuh. A warp goes on in steps of 2048 elements, 64 to a lane. Blocks of w have odd lengths, so
// the rows come as aligned runs of 16 bytes to shared memory in the background, two steps ahead, and are taken apart
// there; for most dtypes lanes then lie an odd number of words apart, in banks of their own.
//
// Reads w once, 0.56 bytes an element for q4_0, and x from the caches once for ROWS rows of w: bound by memory.
#include "blocks.cuh"
#include "products_few.cuh"
#include "q8.cuh"

constexpr int STAGES = 2;

template <class T> struct Step {
  static constexpr int bytes = STEP_ELEMENTS / Blocks<T>::elements * Blocks<T>::bytes;
  static constexpr int room = (bytes + 30) / 16 * 16;  // wherever in its 16 bytes the first one is
};

// Begin to copy `bytes` bytes of a row; the first one comes to the same place in its 16 bytes.
__device__ __forceinline__ void copy_row(char* stage, const char* source, int bytes) {
  const int past = reinterpret_cast<uintptr_t>(source) % 16;
  for (int at = threadIdx.x % 32 * 16; at < past + bytes; at += 512) copy_async(stage + at, source - past + at);
}

// 32 elements of x.
struct XBlock {
  uint4 low, high;
  Factor factor;
};
__device__ __forceinline__ XBlock load_x(const int8_t* codes, const Factor* factors, int64_t row, int64_t blocks,
                                         int64_t block) {
  return {*reinterpret_cast<const uint4*>(codes + codes_at(row, blocks, block, 0)),
          *reinterpret_cast<const uint4*>(codes + codes_at(row, blocks, block, 1)),
          factors[factor_at(row, blocks, block)]};
}

__device__ __forceinline__ int dot16(const uint32_t* w, const uint4& x) {
  int sum = __dp4a((int)w[0], (int)x.x, 0);
  sum = __dp4a((int)w[1], (int)x.y, sum);
  sum = __dp4a((int)w[2], (int)x.z, sum);
  return __dp4a((int)w[3], (int)x.w, sum);
}

// 32 elements of w, and their product with 32 of x.
template <class T> struct WBlock {
  uint32_t codes[8];
  Scales first, second;

  __device__ __forceinline__ void load(const char* block, int at) {
    Blocks<T>::template codes<32>(block, at, codes);
    first = Blocks<T>::scales(block, at);
    if (Blocks<T>::scaled == 16) second = Blocks<T>::scales(block, at + 16);
  }

  __device__ __forceinline__ float times(const XBlock& x) const {
    const int low = dot16(codes, x.low), high = dot16(codes + 4, x.high);
    const int low_sum = x.factor.first_sum(), high_sum = x.factor.second_sum();
    float sum;
    if (Blocks<T>::scaled == 16) {
      sum = first.scale * low + second.scale * high;
      if (Blocks<T>::has_offset) sum += first.offset * low_sum + second.offset * high_sum;
    } else {
      sum = first.scale * (low + high);
      if (Blocks<T>::has_offset) sum += first.offset * (low_sum + high_sum);
    }
    return x.factor.d * sum;
  }
};

template <class T, int COLUMNS>
__global__ void __launch_bounds__(WARPS * 32)
    mmvq(Tensor y, Tensor w, Tensor ids, const int8_t* codes, const Factor* factors, PLACE_PARAMETERS) {
  typedef Blocks<T> B;
  DYNAMIC_SHARED(char, shared);
  const int lane = threadIdx.x % 32;
  const Place<COLUMNS> place(y, w, ids, PLACE_ARGUMENTS);
  const int64_t blocks = w.shape[3] * B::elements / 32, row_bytes = w.shape[3] * B::bytes;
  const int steps = place.known ? (blocks + STEP_BLOCKS - 1) / STEP_BLOCKS : 0;
  const char* rows[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) rows[r] = place.row_of_w(w, r);

  char* const stages = shared + threadIdx.x / 32 * (STAGES * ROWS * Step<T>::room);
  auto stage_of = [&](int stage, int r) { return stages + (stage * ROWS + r) * Step<T>::room; };
  auto copy_step = [&](int step, int stage) {
    const int64_t from = (int64_t)step * Step<T>::bytes, bytes = min(row_bytes - from, (int64_t)Step<T>::bytes);
    if (step < steps)
#pragma unroll
      for (int r = 0; r < ROWS; r++) copy_row(stage_of(stage, r), rows[r] + from, bytes);
    commit_copies();
  };

  float sum[ROWS][COLUMNS] = {};
#pragma unroll
  for (int ahead = 0; ahead < STAGES; ahead++) copy_step(place.part + ahead * place.split, ahead);
  for (int step = place.part, stage = 0; step < steps; step += place.split, stage = (stage + 1) % STAGES) {
    const int64_t block0 = step * (int64_t)STEP_BLOCKS + 2 * lane;
    XBlock early[2];  // on its way while w still is
    if (COLUMNS == 1) {
      early[0] = load_x(codes, factors, place.x_row, blocks, block0);
      early[1] = load_x(codes, factors, place.x_row, blocks, block0 + 1);
    }
    wait_for_copies<STAGES - 1>();
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const unsigned first = 64u * lane + 32 * half;  // of the step's elements
      WBlock<T> block[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const int past = reinterpret_cast<uintptr_t>(rows[r] + (int64_t)step * Step<T>::bytes) % 16;
        block[r].load(stage_of(stage, r) + past + first / B::elements * B::bytes, first % B::elements);
      }
      if (block0 + half < blocks) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          if (c < place.columns) {
            const XBlock x =
                COLUMNS == 1 ? early[half] : load_x(codes, factors, place.x_row + c, blocks, block0 + half);
#pragma unroll
            for (int r = 0; r < ROWS; r++) sum[r][c] += block[r].times(x);
          }
        }
      }
    }
    __syncwarp();
    copy_step(step + STAGES * place.split, stage);
  }
  place.finish(y, sum);
}
