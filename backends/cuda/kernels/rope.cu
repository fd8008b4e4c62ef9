// Rotary position embedding: pairs of elements turn by an angle that grows with the position; and with it what else
// a layer does to rows on their way into the cache, so that a decode step needs one kernel for all of it.
//
// A launch has up to three jobs, blockIdx.z. Each takes rows [tokens, heads, row] of x and
//   TURNS    turns pairs of them, or
//   NORMS    scales a token's one row to unit root mean square, or takes them as they are; and
//   STORES   writes a token's rows into row ids[token] of a cache y, `before` bytes into it; or else to y, whose tokens
//            lie one behind the other.
// A thread has one pair of a row (or one element that does not turn) for several heads of one token: the angle is
// worked out once, in float64, so that it is exact at any position, and its whole quarter turns are taken off before
// the rest becomes float32. Block: 256 threads, pairs and elements x heads; grid: (tokens, parts of a row x groups of
// heads, jobs). Where the cache is quantized, a warp makes blocks of 32 elements instead, each lane one element. Reads
// and writes every element once; bound by bandwidth, where a thread has heads enough to pay for the angle, for few
// tokens by latency.
#include "items.cuh"
#include "rotation.cuh"
#include "write_blocks.cuh"

constexpr int MOST_HEADS = 8;  // of a thread; as in rope.py
constexpr int HELD = 4;        // elements of a row that a norm's thread holds, so that rows have 1024 at most

enum What { TURNS = 1, NORMS = 2, STORES = 4 };  // as in rope.py

struct Job {
  Tensor y, x;
  int what, y_kind, kind, first;
  int64_t before;
};

struct Turning {
  Rotation by;
  int neighbours;
  float magnitude;
  const char* factors;
  int factor_step;
};

struct Norming {
  const char* weight;
  int kind, step;
  float eps;
};

__device__ __forceinline__ bool is_float(int kind) { return kind == KIND_F32 || kind == KIND_F16 || kind == KIND_BF16; }

// Where a job's results for a token go; null where the cache has no such row.
__device__ __forceinline__ char* target_of(const Job& job, const Tensor& ids, int id_bytes, int64_t token,
                                           int64_t row_bytes) {
  if (!(job.what & STORES)) return job.y.data + token * row_bytes;
  const int64_t id = load_integer(id_bytes, ids.data + token * ids.strides[3]);
  return id >= 0 && id < job.y.shape[2] ? job.y.data + job.before + id * job.y.strides[2] : nullptr;
}

// By the whole block, one row, of which each thread holds up to HELD elements: to `target`, or, for a cache that is
// quantized, to `normed`.
__device__ __forceinline__ void norm_row(const Job& job, const Norming& norm, const char* source, char* target, int row,
                                         float (&normed)[256 * HELD]) {
  __shared__ float shared[8];
  float v[HELD], weights[HELD], squares = 0;
#pragma unroll
  for (int j = 0; j < HELD; j++) {
    const int i = threadIdx.x + 256 * j;
    v[j] = i < row ? load_as_float(job.kind, source + i * job.x.strides[3]) : 0.0f;
    weights[j] = i < row && norm.weight ? load_as_float(norm.kind, norm.weight + (int64_t)i * norm.step) : 1.0f;
    squares += v[j] * v[j];
  }
  const float factor = rsqrtf(__fdividef(block_sum<256>(squares, shared), row) + norm.eps);
#pragma unroll
  for (int j = 0; j < HELD; j++) {
    const int i = threadIdx.x + 256 * j;
    const float y = rounded_to(job.kind, v[j] * factor * weights[j]);
    if (!is_float(job.y_kind)) normed[i] = y;
    else if (target && i < row) store_float(job.y_kind, target + (int64_t)i * float_bytes(job.y_kind), y);
  }
  __syncthreads();
}

// Cosine and sine, times the magnitude, of a pair at a position.
__device__ __forceinline__ void turn_of(const Turning& turning, int pair, int position, float& cosine, float& sine) {
  double speed = speed_of(turning.by, pair);
  if (turning.factors) speed /= *reinterpret_cast<const float*>(turning.factors + (int64_t)pair * turning.factor_step);
  cosine_and_sine(position * speed, cosine, sine);
  cosine *= turning.magnitude;
  sine *= turning.magnitude;
}

// Element i of a row, turned.
__device__ __forceinline__ float turned(const Job& job, const Turning& turning, const char* source, int dims, int i,
                                        int position) {
  const float own = load_as_float(job.kind, source + i * job.x.strides[3]);
  const int at = i - job.first, pairs = dims / 2;
  if (at < 0 || at >= dims) return own;
  const bool is_first = turning.neighbours ? at % 2 == 0 : at < pairs;
  const int pair = turning.neighbours ? at / 2 : at % pairs, distance = turning.neighbours ? 1 : pairs;
  const float other = load_as_float(job.kind, source + (is_first ? i + distance : i - distance) * job.x.strides[3]);
  float cosine, sine;
  turn_of(turning, pair, position, cosine, sine);
  return rounded_to(job.kind, is_first ? own * cosine - other * sine : other * sine + own * cosine);
}

