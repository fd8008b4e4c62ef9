// Which tokens go to which expert, for gemm.cu: ids [T, U] become a list of pairs by expert, and tiles of that list.
//
// A pair is t · U + u. The pairs of expert e follow those of the experts below it, in order, from `first` = the number
// of ids below e. Tiles of e have the places first / TILE + e … of the list of tiles: room enough for every expert
// before, wherever their last tiles are short; places that stay over get a count of 0. Ids outside 0 … E - 1 belong to
// nobody, and their rows of y become NaN.
//
// Grid: a block an expert, and one for the NaN rows. Each counts all ids, then lists its own: no atomics, and the same
// order in every run. Reads 8 · T · U bytes of ids from L2 a block.
#include "common.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;

struct MoeTile {
  int expert, first, count, unused;
};

__device__ __forceinline__ int id_of(const Tensor& ids, int pair) {
  const int used = (int)ids.shape[3];
  return at<i32>(ids, 0, 0, pair / used, pair % used);
}

__device__ int block_count(int v, int* shared) {
#pragma unroll
  for (int distance = 16; distance; distance >>= 1) v += __shfl_xor_sync(ALL_LANES, v, distance);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  v = 0;
#pragma unroll
  for (int warp = 0; warp < WARPS; warp++) v += shared[warp];
  return v;
}

__device__ void fill_with_nan(const Tensor& y, const Tensor& ids, int pairs, int experts) {
  for (int pair = 0; pair < pairs; pair++) {
    const int id = id_of(ids, pair);
    if (id >= 0 && id < experts) continue;
    for (int64_t i = threadIdx.x; i < y.shape[3]; i += THREADS) *(float*)(row_of(y, pair) + i * y.strides[3]) = NAN;
  }
}

__global__ void __launch_bounds__(THREADS)
moe_sort(Tensor y, Tensor ids, int* sorted, MoeTile* tiles, int experts, int tile, int places) {
  const int expert = blockIdx.x, pairs = (int)(ids.shape[2] * ids.shape[3]);
  if (expert == experts) return fill_with_nan(y, ids, pairs, experts);
  __shared__ int shared[WARPS];

  int below = 0, equal = 0;
  for (int pair = threadIdx.x; pair < pairs; pair += THREADS) {
    const int id = id_of(ids, pair);
    below += id >= 0 && id < expert;
    equal += id == expert;
  }
  const int first = block_count(below, shared), count = block_count(equal, shared);

  int written = first;
  for (int start = 0; start < pairs; start += THREADS) {
    const int pair = start + threadIdx.x;
    const bool mine = pair < pairs && id_of(ids, pair) == expert;
    const unsigned votes = __ballot_sync(ALL_LANES, mine);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = __popc(votes);
    __syncthreads();
    int before = 0, all = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
      before += warp < (int)threadIdx.x / 32 ? shared[warp] : 0;
      all += shared[warp];
    }
    if (mine) sorted[written + before + __popc(votes & ((1u << threadIdx.x % 32) - 1))] = pair;
    written += all;
  }

  const int begin = first / tile + expert;
  const int end = expert == experts - 1 ? places : (first + count) / tile + expert + 1;
  for (int place = begin + threadIdx.x; place < end; place += THREADS) {
    const int from = (place - begin) * tile;
    tiles[place] = {expert, first + from, max(0, min(tile, count - from)), 0};
  }
}
