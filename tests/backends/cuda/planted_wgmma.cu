// y = a · b of 64 x 64 and 64 x 128 numbers, with the mistakes that people make, for test_shim_wgmma.py: the first
// warpgroup multiplies what the second brings.
#include "hopper.cuh"

enum Mistake {
  NONE, UNSWIZZLED, UNFENCED_OPERANDS, OVERWRITTEN_OPERANDS, MISPLACED, OTHER_STRIDE, OTHER_SWIZZLE, OTHER_OPERANDS,
  UNFENCED_SUMS, EARLY_SUMS, UNCOMMITTED, PART_OF_A_WARPGROUP, MISSING_ARRIVAL, OTHER_PHASE
};

__device__ __forceinline__ int element(int row, int k) { return (row * 7 + k * 3) % 11 - 5; }

template <Mistake MISTAKE> __global__ void __launch_bounds__(256) multiply(float* y, const float*) {
  DYNAMIC_SHARED(char, shared);
  char *const a = shared + (MISTAKE == MISPLACED ? 128 : 0), *const b = shared + 9 * 1024;
  uint64_t* full = reinterpret_cast<uint64_t*>(shared + 25 * 1024);
  if (threadIdx.x == 0) barrier_init(full, 128);
  __syncthreads();

  if (threadIdx.x >= 128) {
    const int piece = threadIdx.x % 8;
    for (int i = threadIdx.x / 8 - 16; i < 64 + 128; i += 16) {
      const int row = i < 64 ? i : i - 64;
      __align__(16) bf16 eight[8];
      for (int k = 0; k < 8; k++) eight[k] = __float2bfloat16_rn((float)element(i, 8 * piece + k));
      const int place = MISTAKE == UNSWIZZLED ? piece : piece ^ row % 8;
      store_operand((i < 64 ? a : b) + row * 128 + place * 16, *reinterpret_cast<uint4*>(eight));
    }
    if (MISTAKE != UNFENCED_OPERANDS) fence_operands();
    if (MISTAKE != MISSING_ARRIVAL || threadIdx.x != 200) barrier_arrive(full);
    return;
  }
  barrier_wait(full, MISTAKE == OTHER_PHASE);
  if (MISTAKE == PART_OF_A_WARPGROUP && threadIdx.x >= 96) return;

  uint64_t of_a = descriptor_of(a), of_b = descriptor_of(b);
  if (MISTAKE == OTHER_STRIDE) of_a += (uint64_t)(512 >> 4) << 32;
  if (MISTAKE == OTHER_SWIZZLE) of_a += 1ull << 62;
  if (MISTAKE == OTHER_OPERANDS && threadIdx.x == 100) of_b += NEXT_16;
  float sums[64] = {};
  if (MISTAKE != UNFENCED_SUMS) wgmma_fence();
  for (int k = 0; k < 4; k++) wgmma<bf16>(sums, of_a + k * NEXT_16, of_b + k * NEXT_16);
  if (MISTAKE != UNCOMMITTED) wgmma_commit();
  if (MISTAKE == OVERWRITTEN_OPERANDS && threadIdx.x == 0) {
    store_operand(b, {0, 0, 0, 0});
    fence_operands();
  }
  wgmma_wait<MISTAKE == EARLY_SUMS>(sums);
  for (int i = 0; i < 64; i++) {
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i / 2 % 2 * 8;
    y[row * 128 + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2] = sums[i];
  }
}

enum TransposedMistake { RIGHT, OTHER_LEADING, PLAIN_B, PART_OF_A_PATTERN, UNFENCED_POWERS };

