// Blocks of weights, each one of a tile's, drawn by a hash of where it is: as fast as memory is written.
#include "common.cuh"

__device__ __forceinline__ uint32_t scrambled(uint32_t v) {
  v = (v ^ v >> 16) * 0x7feb352du;
  v = (v ^ v >> 15) * 0x846ca68bu;
  return v ^ v >> 16;
}

// out: blocks number `first` … of a tensor, `count` of them. A thread writes bytes one grid apart.
__global__ void __launch_bounds__(256) draw_blocks(char* out, const char* tile, int64_t first, int64_t count,
                                                   int tile_blocks, int block_bytes, int seed) {
  const int64_t all = count * block_bytes;
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < all; i += (int64_t)gridDim.x * blockDim.x) {
    const int64_t block = first + i / block_bytes;
    const uint32_t drawn = scrambled((uint32_t)block ^ scrambled((uint32_t)(block >> 32) + (uint32_t)seed));
    out[i] = tile[(int64_t)(drawn % tile_blocks) * block_bytes + i % block_bytes];
  }
}
