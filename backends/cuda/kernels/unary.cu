// Functions of one element. The geometry is in elementwise.cuh.
#include "activations.cuh"
#include "elementwise.cuh"

#define UNARY(name, expression)                                                \
  struct name {                                                                \
    static constexpr bool two = false;                                         \
    __device__ static float of(float x, float, float, float) { return expression; } \
  }

UNARY(silu, silu_of(x));
UNARY(sigmoid, sigmoid_of(x));
UNARY(gelu, gelu_of(x));
UNARY(relu, relu_of(x));
UNARY(tanh_, tanhf(x));
UNARY(softplus, softplus_of(x));
UNARY(sqrt_, sqrtf(x));
UNARY(sqr, x * x);
UNARY(exp_, expf(x));
UNARY(neg, -x);
