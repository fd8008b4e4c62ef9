// The norm of norm.cu, of a sum, and its products with float32 weights that are few, as a router's are:
// x = a + b;  y = x / sqrt(mean(x²) + eps) · weight;  z[m] = sum over k of y[k] · w[m, k]. All of it is float32, x and
// y are kept; rows of up to 8192 begin at multiples of 16 bytes.
//
// Grid: rows of x, pairs of rows of w. Block: 8 warps, four for a row of w. Every block makes y for itself, into shared
// memory, while its rows of w are on their way, and the first one for a row of x writes it down; so a and b are read,
// from L2, once for every two rows of w, and must not lie where x or y go. Bound by latency: a launch less than norm
// and product have.
#include "row_reductions.cuh"

constexpr int THREADS = 256, LONGEST = 8192, EIGHTS = LONGEST / (8 * THREADS);
constexpr int SHARING = 4, AHEAD = 8;  // warps of a row of w; pieces of 16 bytes that each lane asks for ahead

__device__ __forceinline__ float dot(const float4& a, const float4& b) {
  return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

// weight may be null; w_row: bytes from one row of w to the next.
__global__ void __launch_bounds__(THREADS)
    norm_products(char* y, char* sum, Tensor a, Tensor b, const char* weight, float eps, const char* w, int64_t w_row,
                  float* z, int outputs) {
  __shared__ __align__(16) float normed[LONGEST];
  __shared__ float shared[32];
  const int n = (int)a.shape[3], lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int output = blockIdx.y * (THREADS / 32 / SHARING) + warp / SHARING;
  const float4* row_of_w = reinterpret_cast<const float4*>(w + min(output, outputs - 1) * w_row);
  const int first_four = warp % SHARING * 32 + lane, fours = n / 4;
  const int64_t row = blockIdx.x;

  float4 ahead[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    const int four = first_four + i * 32 * SHARING;
    ahead[i] = four < fours ? row_of_w[four] : make_float4(0, 0, 0, 0);
  }
  float v[EIGHTS][8] = {}, squares = 0;
#pragma unroll
  for (int i = 0; i < EIGHTS; i++) {
    const int first = (i * THREADS + threadIdx.x) * 8;
    if (first >= n) break;
    float added[8];
    unpack(KIND_F32, load_raw(KIND_F32, row_address(a, row) + first * 4), v[i]);
    unpack(KIND_F32, load_raw(KIND_F32, row_address(b, row) + first * 4), added);
#pragma unroll
    for (int e = 0; e < 8; e++) {
      v[i][e] += added[e];
      squares += v[i][e] * v[i][e];
    }
  }
  const float factor = rsqrtf(over_row<Sum>(squares, shared) / n + eps);
#pragma unroll
  for (int i = 0; i < EIGHTS; i++) {
    const int first = (i * THREADS + threadIdx.x) * 8;
    if (first >= n) break;
    const bool writes = blockIdx.y == 0;
    if (writes) store_eight(KIND_F32, sum + (row * n + first) * 4, v[i]);
    float weights[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    if (weight) unpack(KIND_F32, load_raw(KIND_F32, weight + first * 4), weights);
#pragma unroll
    for (int e = 0; e < 8; e++) v[i][e] *= factor * weights[e];
    if (writes) store_eight(KIND_F32, y + (row * n + first) * 4, v[i]);
    store_eight(KIND_F32, reinterpret_cast<char*>(normed + first), v[i]);
  }
  __syncthreads();

  const float4* fours_of_y = reinterpret_cast<const float4*>(normed);
  float total = 0;
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    const int four = first_four + i * 32 * SHARING;
    if (four < fours) total += dot(ahead[i], fours_of_y[four]);
  }
  for (int four = first_four + AHEAD * 32 * SHARING; four < fours; four += 32 * SHARING)
    total += dot(row_of_w[four], fours_of_y[four]);
  total = warp_sum(total);
  if (lane == 0) shared[warp] = total;  // all threads are past the sums that were there
  __syncthreads();
  if (threadIdx.x % (32 * SHARING) == 0 && output < outputs) {
    for (int other = 1; other < SHARING; other++) total += shared[warp + other];
    z[row * outputs + output] = total;
  }
}
