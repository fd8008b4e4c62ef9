// Which tokens go to which expert, for gemm.cu, mmq.cu and gemm_wgmma.cu: ids [T, U] become a list of pairs by expert,
// and tiles of that list.
//
// A pair is t · U + u. The pairs of expert e follow those of the experts below it, in order, and so do its tiles. Places
// of the list of tiles that stay over get a count of 0; one more, behind all, tells how many do not. Ids outside
// 0 … E - 1 belong to nobody, and their rows of y become NaN.
//
// Grid: a block an expert, and one for the NaN rows. A block counts all experts' pairs. A warp has a stretch of pairs: it
// counts those of the block's expert, and when the warps before it have counted theirs, lists its own: the order is the
// same in every run. A block reads the ids twice, from L2; what counts is the latency of some ten loads, one after the
// other.
#include "gemm_tiles.cuh"

constexpr int THREADS = 512, WARPS = THREADS / 32, AT_ONCE = 4;

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

__device__ __forceinline__ int warp_sum(int v) {
#pragma unroll
  for (int distance = 16; distance; distance >>= 1) v += __shfl_xor_sync(ALL_LANES, v, distance);
  return v;
}

__global__ void __launch_bounds__(THREADS)
moe_sort(Tensor y, Tensor ids, MoeTile* tiles, int* sorted, int experts, int tile, int places) {
  DYNAMIC_SHARED(int, counts);  // pairs of every expert
  __shared__ int before_warp[WARPS], nobodys;
  const int expert = blockIdx.x, pairs = (int)(ids.shape[2] * ids.shape[3]);
  const int warp = threadIdx.x / 32, length = (pairs + WARPS - 1) / WARPS;
  const Stretch mine{ids, warp * length, min(pairs, (warp + 1) * length)};

  for (int i = threadIdx.x; i < experts; i += THREADS) counts[i] = 0;
  if (threadIdx.x == 0) nobodys = 0;
  __syncthreads();
  int own = 0;
  mine.each([&](int pair, int id) {
    own += id == expert;
    if (pair >= mine.end) return;
    atomicAdd(id >= 0 && id < experts ? &counts[id] : &nobodys, 1);
  });
  own = warp_sum(own);
  if (threadIdx.x % 32 == 0) before_warp[warp] = own;
  __syncthreads();

  if (expert == experts) {
    if (nobodys == 0) return;
    for (int pair = mine.begin; pair < mine.end; pair++) {
      const int id = at<i32>(ids, 0, 0, pair / (int)ids.shape[3], pair % (int)ids.shape[3]);
      if (id >= 0 && id < experts) continue;
      for (int64_t i = threadIdx.x % 32; i < y.shape[3]; i += 32) *(float*)(row_of(y, pair) + i * y.strides[3]) = NAN;
    }
    return;
  }

  int first = 0, place = 0, all_tiles = 0;  // pairs and tiles below the expert's, and all tiles
  for (int i = threadIdx.x % 32; i < experts; i += 32) {
    const int of_expert = (counts[i] + tile - 1) / tile;
    first += i < expert ? counts[i] : 0;
    place += i < expert ? of_expert : 0;
    all_tiles += of_expert;
  }
  first = warp_sum(first), place = warp_sum(place), all_tiles = warp_sum(all_tiles);
  int next = first;
  for (int i = 0; i < warp; i++) next += before_warp[i];
  mine.each([&](int pair, int id) {
    const unsigned votes = __ballot_sync(ALL_LANES, id == expert);
    if (id == expert) sorted[next + __popc(votes & ((1u << threadIdx.x % 32) - 1))] = pair;
    next += __popc(votes);
  });

  for (int from = threadIdx.x * tile; from < counts[expert]; from += THREADS * tile)
    tiles[place + from / tile] = {expert, first + from, min(tile, counts[expert] - from), 0};
  if (expert == 0) {
    for (int i = all_tiles + threadIdx.x; i < places; i += THREADS) tiles[i] = {};
    if (threadIdx.x == 0) tiles[places] = {0, 0, all_tiles, 0};
  }
}
