// How warps multiply quantized rows of w by rows of x in int8 (q8.cuh), for mmvq.cu and feed_forward.cu.
//
// A warp goes on in steps of 2048 elements of ROWS rows, 64 to a lane. Blocks of w have odd lengths, so the rows come
// as aligned runs of 16 bytes to shared memory in the background, two steps ahead, and are taken apart there; for most
// dtypes lanes then lie an odd number of words apart, in banks of their own.
#pragma once
#include "blocks.cuh"
#include "elements.cuh"
#include "products_few.cuh"
#include "q8.cuh"

constexpr int STAGES = 2;

template <class T> struct Step {
  static constexpr int bytes = STEP_ELEMENTS / Blocks<T>::elements * Blocks<T>::bytes;
  static constexpr int room = (bytes + 30) / 16 * 16;  // wherever in its 16 bytes the first one is
  static constexpr int room_of_warp = STAGES * ROWS * room;
  static_assert(bytes % 16 == 0, "every step of a row begins at the same place in its 16 bytes");
};

// Begin to copy `bytes` bytes of a row; the first one comes to the same place in its 16 bytes.
template <class T> __device__ __forceinline__ void copy_row(char* stage, const char* source, int bytes) {
  const int past = reinterpret_cast<uintptr_t>(source) % 16, at = threadIdx.x % 32 * 16, left = past + bytes - at;
  const char* from = source - past + at;
#pragma unroll
  for (int i = 0; i < Step<T>::room; i += 512)
    if (i < left) copy_async(stage + at + i, from + i);
}

// x in int8: all rows of it, of so many blocks of 32.
struct Codes {
  const int8_t* codes;
  const Factor* factors;
  unsigned blocks;
};

// Where a block puts codes of its own in shared memory, and what puts a row of float32 there. It is done while w is on
// its way, so that a short x, read by few blocks, takes no kernel before this one.
__device__ __forceinline__ Codes own_codes(char* shared, unsigned blocks) {
  int8_t* codes = reinterpret_cast<int8_t*>(shared);
  return {codes, reinterpret_cast<const Factor*>(codes + padded_blocks(blocks) * 32), blocks};
}
__device__ __forceinline__ void fill_own_codes(const Codes& x, const char* row) {
  for (unsigned first = threadIdx.x * 8; first < x.blocks * 32; first += blockDim.x * 8) {
    float v[8];
    unpack(KIND_F32, load_raw(KIND_F32, row + first * 4), v);
    write_eights(v, const_cast<int8_t*>(x.codes), const_cast<Factor*>(x.factors), 0, x.blocks, first / 32);
  }
  __syncthreads();
}

// 32 elements of x: the first or second block of a lane in a step.
struct XBlock {
  uint4 low, high;
  Factor factor;
  __device__ __forceinline__ void load(const Codes& x, int64_t row, unsigned step, unsigned lane, int half) {
    const int64_t first = row * padded_blocks(x.blocks) + step * STEP_BLOCKS;
    const uint4* planes = reinterpret_cast<const uint4*>(x.codes + first * 32) + lane + 64 * half;  // as in codes_at
    low = planes[0];
    high = planes[32];
    factor = x.factors[first + 2 * lane + half];
  }
};

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

// A lane's two blocks of a row.
template <class T> struct Pair {
  const char* step;
  __device__ __forceinline__ void load(const char* source) { step = source; }
  __device__ __forceinline__ void take(int half, WBlock<T>& block) const {
    const unsigned first = 64u * (threadIdx.x % 32) + 32 * half;  // of the step's elements
    block.load(step + first / Blocks<T>::elements * Blocks<T>::bytes, first % Blocks<T>::elements);
  }
};

