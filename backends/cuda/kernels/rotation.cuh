// Rotations: how far each pair of a row turns at a position, as ops/rope.py defines it.
#pragma once
#include "common.cuh"

// What `frequencies` of ops/rope.py takes, the ramp as the pair where it begins and its width in pairs.
struct Rotation {
  int dims;
  double log2_base, freq_scale, ext_factor;
  int ramp_low;
  float ramp_width;
};

// A float64 argument, which launches give as the bits of an int64.
__device__ __forceinline__ double double_of(int64_t bits) { return *reinterpret_cast<const double*>(&bits); }

// The angle of a pair at position 1: see `frequencies` in ops/rope.py.
__device__ __forceinline__ double speed_of(const Rotation& by, int pair) {
  const double theta = exp2(-2.0 * pair / by.dims * by.log2_base);
  if (by.ext_factor == 0) return by.freq_scale * theta;
  const double along = (pair - by.ramp_low) / (double)by.ramp_width;
  const double ramp = by.ext_factor * (1.0 - (along < 0 ? 0 : along > 1 ? 1 : along));
  return theta * (by.freq_scale * (1.0 - ramp) + ramp);
}

// Cosine and sine of an angle: r + quarter · π/2 with r in [-π/4, π/4].
__device__ __forceinline__ void cosine_and_sine(double angle, float& cosine, float& sine) {
  const double quarters = rint(angle * 0.63661977236758134308);
  const float r = (float)(angle - quarters * 1.57079632679489661923), z = r * r;
  const float s = ((-0.00019517f * z + 0.00833217f) * z - 0.16666655f) * z * r + r;
  const float c = (((2.44324111e-05f * z - 0.00138873098f) * z + 0.0416666456f) * z - 0.5f) * z + 1.0f;
  const int quarter = (int)((long long)quarters & 3);
  cosine = quarter % 2 ? s : c;
  sine = quarter % 2 ? c : s;
  if (quarter == 1 || quarter == 2) cosine = -cosine;
  if (quarter >= 2) sine = -sine;
}
