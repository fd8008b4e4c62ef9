// Items of plain dtypes whose kind is known at run time only, integers included, and items that are moved as bytes.
#pragma once
#include "elements.cuh"

__device__ __forceinline__ int64_t load_integer(int bytes, const char* at) {
  switch (bytes) {
    case 1: return *reinterpret_cast<const int8_t*>(at);
    case 2: return *reinterpret_cast<const int16_t*>(at);
    case 4: return *reinterpret_cast<const int32_t*>(at);
    default: return *reinterpret_cast<const int64_t*>(at);
  }
}

__device__ __forceinline__ void store_integer(int bytes, char* at, int64_t value) {
  switch (bytes) {
    case 1: *reinterpret_cast<int8_t*>(at) = (int8_t)value; break;
    case 2: *reinterpret_cast<int16_t*>(at) = (int16_t)value; break;
    case 4: *reinterpret_cast<int32_t*>(at) = (int32_t)value; break;
    default: *reinterpret_cast<int64_t*>(at) = value;
  }
}

// Bytes of an integer dtype; 0 of a float one.
__device__ __forceinline__ int integer_bytes(int kind) {
  return kind == KIND_I8 ? 1 : kind == KIND_I16 ? 2 : kind == KIND_I32 ? 4 : kind == KIND_I64 ? 8 : 0;
}

__device__ __forceinline__ float number_at(int kind, const char* at) {
  const int bytes = integer_bytes(kind);
  return bytes ? (float)load_integer(bytes, at) : load_as_float(kind, at);
}

// Towards zero where the dtype is of integers.
__device__ __forceinline__ void store_number(int kind, char* at, float x) {
  const int bytes = integer_bytes(kind);
  if (bytes) store_integer(bytes, at, (int64_t)x);
  else store_float(kind, at, x);
}

// An item of any size, which is one load and store if it is of 1, 2, 4, 8 or 16 bytes and both addresses are multiples.
__device__ __forceinline__ void copy_item(char* to, const char* from, int bytes) {
  const bool aligned = ((reinterpret_cast<uint64_t>(to) | reinterpret_cast<uint64_t>(from)) & (bytes - 1)) == 0;
  if (aligned && bytes == 16) *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
  else if (aligned && bytes == 8) *reinterpret_cast<uint64_t*>(to) = *reinterpret_cast<const uint64_t*>(from);
  else if (aligned && bytes == 4) *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<const uint32_t*>(from);
  else if (aligned && bytes == 2) *reinterpret_cast<uint16_t*>(to) = *reinterpret_cast<const uint16_t*>(from);
  else
    for (int i = 0; i < bytes; i++) to[i] = from[i];
}
