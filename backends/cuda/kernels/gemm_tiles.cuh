// Which tile of y a block of gemm.cu or gemm_wgmma.cu makes, and what moe_sort.cu tells them.
#pragma once
#include "common.cuh"

// `count` rows of y that one expert makes: pairs number `first` … of the sorted list. 0 means that there are none.
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
