// x made ready for products: as float32, or as int8 in blocks of 32 (q8.cuh).
//
// Reads x once and writes 4 bytes, or 1.25, for each element; x is small beside the weights that it will meet. A thread
// takes 8 elements at a time, one grid apart.
#include "blocks.cuh"
#include "q8.cuh"

__device__ __forceinline__ int64_t rows_of(const Tensor& x) { return x.shape[0] * x.shape[1] * x.shape[2]; }

// y [rows][pitch] = x [..., K] of any dtype and strides, with zeros from K to `pitch`, a multiple of 8.
__global__ void __launch_bounds__(256) expand(Tensor x, float* y, int64_t width, int64_t pitch, int dtype) {
  const int64_t count = rows_of(x) * pitch / 8;
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
    float v[8];
    load8_any(dtype, row_of(x, i * 8 / pitch), x.strides[3], i * 8 % pitch, width, v);
    float4* target = reinterpret_cast<float4*>(y + i * 8);
    target[0] = {v[0], v[1], v[2], v[3]};
    target[1] = {v[4], v[5], v[6], v[7]};
  }
}

// The larger of the two, and NaN if one is.
__device__ __forceinline__ float larger(float a, float b) { return b > a || b != b ? b : a; }

// Codes and factors of x [..., width] of any dtype and strides, its width a multiple of 32.
__global__ void __launch_bounds__(256) quantize(Tensor x, int8_t* codes, Factor* factors, int64_t width, int dtype) {
  const int64_t blocks = width / 32, count = rows_of(x) * blocks;
  const int part = threadIdx.x % 4;
  for (int64_t base = blockIdx.x * (int64_t)64; base < count; base += (int64_t)gridDim.x * 64) {
    const int64_t i = base + threadIdx.x / 4, row = i / blocks, block = i % blocks;
    float v[8] = {}, largest = 0;
    if (i < count) load8_any(dtype, row_of(x, row), x.strides[3], block * 32 + part * 8, width, v);
#pragma unroll
    for (int j = 0; j < 8; j++) largest = larger(largest, fabsf(v[j]));
    largest = larger(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
    largest = larger(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
    // Where a code cannot tell an infinity or NaN, d does: nothing times d is finite then.
    const float inverse = largest > 1e-30f && largest < INFINITY ? 127 / largest : 0;
    uint32_t packed[2] = {};
    int sum = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int code = inverse > 0 ? __float2int_rn(v[j] * inverse) : 0;
      packed[j / 4] |= (uint32_t)(code & 255) << j % 4 * 8;
      sum += code;
    }
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    const int second = __shfl_down_sync(ALL_LANES, sum, 2);
    if (i < count) {
      const uint2 both = {packed[0], packed[1]};
      *reinterpret_cast<uint2*>(codes + codes_at(row, blocks, block, part / 2) + part % 2 * 8) = both;
      if (part == 0) factors[factor_at(row, blocks, block)] = {largest / 127, (sum & 0xffff) | (uint32_t)second << 16};
    }
  }
}
