// Which tokens go to which expert, for gemm.cu, mmq.cu and gemm_wgmma.cu: ids [T, U] become a list of pairs by expert,
// and tiles of that list.
//
// A pair is t · U + u. The pairs of expert e follow those of the experts below it, in order, from `first` = the number
// of ids below e. Tiles of e have the places first / TILE + e … of the list of tiles: room enough for every expert
// before, wherever their last tiles are short; places that stay over get a count of 0. Ids outside 0 … E - 1 belong to
// nobody, and their rows of y become NaN.
//
// Grid: a block an expert, and one for the NaN rows. A warp has a stretch of pairs: it counts them, and when the warps
// before it have counted theirs, lists its own. No atomics: the order is the same in every run. A block reads the ids
// twice, from L2; what counts is the latency of some ten loads, one after the other.
#include "gemm_tiles.cuh"

constexpr int THREADS = 512, WARPS = THREADS / 32, AT_ONCE = 4;

struct Counts {
  int below, equal, nobodys;
};

struct Stretch {
  const Tensor& ids;
  int begin, end;

  // Calls f(pair, id) for the pairs of all lanes, whether they exist or not: id is -1 for those that do not.
  template <class F> __device__ __forceinline__ void each(F f) const {
    const int used = (int)ids.shape[3];
    for (int start = begin; start < end; start += 32 * AT_ONCE) {
      int found[AT_ONCE];
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) {
        const int pair = start + 32 * i + threadIdx.x % 32;
        found[i] = pair < end ? at<i32>(ids, 0, 0, pair / used, pair % used) : -1;
      }
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) f(start + 32 * i + (int)threadIdx.x % 32, found[i]);
    }
  }
};

__device__ __forceinline__ int warp_count(int v) {
#pragma unroll
  for (int distance = 16; distance; distance >>= 1) v += __shfl_xor_sync(ALL_LANES, v, distance);
  return v;
}

__global__ void __launch_bounds__(THREADS)
moe_sort(Tensor y, Tensor ids, MoeTile* tiles, int* sorted, int experts, int tile, int places) {
  __shared__ Counts counts[WARPS];
  const int expert = blockIdx.x, pairs = (int)(ids.shape[2] * ids.shape[3]);
  const int warp = threadIdx.x / 32, length = (pairs + WARPS - 1) / WARPS;
  const Stretch mine{ids, warp * length, min(pairs, (warp + 1) * length)};

  Counts own = {};
  mine.each([&](int pair, int id) {
    own.below += id >= 0 && id < expert;
    own.equal += id == expert;
    own.nobodys += pair < mine.end && (id < 0 || id >= experts);
  });
  own = {warp_count(own.below), warp_count(own.equal), warp_count(own.nobodys)};
  if (threadIdx.x % 32 == 0) counts[warp] = own;
  __syncthreads();

  if (expert == experts) {
    if (own.nobodys == 0) return;
    for (int pair = mine.begin; pair < mine.end; pair++) {
      const int id = at<i32>(ids, 0, 0, pair / (int)ids.shape[3], pair % (int)ids.shape[3]);
      if (id >= 0 && id < experts) continue;
      for (int64_t i = threadIdx.x % 32; i < y.shape[3]; i += 32) *(float*)(row_of(y, pair) + i * y.strides[3]) = NAN;
    }
    return;
  }

  int first = 0, before = 0, count = 0;
  for (int i = 0; i < WARPS; i++) {
    first += counts[i].below;
    before += i < warp ? counts[i].equal : 0;
    count += counts[i].equal;
  }
  int next = first + before;
  mine.each([&](int pair, int id) {
    const unsigned votes = __ballot_sync(ALL_LANES, id == expert);
    if (id == expert) sorted[next + __popc(votes & ((1u << threadIdx.x % 32) - 1))] = pair;
    next += __popc(votes);
  });

  const int begin = first / tile + expert;
  const int end = expert == experts - 1 ? places : (first + count) / tile + expert + 1;
  for (int place = begin + threadIdx.x; place < end; place += THREADS) {
    const int from = (place - begin) * tile;
    tiles[place] = {expert, first + from, max(0, min(tile, count - from)), 0};
  }
}
