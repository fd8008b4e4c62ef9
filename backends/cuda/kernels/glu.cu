// Gated linear units: y = activation(gate) · up. The geometry is in elementwise.cuh.
#include "activations.cuh"
#include "elementwise.cuh"

#define GATED(name, activation)                                                                      \
  struct name {                                                                                      \
    static constexpr bool two = true;                                                                \
    __device__ static float of(float gate, float up, float, float) { return activation(gate) * up; } \
  }

GATED(swiglu, silu_of);
GATED(geglu, gelu_of);
GATED(reglu, relu_of);
