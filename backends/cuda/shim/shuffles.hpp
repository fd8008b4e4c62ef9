// What the lanes of a warp tell each other.
#pragma once
#include "fibers.hpp"

namespace cuda_cpu {

// The value of another lane of the warp.
template <class T>
T exchange(unsigned mask, T value, int from, const char* where) {
  static_assert(sizeof(T) <= 8, "a shuffle moves 8 bytes at most");
  const int me = block.current->number, first = me / WARP * WARP;
  memcpy(&block.slots[me], &value, sizeof value);
  wait_for_warp(mask, where);
  T result;
  memcpy(&result, &block.slots[first + from % WARP], sizeof result);
  wait_for_warp(mask, where);
  return result;
}

inline int lane() { return block.current->number % WARP; }

inline unsigned vote(unsigned mask, bool yes, const char* where) {
  unsigned votes = 0;
  const int me = block.current->number, first = me / WARP * WARP;
  block.slots[me] = yes;
  wait_for_warp(mask, where);
  for (int i = 0; i < WARP; i++)
    if (mask >> i & 1) votes |= (unsigned)(block.slots[first + i] & 1) << i;
  wait_for_warp(mask, where);
  return votes;
}

}  // namespace cuda_cpu
