// Rotary position embedding: pairs of elements turn by an angle that grows with the position.
//
// A thread has one pair of a row (or one element that does not turn) for several heads of one token: the angle is worked
// out once, in float64, so that it is exact at any position, and its whole quarter turns are taken off before the rest
// becomes float32. Block: (pairs and elements) x heads; grid: (token · parts of a row, groups of heads). Reads and
// writes every element once; bound by bandwidth, where a thread has heads enough to pay for the angle.
#include "items.cuh"
#include "rotation.cuh"

// Where results go. Of `rope<false>`: y [B, T, H, D], dense, in x's dtype; it may be x. Of `rope<true>`: rows of a cache
// [C, ...], y, a token's heads one after the other in row ids[t], `before` bytes into it, in y's dtype; a row that does
// not exist is not written. x: [B, T, H, D]; positions: [T] i32; factors: [dims / 2] f32, or null.
template <bool STORES>
__global__ void __launch_bounds__(256) rope(Tensor y, Tensor x, Tensor positions, const char* factors, int factor_step,
                                            int kind, int first, int dims, int neighbours, int64_t log2_base,
                                            int64_t freq_scale, int64_t ext_factor, int ramp_low, float ramp_width,
                                            float magnitude, int heads_of_thread, Tensor ids, int id_bytes, int y_kind,
                                            int64_t before) {
  const Rotation by = {dims, double_of(log2_base), double_of(freq_scale), double_of(ext_factor), ramp_low, ramp_width};
  const int row = (int)x.shape[3], heads = (int)x.shape[2], pairs = dims / 2, items = row - pairs;
  const int parts = (items + blockDim.x - 1) / blockDim.x;
  const int item = blockIdx.x % parts * blockDim.x + threadIdx.x;
  int64_t token;
  const int64_t batch = divided(blockIdx.x / parts, x.shape[1], token);
  if (item >= items) return;

  float cosine = 1, sine = 0;
  int a = item - pairs, b = -1;  // the elements of the pair; b < 0: one that does not turn
  if (a >= first) a += dims;
  if (item < pairs) {
    a = first + (neighbours ? 2 * item : item);
    b = neighbours ? a + 1 : a + pairs;
    double speed = speed_of(by, item);
    if (factors) speed /= *reinterpret_cast<const float*>(factors + (int64_t)item * factor_step);
    const int position = *reinterpret_cast<const int*>(positions.data + token * positions.strides[3]);
    cosine_and_sine(position * speed, cosine, sine);
    cosine *= magnitude;
    sine *= magnitude;
  }
  const int bytes = float_bytes(y_kind);
  const char* source = x.data + batch * x.strides[0] + token * x.strides[1];
  char* target = y.data + (batch * x.shape[1] + token) * heads * row * bytes;
  if constexpr (STORES) {
    const int64_t id = load_integer(id_bytes, ids.data + token * ids.strides[3]);
    if (id < 0 || id >= y.shape[2]) return;
    target = y.data + before + id * y.strides[2];
  }
  int head = blockIdx.y * blockDim.y * heads_of_thread + threadIdx.y;
  for (int i = 0; i < heads_of_thread && head < heads; i++, head += blockDim.y) {
    const char* from = source + head * x.strides[2];
    char* to = target + (int64_t)head * row * bytes;
    const float u = load_as_float(kind, from + a * x.strides[3]);
    if (b < 0) {
      store_float(y_kind, to + a * bytes, u);
      continue;
    }
    const float v = load_as_float(kind, from + b * x.strides[3]);
    store_float(y_kind, to + a * bytes, rounded_to(kind, u * cosine - v * sine));
    store_float(y_kind, to + b * bytes, rounded_to(kind, u * sine + v * cosine));
  }
}
