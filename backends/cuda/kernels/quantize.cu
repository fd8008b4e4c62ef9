// x made ready for products: as float32, or as int8 in blocks of 32 (q8.cuh).
//
// Reads x once and writes 4 bytes, or 1.25, for each element; x is small beside the weights that it will meet. Grid
// (rows, pieces of 2048 elements); a thread takes 8 elements.
#include "blocks.cuh"
#include "elements.cuh"
#include "q8.cuh"

// y [rows][pitch] = x [..., width] of any dtype and strides, with zeros from `width` to `pitch`, a multiple of 8.
__global__ void __launch_bounds__(256) expand(Tensor x, float* y, int width, int pitch, int dtype) {
  const int first = (blockIdx.y * 256 + threadIdx.x) * 8;
  if (first >= pitch) return;
  float v[8];
  load8_any(dtype, row_address(x, blockIdx.x), x.strides[3], first, width, v);
  store_eight(KIND_F32, reinterpret_cast<char*>(y + blockIdx.x * (int64_t)pitch + first), v);
}

// Codes and factors of x [..., width] of any dtype and strides, its width a multiple of 32.
__global__ void __launch_bounds__(256) quantize(Tensor x, int8_t* codes, Factor* factors, int width, int dtype) {
  const int first = (blockIdx.y * 256 + threadIdx.x) * 8;
  if (first >= width) return;
  float v[8];
  load8_any(dtype, row_address(x, blockIdx.x), x.strides[3], first, width, v);
  write_eights(v, codes, factors, blockIdx.x, width / 32, first / 32);
}
