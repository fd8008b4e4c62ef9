// Division as elements.cuh does it, by one thread.
#include "elements.cuh"

__global__ void divide(int64_t* out, int64_t a, int64_t b) { out[0] = divided(a, b, out[1]); }
