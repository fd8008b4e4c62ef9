// Rows to a distribution, and rows to their sums.
//
// A row is shared by the threads of one threadIdx.y, which take elements blockDim.x apart: a warp for each 256
// elements, 32 warps at most. Each thread holds eight, so that a row of up to 8192 is read once; a longer one is read
// three times. Bound by bandwidth; for one row by latency.
#include "row_reductions.cuh"

constexpr int HELD = 8;

// One row of scale · x + mask.
struct Logits {
  const char *x, *mask;
  int64_t x_step, mask_step;
  int kind, mask_kind;
  float scale;

  __device__ __forceinline__ float operator[](int i) const {
    const float z = load_as_float(kind, x + i * x_step) * scale;
    return mask ? z + load_as_float(mask_kind, mask + i * mask_step) : z;
  }
};

// y: dense, of x's shape and dtype; a row that is hidden everywhere gives zeros. mask: repeats where its axes have
// length 1, not read unless has_mask. sinks: [shape[1]] logits that take their share of axis 1's rows, or null.
__global__ void __launch_bounds__(1024) soft_max(Tensor y, Tensor x, Tensor mask, const char* sinks, int kind,
                                                 int mask_kind, int has_mask, int sink_kind, int sink_step,
                                                 float scale) {
  __shared__ float shared[32];
  const int64_t row = row_of_thread();
  if (row >= y.shape[0] * y.shape[1] * y.shape[2]) return;
  const int n = (int)y.shape[3], pace = blockDim.x;
  const Indices at = indices_in(y, 1, row);
  const Operand x_of(x, kind, false), mask_of(mask, mask_kind, false);
  const char* hidden = has_mask ? mask_of.address(at) : nullptr;
  const Logits logits = {x_of.address(at), hidden, x.strides[3], mask_of.steps[3], kind, mask_kind, scale};
  char* target = y.data + row * n * float_bytes(kind);
  const bool is_held = n <= HELD * pace;

  float z[HELD], highest = -INFINITY;
  if (is_held) {
#pragma unroll
    for (int j = 0; j < HELD; j++) {
      const int i = threadIdx.x + j * pace;
      z[j] = i < n ? logits[i] : -INFINITY;
      highest = fmaxf(highest, z[j]);
    }
  } else {
    for (int i = threadIdx.x; i < n; i += pace) highest = fmaxf(highest, logits[i]);
  }
  highest = over_row<Max>(highest, shared);
  const float sink = sinks ? load_as_float(sink_kind, sinks + at.i1 * sink_step) : -INFINITY;
  highest = fmaxf(highest, sink);
  if (highest == -INFINITY) highest = 0;

  float total = 0;
  if (is_held) {
#pragma unroll
    for (int j = 0; j < HELD; j++) {
      z[j] = expf(z[j] - highest);
      if (threadIdx.x + j * pace < n) total += z[j];
    }
  } else {
    for (int i = threadIdx.x; i < n; i += pace) total += expf(logits[i] - highest);
  }
  total = over_row<Sum>(total, shared);
  if (sinks) total += expf(sink - highest);
  const float share = total == 0 ? 1 : 1 / total;
  if (is_held) {
#pragma unroll
    for (int j = 0; j < HELD; j++) {
      const int i = threadIdx.x + j * pace;
      if (i < n) store_float(kind, target + (int64_t)i * float_bytes(kind), z[j] * share);
    }
  } else {
    for (int i = threadIdx.x; i < n; i += pace)
      store_float(kind, target + (int64_t)i * float_bytes(kind), expf(logits[i] - highest) * share);
  }
}

// y[..., 0] = the sum of x's row, which may have no elements.
__global__ void __launch_bounds__(1024) sum_rows(Tensor y, Tensor x, int kind) {
  __shared__ float shared[32];
  const int64_t row = row_of_thread();
  if (row >= elements_of(y)) return;
  const char* source = row_address(x, row);
  float total = 0;
  for (int64_t i = threadIdx.x; i < x.shape[3]; i += blockDim.x)
    total += load_as_float(kind, source + i * x.strides[3]);
  total = over_row<Sum>(total, shared);
  if (threadIdx.x == 0) store_float(kind, y.data + row * float_bytes(kind), total);
}
