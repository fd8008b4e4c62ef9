// Order within rows: argsort, and top_k, which is the first k of it.
//
// Elements become keys of 64 bits, the greater the earlier: the float's bits as a number that grows with it, NaN below
// all, then the index turned round, so that no two keys are equal and of equal elements the lower index comes first.
//   rank_rows   rows of up to 128 elements, a warp each: an element's place is the number of keys greater than its own.
//   sort_runs   a block sorts a run of a row, of up to 4096 elements, in shared memory (bitonic), and writes its order,
//               or, where a row has more runs, its keys.
//   merge_runs  two sorted runs into one: an element's place is its own plus the number of greater keys in the other
//               run, by bisection. Only the first k of a run matter.
// Bound by latency for a router's rows; for long rows by the passes over keys: 1 + log2(runs).
#include "elements.cuh"
#include "order.cuh"

__device__ __forceinline__ uint64_t key_of(float x, uint32_t index, int ascending) {
  const uint32_t rank = ascending ? ~rank_of(x) : rank_of(x);
  return (uint64_t)rank << 32 | (0xffffffffu - index);
}

__device__ __forceinline__ int index_of(uint64_t key) { return (int)(0xffffffffu - (uint32_t)key); }

// y: [..., k] i32, dense. Block: 32 lanes x rows; shared: 128 keys for each row.
__global__ void __launch_bounds__(128) rank_rows(Tensor y, Tensor x, int kind, int ascending) {
  __shared__ uint64_t all_keys[4][128];
  const int64_t row = blockIdx.x * (int64_t)blockDim.y + threadIdx.y;
  const int k = (int)y.shape[3], n = (int)x.shape[3];
  if (row >= y.shape[0] * y.shape[1] * y.shape[2]) return;
  const char* source = row_address(x, row);
  int* target = reinterpret_cast<int*>(y.data) + row * k;
  uint64_t* keys = all_keys[threadIdx.y];
  for (int i = threadIdx.x; i < n; i += 32)
    keys[i] = key_of(load_as_float(kind, source + i * x.strides[3]), i, ascending);
  __syncwarp();
  for (int i = threadIdx.x; i < n; i += 32) {
    const uint64_t mine = keys[i];
    int place = 0;
    for (int j = 0; j < n; j++) place += keys[j] > mine;
    if (place < k) target[place] = i;
  }
}

// Sort `count` keys, a power of two, greatest first. All threads of the block take part.
__device__ __forceinline__ void sort_block(uint64_t* keys, int count) {
  for (int length = 2; length <= count; length *= 2) {
    for (int distance = length / 2; distance; distance /= 2) {
      __syncthreads();
      for (int pair = threadIdx.x; pair < count / 2; pair += blockDim.x) {
        const int i = 2 * distance * (pair / distance) + pair % distance, j = i + distance;
        const uint64_t a = keys[i], b = keys[j];
        if ((a < b) == ((i & length) == 0)) {
          keys[i] = b;
          keys[j] = a;
        }
      }
    }
  }
  __syncthreads();
}

// Grid: (rows, runs of a row). room: power of two that holds a run's `length` elements; shared: room keys.
// keys: [rows][n], or null where a row is one run, whose order goes to y at once.
__global__ void __launch_bounds__(1024) sort_runs(Tensor y, Tensor x, uint64_t* keys, int length, int room, int kind,
                                                  int ascending) {
  DYNAMIC_SHARED(uint64_t, run);
  const int64_t row = blockIdx.x;
  const int n = (int)x.shape[3], k = (int)y.shape[3], start = blockIdx.y * length, count = min(length, n - start);
  const char* source = row_address(x, row);
  for (int i = threadIdx.x; i < room; i += blockDim.x)
    run[i] = i < count ? key_of(load_as_float(kind, source + (start + i) * x.strides[3]), start + i, ascending) : 0;
  sort_block(run, room);
  for (int i = threadIdx.x; i < min(count, k); i += blockDim.x) {
    if (keys) keys[row * n + start + i] = run[i];
    else reinterpret_cast<int*>(y.data)[row * k + i] = index_of(run[i]);
  }
}

// How many of `count` keys, greatest first, are greater than one that is not among them.
__device__ __forceinline__ int greater_than(const uint64_t* keys, int count, uint64_t key) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (keys[middle] > key) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Grid: (elements of a row / 256, rows up to 65535 at a time). Runs of `length` become runs of twice that, from `from`
// to `to`, both [rows][n]; at the last pass, where `to` is null, the order goes to y.
__global__ void __launch_bounds__(256) merge_runs(Tensor y, const uint64_t* from, uint64_t* to, int64_t rows, int n,
                                                  int length) {
  const int i = blockIdx.x * 256 + threadIdx.x, k = (int)y.shape[3];
  const int run = i / length, place_in_run = i % length, other = (run ^ 1) * length;
  if (i >= n || place_in_run >= k) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const uint64_t* keys = from + row * n;
    const uint64_t key = keys[i];
    const int others = other < n ? min(min(length, n - other), k) : 0;
    const int place = place_in_run + greater_than(keys + other, others, key);
    if (place >= k) continue;
    if (to) to[row * n + run / 2 * 2 * length + place] = key;
    else reinterpret_cast<int*>(y.data)[row * k + place] = index_of(key);
  }
}
