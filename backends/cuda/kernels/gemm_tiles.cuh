// What moe_sort.cu tells gemm.cu.
#pragma once
#include "common.cuh"

// `count` rows of y that one expert makes: pairs number `first` … of the sorted list. 0 means that there are none.
struct MoeTile {
  int expert, first, count, unused;
};
