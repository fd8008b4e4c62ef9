// Twins of the PTX instructions in kernels/ptx.cuh: fragments are gathered over the warp in the layouts of the PTX ISA.
#pragma once
#include "cuda_cpu.hpp"

namespace cuda_cpu {

inline unsigned char* fragment(int lane_of_warp, int at) {
  return &block.fragments[(block.current->number / WARP * WARP + lane_of_warp) * 64 + at];
}

// Rows of a and columns of b have 8 words along k, two to a lane: row r and element k of a, k and column n of b.
template <class T> T element(int lane_of_warp, int words_before, int k) {
  constexpr int OF_WORD = 4 / sizeof(T);
  T value;
  memcpy(&value, fragment(lane_of_warp + k / OF_WORD % 4, words_before * 4 + k % OF_WORD * sizeof(T)), sizeof(T));
  return value;
}
template <class T> T element_of_a(int r, int k) {
  return element<T>((r & 7) * 4, (r >> 3) + 2 * (k * sizeof(T) / 16), k);
}
template <class T> T element_of_b(int k, int n) { return element<T>(n * 4, 4 + k * sizeof(T) / 16, k); }

// m16n8k16 of elements of two bytes, m16n8k32 of one.
template <class T, class Sum>
void mma_m16n8(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* where) {
  memcpy(fragment(lane(), 0), a, 16);
  memcpy(fragment(lane(), 16), b, 8);
  wait_for_warp(~0u, where);
  for (int i = 0; i < 4; i++) {
    const int r = lane() / 4 + 8 * (i >> 1), n = 2 * (lane() & 3) + (i & 1);
    Sum sum = 0;
    for (int k = 0; k < 32 / (int)sizeof(T); k++) sum += (Sum)element_of_a<T>(r, k) * (Sum)element_of_b<T>(k, n);
    d[i] += sum;
  }
  wait_for_warp(~0u, where);
}

}  // namespace cuda_cpu

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_cpu::mma_m16n8<__nv_bfloat16>(d, a, b, "mma_bf16");
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_cpu::mma_m16n8<__half>(d, a, b, "mma_f16");
}
inline void mma_int8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_cpu::mma_m16n8<int8_t>(d, a, b, "mma_int8");
}
// Four 8 x 8 matrices of two-byte elements, whose rows the lanes' addresses name; `transposed` for .trans.
template <bool transposed> void load_matrices(uint32_t (&r)[4], const void* row, const char* where) {
  using namespace cuda_cpu;
  if ((uintptr_t)row % 16) fail("%s at %p, which 16 does not divide", where, row);
  block.slots[block.current->number] = (uint64_t)row;
  wait_for_warp(~0u, where);
  const int first = block.current->number / WARP * WARP;
  for (int i = 0; i < 4; i++)
    for (int half = 0; half < 2; half++) {
      const int at_row = transposed ? 2 * (lane() & 3) + half : lane() / 4;
      const int at_column = transposed ? lane() / 4 : 2 * (lane() & 3) + half;
      uint16_t value;
      memcpy(&value, (const char*)block.slots[first + i * 8 + at_row] + 2 * at_column, 2);
      memcpy((char*)&r[i] + 2 * half, &value, 2);
    }
  wait_for_warp(~0u, where);
}
inline void ldmatrix(uint32_t (&r)[4], const void* row) { load_matrices<false>(r, row, "ldmatrix"); }
inline void ldmatrix_transposed(uint32_t (&r)[4], const void* row) { load_matrices<true>(r, row, "ldmatrix.trans"); }

// Asynchronous copies arrive when they are waited for, and not before: a wait that is missing shows.
inline void copy_async(void* shared, const void* global) {
  if ((uintptr_t)shared % 16 || (uintptr_t)global % 16)
    cuda_cpu::fail("copy_async from %p to %p, which 16 does not divide", global, shared);
  cuda_cpu::Fiber& me = *cuda_cpu::block.current;
  me.copies.push_back({shared, global, me.groups});
}
inline void commit_copies() { cuda_cpu::block.current->groups++; }
template <int LEFT> void wait_for_copies() {
  auto& copies = cuda_cpu::block.current->copies;
  size_t kept = 0;
  for (auto& copy : copies) {
    if (copy.group >= cuda_cpu::block.current->groups - LEFT) {
      copies[kept++] = copy;
      continue;
    }
    memcpy(copy.shared, copy.global, 16);
    cuda_cpu::block.current->written.push_back({copy.shared, 16});
  }
  copies.resize(kept);
}

inline uint32_t warp_max_unsigned(uint32_t v) {
  for (int x = 16; x; x >>= 1) v = std::max(v, cuda_cpu::exchange(~0u, v, cuda_cpu::lane() ^ x, "warp_max_unsigned"));
  return v;
}
inline uint32_t warp_min_unsigned(uint32_t v) {
  for (int x = 16; x; x >>= 1) v = std::min(v, cuda_cpu::exchange(~0u, v, cuda_cpu::lane() ^ x, "warp_min_unsigned"));
  return v;
}
