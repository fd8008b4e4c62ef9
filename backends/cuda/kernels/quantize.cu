// x made ready for products: as float32, or as int8 in blocks of 32 (q8.cuh).
//
// Reads x once and writes 4 bytes, or 1.25, for each element; x is small beside the weights that it will meet.
#include "blocks.cuh"
#include "q8.cuh"

// y [rows][K] dense = x [..., K] of any dtype and strides. A thread takes 8 elements at a time, one grid apart.
template <class T> __device__ void expand_eighths(const Tensor& x, float* y) {
  constexpr int ELEMENTS = Blocks<T>::elements;
  const int64_t width = x.shape[3] * ELEMENTS, eighths = (width + 7) / 8;
  const int64_t count = x.shape[0] * x.shape[1] * x.shape[2] * eighths;
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
    const int64_t row = i / eighths, first = i % eighths * 8;
    const char* source = row_of(x, row) + first / ELEMENTS * x.strides[3];
    float v[8] = {};
    if constexpr (ELEMENTS > 1) {
      Blocks<T>::dequantize8(source, first % ELEMENTS, v);
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++)
        if (first + j < width) v[j] = to_float(*reinterpret_cast<const T*>(source + j * x.strides[3]));
    }
#pragma unroll
    for (int j = 0; j < 8; j++)
      if (first + j < width) y[row * width + first + j] = v[j];
  }
}

__global__ void __launch_bounds__(256) expand(Tensor x, float* y, int dtype) {
#define DO(T) expand_eighths<T>(x, y)
  FOR_WEIGHT_DTYPE(dtype, DO)
#undef DO
}

// The larger of the two, and NaN if one is.
__device__ __forceinline__ float larger(float a, float b) { return b > a || b != b ? b : a; }

// Codes and factors of x [..., K] of any strides, K a multiple of 32. A thread takes 4 elements, 8 threads a block of 32.
template <class X> __global__ void __launch_bounds__(256) quantize(Tensor x, int8_t* codes, Factor* factors) {
  const int64_t blocks = x.shape[3] / 32, count = x.shape[0] * x.shape[1] * x.shape[2] * blocks;
  const int part = threadIdx.x % 8;
  for (int64_t base = blockIdx.x * (int64_t)32; base < count; base += (int64_t)gridDim.x * 32) {
    const int64_t i = base + threadIdx.x / 8, row = i / blocks, block = i % blocks;
    float v[4] = {}, largest = 0;
    if (i < count) {
      const char* source = row_of(x, row) + (block * 32 + part * 4) * x.strides[3];
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] = to_float(*reinterpret_cast<const X*>(source + j * x.strides[3]));
    }
#pragma unroll
    for (int j = 0; j < 4; j++) largest = larger(largest, fabsf(v[j]));
#pragma unroll
    for (int distance = 1; distance < 8; distance *= 2)
      largest = larger(largest, __shfl_xor_sync(ALL_LANES, largest, distance));
    // Where a code cannot tell an infinity or NaN, d does: anything times d is NaN then.
    const float inverse = largest > 1e-30f && largest < INFINITY ? 127 / largest : 0;
    uint32_t packed = 0;
    int sum = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int code = inverse > 0 ? __float2int_rn(v[j] * inverse) : 0;
      packed |= (uint32_t)(code & 255) << 8 * j;
      sum += code;
    }
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(ALL_LANES, sum, 2);
    const int second = __shfl_down_sync(ALL_LANES, sum, 4);
    if (i < count) {
      *reinterpret_cast<uint32_t*>(codes + codes_at(row, blocks, block, part / 4) + part % 4 * 4) = packed;
      if (part == 0) factors[factor_at(row, blocks, block)] = {largest / 127, (sum & 0xffff) | (uint32_t)second << 16};
    }
  }
}