// The same of dtypes that are much used and whose blocks are a float16 and words: two of them are whole words, of which
// a lane reads each once. The first block's words lie across two of those.
template <class T> struct WordPair {
  static constexpr int WORDS = Blocks<T>::bytes / 2, PACKED = WORDS / 2;
  uint32_t words[WORDS];
  __device__ __forceinline__ void load(const char* source) {
    source += threadIdx.x % 32 * (4 * WORDS);
    if (reinterpret_cast<uintptr_t>(source) % 4 == 0)
      read_words<4 * WORDS>(source, words);
    else
      read_bytes<4 * WORDS>(source, words);
  }
  // A block's words, and its scale.
  __device__ __forceinline__ float unpack(int half, uint32_t (&packed)[PACKED]) const {
#pragma unroll
    for (int i = 0; i < PACKED; i++)
      packed[i] = half == 0 ? __byte_perm(words[i], words[i + 1], 0x5432) : words[PACKED + 1 + i];
    __half_raw scale;
    scale.x = half == 0 ? words[0] & 0xffff : words[PACKED] >> 16;
    return __half2float(__half(scale));
  }
};
template <> struct Pair<q4_0> : WordPair<q4_0> {
  __device__ __forceinline__ void take(int half, WBlock<q4_0>& block) const {
    uint32_t packed[4];
    const float d = unpack(half, packed);
#pragma unroll
    for (int i = 0; i < 8; i++) block.codes[i] = packed[i % 4] >> i / 4 * 4 & 0x0f0f0f0fu;
    block.first = {d, -8 * d};
  }
};
template <> struct Pair<q8_0> : WordPair<q8_0> {
  __device__ __forceinline__ void take(int half, WBlock<q8_0>& block) const {
    block.first = {unpack(half, block.codes), 0};
  }
};

// A place in a warp's work: a step of the rows number `turn` that it takes.
struct Cursor {
  int turn, step;
};

// Multiplies ROWS rows in each of `turns` turns; of all their steps, one after the other, those from `part` on, `split`
// apart.
//
// row(turn, r) is the address of a row of w, x_row(turn) the number of the first of up to COLUMNS rows of x; all
// products go to add(turn, r, c, product). A row of w has `blocks` blocks of 32; where that is more than x has, x is
// repeated. All threads call begun() once, when w is on its way. `stages` is the warp's shared memory,
// Step<T>::room_of_warp bytes.
template <class T, int COLUMNS, class Begun, class Row, class XRow, class Add>
__device__ __forceinline__ void multiply_rows(char* stages, unsigned blocks, const Codes& x, int turns, int part,
                                              int split, int columns, Begun begun, Row row, XRow x_row, Add add) {
  typedef Blocks<T> B;
  const int lane = threadIdx.x % 32, steps = (blocks + STEP_BLOCKS - 1) / STEP_BLOCKS;
  const int row_bytes = blocks * 32 / B::elements * B::bytes;
  const unsigned lane_of_x = blocks > x.blocks ? lane & (x.blocks / 2 - 1) : lane;
  if (steps == 0) return;
  auto stage_of = [&](int stage, int r) { return stages + (stage * ROWS + r) * Step<T>::room; };
  auto go_on = [&](Cursor& at) {
    for (at.step += split; at.step >= steps; at.step -= steps) at.turn++;
  };
  auto copy = [&](const Cursor& at, int stage) {
    const int from = at.step * Step<T>::bytes, bytes = min(row_bytes - from, Step<T>::bytes);
    if (at.turn < turns)
#pragma unroll
      for (int r = 0; r < ROWS; r++) copy_row<T>(stage_of(stage, r), row(at.turn, r) + from, bytes);
    commit_copies();
  };

  Cursor now = {part / steps, part % steps}, ahead = now;
#pragma unroll
  for (int stage = 0; stage < STAGES; stage++, go_on(ahead)) copy(ahead, stage);
  begun();
  for (int stage = 0; now.turn < turns; stage = (stage + 1) % STAGES, go_on(now), go_on(ahead)) {
    const unsigned block0 = now.step * STEP_BLOCKS + 2 * lane;
    const int64_t x_first = x_row(now.turn);
    XBlock early[2];  // on its way while w still is
    if (COLUMNS == 1) {
      early[0].load(x, x_first, now.step, lane_of_x, 0);
      early[1].load(x, x_first, now.step, lane_of_x, 1);
    }
    wait_for_copies<STAGES - 1>();
    __syncwarp();
    Pair<T> pair[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      pair[r].load(stage_of(stage, r) + reinterpret_cast<uintptr_t>(row(now.turn, r)) % 16);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      WBlock<T> block[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; r++) pair[r].take(half, block[r]);
      if (block0 + half < blocks) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          if (c < columns) {
            XBlock of_x = early[half];
            if (COLUMNS > 1) of_x.load(x, x_first + c, now.step, lane_of_x, half);
#pragma unroll
            for (int r = 0; r < ROWS; r++) add(now.turn, r, c, block[r].times(of_x));
          }
        }
      }
    }
    __syncwarp();
    copy(ahead, stage);
  }
}
