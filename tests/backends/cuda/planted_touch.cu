// A product by a warpgroup, whose sums are touched before it is waited for.
#include "hopper.cuh"

__global__ void __launch_bounds__(128) touch(float* y) {
  DYNAMIC_SHARED(char, shared);
  float sums[64] = {};
  for (int i = 0; i < 2; i++) {
    wgmma_fence();
    wgmma<bf16>(sums, descriptor_of(shared), descriptor_of(shared + 8192));
    sums[3] += 1;
    wgmma_commit();
    wgmma_wait<0>(sums);
  }
  for (int i = 0; i < 64; i++) y[64 * threadIdx.x + i] = sums[i];
}
