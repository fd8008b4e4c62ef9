// Functions of one element, by number: one instance for all, as bandwidth bounds each. The geometry is in
// elementwise.cuh.
#include "activations.cuh"
#include "elementwise.cuh"

// As unary.py numbers them.
enum Function { SILU, SIGMOID, GELU, RELU, TANH, SOFTPLUS, SQRT, SQR, EXP, NEG };

struct unary {
  static constexpr bool two = false;
  __device__ static float of(float x, float, float function, float) {
    switch ((int)function) {
      case SILU: return silu_of(x);
      case SIGMOID: return sigmoid_of(x);
      case GELU: return gelu_of(x);
      case RELU: return relu_of(x);
      case TANH: return tanhf(x);
      case SOFTPLUS: return softplus_of(x);
      case SQRT: return sqrtf(x);
      case SQR: return x * x;
      case EXP: return expf(x);
      default: return -x;
    }
  }
};