// y = a · b of 64 x 16 and 16 x 256 numbers, b with its columns side by side; a warpgroup brings a by stmatrix.
template <TransposedMistake MISTAKE>
__global__ void __launch_bounds__(128) multiply_transposed(float* y, const float*) {
  DYNAMIC_SHARED(char, shared);
  char *const a = shared, *const b = shared + 8 * 1024;
  const int lane = threadIdx.x % 32, row0 = threadIdx.x / 32 * 16;
  for (int i = threadIdx.x; i < 16 * 32; i += 128) {
    const int k = i / 32, column = i % 32 * 8;
    __align__(16) bf16 eight[8];
    for (int n = 0; n < 8; n++) eight[n] = __float2bfloat16_rn((float)element(64 + column + n, k));
    const int place = column % 64 / 8 ^ k % 8;
    store_operand(b + column / 64 * 2048 + k * 128 + place * 16, *reinterpret_cast<uint4*>(eight));
  }
  fence_operands();
  uint32_t words[4];
  for (int matrix = 0; matrix < 4; matrix++) {
    const int row = row0 + matrix % 2 * 8 + lane / 4, k = matrix / 2 * 8 + lane % 4 * 2;
    const __nv_bfloat162 both = __floats2bfloat162_rn((float)element(row, k), (float)element(row, k + 1));
    words[matrix] = reinterpret_cast<const uint32_t&>(both);
  }
  const int row = row0 + lane / 8 % 2 * 8 + lane % 8;
  store_matrices(a + row * 128 + (lane / 16 ^ row % 8) * 16, words);
  if (MISTAKE != UNFENCED_POWERS) fence_operands();
  __syncthreads();

  float sums[128] = {};
  wgmma_fence(sums);
  const char* const first_of_b = b + (MISTAKE == PART_OF_A_PATTERN ? 32 : 0);
  const uint64_t of_b = transposed_descriptor_of(first_of_b, MISTAKE == OTHER_LEADING ? 1024 : 2048);
  if (MISTAKE == PLAIN_B)
    wgmma<bf16>(sums, descriptor_of(a), of_b);
  else
    wgmma_transposed<bf16>(sums, descriptor_of(a), of_b);
  wgmma_commit();
  wgmma_wait<0>(sums);
  for (int i = 0; i < 128; i++)
    y[(row0 + lane / 4 + i / 2 % 2 * 8) * 256 + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

enum BulkMistake {
  CORRECT, UNAWAITED, TOO_FEW_EXPECTED, TOO_MANY_EXPECTED, UNFENCED_BARRIER, UNALIGNED, PAST_THE_END, BEGUN_TOO_EARLY,
  ABANDONED
};

// y = a · b of 64 x 64 and 64 x 128 numbers; b lies swizzled in `source`, and one thread has it copied, in two halves.
template <BulkMistake MISTAKE> __global__ void __launch_bounds__(128) multiply_bulk(float* y, const char* source) {
  DYNAMIC_SHARED(char, shared);
  char *const a = shared, *const b = shared + 8 * 1024;
  uint64_t* full = reinterpret_cast<uint64_t*>(shared + 24 * 1024);
  constexpr int HALF = 8 * 1024;
  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    if (MISTAKE != UNFENCED_BARRIER) fence_operands();
    const int wrong = MISTAKE == TOO_FEW_EXPECTED ? -HALF : MISTAKE == TOO_MANY_EXPECTED ? 16 : 0;
    barrier_arrive_expecting(full, 2 * HALF + wrong);
    copy_bulk(b, source, HALF, full);
    char* const second = MISTAKE == PAST_THE_END ? shared + 20 * 1024 : b + HALF;
    copy_bulk(second, source + HALF + (MISTAKE == UNALIGNED ? 8 : 0), HALF, full);
  }
  for (int i = threadIdx.x; i < 64 * 8; i += 128) {
    const int row = i / 8, piece = i % 8;
    __align__(16) bf16 eight[8];
    for (int k = 0; k < 8; k++) eight[k] = __float2bfloat16_rn((float)element(row, 8 * piece + k));
    store_operand(a + row * 128 + (piece ^ row % 8) * 16, *reinterpret_cast<uint4*>(eight));
  }
  fence_operands();
  __syncthreads();
  if (MISTAKE == ABANDONED) return;
  if (MISTAKE != UNAWAITED) barrier_wait(full, 0);

  float sums[64] = {};
  wgmma_fence();
  for (int k = 0; k < 4; k++) wgmma<bf16>(sums, descriptor_of(a) + k * NEXT_16, descriptor_of(b) + k * NEXT_16);
  wgmma_commit();
  if (MISTAKE == BEGUN_TOO_EARLY && threadIdx.x == 0) {
    barrier_arrive_expecting(full, HALF);
    copy_bulk(b, source, HALF, full);
  }
  wgmma_wait<0>(sums);
  for (int i = 0; i < 64; i++) {
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i / 2 % 2 * 8;
    y[row * 128 + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2] = sums[i];
  }
  if (MISTAKE == UNAWAITED) barrier_wait(full, 0);
}