// One item of a row for the heads of this thread: a pair, or an element that does not turn.
__device__ __forceinline__ void turn_item(const Job& job, const Turning& turning, const char* source, char* target,
                                          int64_t pitch, int dims, int item, int position, int head, int heads,
                                          int pace, int count) {
  const int pairs = dims / 2, bytes = float_bytes(job.y_kind);
  float cosine = 1, sine = 0;
  int a = item - pairs, b = -1;  // the elements of the pair; b < 0: one that does not turn
  if (a >= job.first) a += dims;
  if (item < pairs) {
    a = job.first + (turning.neighbours ? 2 * item : item);
    b = turning.neighbours ? a + 1 : a + pairs;
    turn_of(turning, item, position, cosine, sine);
  }
  float u[MOST_HEADS], v[MOST_HEADS];  // all are loaded before the first is written, which may be over them
#pragma unroll
  for (int i = 0; i < MOST_HEADS; i++) {
    if (i >= count || head + i * pace >= heads) continue;
    const char* from = source + (head + i * pace) * job.x.strides[2];
    u[i] = load_as_float(job.kind, from + a * job.x.strides[3]);
    if (b >= 0) v[i] = load_as_float(job.kind, from + b * job.x.strides[3]);
  }
#pragma unroll
  for (int i = 0; i < MOST_HEADS; i++) {
    if (i >= count || head + i * pace >= heads) continue;
    char* to = target + (head + i * pace) * pitch;
    if (b < 0) {
      store_float(job.y_kind, to + a * bytes, u[i]);
      continue;
    }
    store_float(job.y_kind, to + a * bytes, rounded_to(job.kind, u[i] * cosine - v[i] * sine));
    store_float(job.y_kind, to + b * bytes, rounded_to(job.kind, u[i] * sine + v[i] * cosine));
  }
}

__device__ __forceinline__ void do_job(const Job& job, const Turning& turning, const Norming& norm,
                                       const Tensor& positions, const Tensor& ids, int id_bytes,
                                       int heads_of_thread) {
  const int64_t token = blockIdx.x;
  const bool turns = job.what & TURNS;
  const int row = (int)job.x.shape[3], heads = turns ? (int)job.x.shape[2] : 1, dims = turns ? turning.by.dims : 0;
  const char* source = row_address(job.x, token * heads);
  char* target = target_of(job, ids, id_bytes, token, (int64_t)heads * row * float_bytes(job.y_kind));
  const bool norms = job.what & NORMS;
  __shared__ float normed[256 * HELD];
  if (norms && blockIdx.y) return;
  if (norms) norm_row(job, norm, source, target, row, normed);
  if (!target || (norms && is_float(job.y_kind))) return;
  int64_t at;
  divided(token, positions.shape[3], at);
  const int position = turns ? *reinterpret_cast<const int*>(positions.data + at * positions.strides[3]) : 0;
  if (!is_float(job.y_kind)) {
    const int pace = norms ? 8 : 8 * gridDim.y;  // a warp's blocks
    for (int block = blockIdx.y * 8 + threadIdx.x / 32; block * 32 < heads * row; block += pace) {
      const int i = block * 32 + threadIdx.x % 32;
      const char* from = source + i / row * job.x.strides[2];
      const float v = norms ? normed[i] : turned(job, turning, from, dims, i % row, position);
      write_block(job.y_kind, target + block * job.y.strides[3], v);
    }
    return;
  }
  const int items = row - dims / 2, across = min(256, (items + 31) / 32 * 32), down = 256 / across;
  const int parts = (items + across - 1) / across, group = blockIdx.y / parts;
  const int item = blockIdx.y % parts * across + threadIdx.x % across, place = threadIdx.x / across;
  const int head = group * down * heads_of_thread + place;
  if (item >= items || place >= down || head >= heads) return;
  const int64_t pitch = job.what & STORES ? (int64_t)row * float_bytes(job.y_kind) : job.y.strides[2];
  turn_item(job, turning, source, target, pitch, dims, item, position, head, heads, down, heads_of_thread);
}

// positions: [T] i32, for all batches of tokens; factors: [dims / 2] f32, or null; ids: [T]; weight: of a norm, or
// null.
__global__ void __launch_bounds__(256) rope(
    Tensor positions, const char* factors, int factor_step, int dims, int neighbours, int64_t log2_base,
    int64_t freq_scale, int64_t ext_factor, int ramp_low, float ramp_width, float magnitude, int heads_of_thread,
    Tensor ids, int id_bytes, const char* weight, int weight_kind, int weight_step, float eps,
    Tensor y0, Tensor x0, int what0, int y_kind0, int kind0, int first0, int64_t before0,
    Tensor y1, Tensor x1, int what1, int y_kind1, int kind1, int first1, int64_t before1,
    Tensor y2, Tensor x2, int what2, int y_kind2, int kind2, int first2, int64_t before2) {
  const Rotation by = {dims, double_of(log2_base), double_of(freq_scale), double_of(ext_factor), ramp_low, ramp_width};
  const Turning turning = {by, neighbours, magnitude, factors, factor_step};
  const Norming norm = {weight, weight_kind, weight_step, eps};
  const Job job = blockIdx.z == 0   ? Job{y0, x0, what0, y_kind0, kind0, first0, before0}
                  : blockIdx.z == 1 ? Job{y1, x1, what1, y_kind1, kind1, first1, before1}
                                    : Job{y2, x2, what2, y_kind2, kind2, first2, before2};
  do_job(job, turning, norm, positions, ids, id_bytes, heads_of_thread);
}
