// Which tile of y a block of gemm.cu, mmq.cu or gemm_wgmma.cu makes, and what moe_sort.cu tells them.
#pragma once
#include "common.cuh"

// `count` rows of y that one expert makes: pairs number `first` … of the sorted list. 0 means that there are none. Behind
// the last place of the list `count` tells how many tiles there are.
struct MoeTile {
  int expert, first, count;
  int taken;  // of the first: tiles that blocks of gemm_wgmma.cu have taken, beyond one each
};

constexpr int TILES_IN_L2 = 16;  // of x, while all of w is read

// Rows row0 … of w by rows first … first + count - 1 of x, both of a batch; of an expert's list, where there is one.
struct TileOfY {
  int batch, row0, first, count;
};

// Tiles of x are grouped, so that they stay in L2; neighbouring blocks share rows of w.
__device__ __forceinline__ TileOfY tile_of_y(int block, int rows, int tile_rows, int columns, int tile_columns,
                                             int column_tiles) {
  const int row_tiles = (rows + tile_rows - 1) / tile_rows, tiles = row_tiles * column_tiles;
  const int batch = block / tiles, tile = block % tiles;
  const int group = tile / (TILES_IN_L2 * row_tiles), in_group = tile % (TILES_IN_L2 * row_tiles);
  const int width = min(TILES_IN_L2, column_tiles - group * TILES_IN_L2);
  const int column_tile = group * TILES_IN_L2 + in_group % width, first = column_tile * tile_columns;
  return {batch, in_group / width * tile_rows, first, min(tile_columns, columns - first)};
}

// The block's tile, of an expert's list where there is one, and where its matrix and its batch's rows of x begin.
struct Operands {
  TileOfY tile;
  int64_t w_offset, x_offset;
};
__device__ __forceinline__ Operands operands_of(TileOfY tile, int tile_columns, int inner, int64_t w_outer,
                                                int64_t w_inner, int64_t x_outer, int64_t x_inner,
                                                const MoeTile* moe_tiles) {
  const int outer = tile.batch / inner, rest = tile.batch % inner;
  Operands found{tile, outer * w_outer + rest * w_inner, outer * x_outer + rest * x_inner};
  if (moe_tiles) {
    const MoeTile of = moe_tiles[tile.first / tile_columns];
    found.tile.first = of.first, found.tile.count = of.count, found.w_offset = of.expert * w_inner;
  }
  return found;
}
