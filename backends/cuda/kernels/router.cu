// The choice of experts: scores of logits, groups, the best experts and their weights, as models/routing.py writes them
// with ops.
//
// A warp has a token, and lane i the experts i, i + 32, … in registers, EACH of them; the best is found by reductions
// over the warp, once for each expert used. Reads the logits once. A decode step's few tokens are bound by latency:
// about a dozen small kernels in one.
#include "activations.cuh"
#include "order.cuh"

enum Gate { AS_IT_IS, SOFTMAX, SIGMOID, SQRT_SOFTPLUS };  // as graphrt/router_pattern.py numbers them

constexpr uint32_t NONE = 0xffffffffu;

// Some of the experts: bit j of a lane's number stands for expert lane + 32 · j.
template <int EACH> struct Experts {
  float scores[EACH];
  uint32_t ranks[EACH];  // what the choice goes by, 0 for an expert that is out of it

  // The expert of the greatest rank in [from, to), of equal ones the first; NONE if all are out.
  __device__ __forceinline__ uint32_t best(int from, int to) const {
    uint32_t greatest = 0, at = NONE;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int expert = threadIdx.x + 32 * j;
      if (expert >= from && expert < to && ranks[j] > greatest) {
        greatest = ranks[j];
        at = expert;
      }
    }
    const uint32_t of_all = warp_max_unsigned(greatest);
    return warp_min_unsigned(of_all && greatest == of_all ? at : NONE);
  }
  __device__ __forceinline__ void remove(uint32_t expert) {
#pragma unroll
    for (int j = 0; j < EACH; j++)
      if (expert == threadIdx.x + 32 * j) ranks[j] = 0;
  }
  // One expert's number of `values`, in all lanes.
  __device__ __forceinline__ static float of(const float (&values)[EACH], uint32_t expert) {
    float v = 0;
#pragma unroll
    for (int j = 0; j < EACH; j++)
      if (expert / 32 == j) v = values[j];
    return __shfl_sync(ALL_LANES, v, expert % 32);
  }
};

// Never 0, which stands for an expert that is out.
__device__ __forceinline__ uint32_t rank_in_choice(float ranked) { return rank_of(ranked) + 1; }

// Without the call that an exact root may make, around which registers would have to be saved.
__device__ __forceinline__ float root_of(float x) { return x > 0 ? x * rsqrtf(x) : x; }

struct Rule {
  int gate, experts, used, groups, groups_used, best_of_group;
};

// Puts experts outside the best groups behind all others, as those of score -inf.
template <int EACH>
__device__ __forceinline__ void keep_best_groups(Experts<EACH>& all, const float (&ranked)[EACH], const Rule& rule) {
  const int size = rule.experts / rule.groups;
  uint32_t group_rank = 0;  // lane i: of group i
  for (int group = 0; group < rule.groups; group++) {
    Experts<EACH> left = all;
    float score = 0;
    for (int i = 0; i < rule.best_of_group; i++) {
      const uint32_t leader = left.best(group * size, (group + 1) * size);
      const float value = Experts<EACH>::of(ranked, leader);
      score = i ? score + value : value;
      left.remove(leader);
    }
    if (threadIdx.x == group) group_rank = rank_in_choice(score);
  }
  uint32_t kept = 0;
  for (int i = 0; i < rule.groups_used; i++) {
    const uint32_t greatest = warp_max_unsigned(group_rank);
    const uint32_t group = warp_min_unsigned(group_rank == greatest ? threadIdx.x : NONE);
    kept |= 1u << group;
    if (threadIdx.x == group) group_rank = 0;
  }
  for (int group = 0; group < rule.groups; group++) {
    if (kept >> group & 1) continue;
#pragma unroll
    for (int j = 0; j < EACH; j++)
      if (threadIdx.x + 32 * j - group * size < (uint32_t)size) all.ranks[j] = rank_in_choice(-INFINITY);
  }
}

// ids, weights: [T, U] i32 and f32, dense, U <= 32; logits: [T, E] f32; bias: [E] f32 on the scores for the choice, or
// null. The weights are the chosen experts' scores; then, where asked for, their softmax; divided by their sum, which
// is limited to low … high; times a factor.
template <int EACH>
__global__ void __launch_bounds__(128, 2) route(int* ids, float* weights, Tensor logits, const char* bias,
                                                int bias_step, int gate, int used, int groups, int groups_used,
                                                int best_of_group, int softmax_of_chosen, int divide_by_sum, float low,
                                                float high, float factor) {
  const int64_t token = blockIdx.x * (int64_t)blockDim.y + threadIdx.y;
  const bool exists = token < logits.shape[2];  // a warp without a token takes the last one, and writes nothing
  const int lane = threadIdx.x;
  const Rule rule = {gate, (int)logits.shape[3], used, groups, groups_used, best_of_group};
  const char* row = logits.data + (exists ? token : logits.shape[2] - 1) * logits.strides[2];
  Experts<EACH> all;
  float highest = -INFINITY, total = 0;
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    const int expert = lane + 32 * j;
    const float* logit = reinterpret_cast<const float*>(row + expert * logits.strides[3]);
    all.scores[j] = expert < rule.experts ? *logit : -INFINITY;
    highest = fmaxf(highest, all.scores[j]);
  }
  if (gate == SOFTMAX) {
    highest = warp_max(highest);
    if (highest == -INFINITY) highest = 0;
#pragma unroll
    for (int j = 0; j < EACH; j++) total += all.scores[j] = expf(all.scores[j] - highest);
    total = warp_sum(total);
    if (total == 0) total = 1;
  }
  float ranked[EACH];
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    const int expert = lane + 32 * j;
    const float z = all.scores[j];
    if (gate == SOFTMAX) all.scores[j] = __fdividef(z, total);
    if (gate == SIGMOID) all.scores[j] = sigmoid_of(z);
    if (gate == SQRT_SOFTPLUS) all.scores[j] = root_of(softplus_of(z));
    ranked[j] = all.scores[j];
    if (bias && expert < rule.experts) ranked[j] += *reinterpret_cast<const float*>(bias + (int64_t)expert * bias_step);
    all.ranks[j] = expert < rule.experts ? rank_in_choice(ranked[j]) : 0;
  }
  if (groups > 1) keep_best_groups<EACH>(all, ranked, rule);

  uint32_t chosen = 0;  // lane i: the expert of place i
  float weight = 0;
  for (int place = 0; place < used; place++) {
    const uint32_t expert = all.best(0, rule.experts);
    const float score = Experts<EACH>::of(all.scores, expert);
    all.remove(expert);
    if (lane == place) {
      chosen = expert;
      weight = score;
    }
  }
  const bool counts = lane < used;
  if (softmax_of_chosen) {
    float most = warp_max(counts ? weight : -INFINITY);
    if (most == -INFINITY) most = 0;
    weight = counts ? expf(weight - most) : 0;
    const float sum = warp_sum(weight);
    weight = __fdividef(weight, sum == 0 ? 1 : sum);
  }
  if (divide_by_sum) {
    const float sum = warp_sum(counts ? weight : 0);
    weight = __fdividef(weight, sum < low ? low : sum > high ? high : sum);
  }
  if (!counts || !exists) return;
  ids[token * used + lane] = (int)chosen;
  weights[token * used + lane] = weight * factor;
}
