// Tiles of keys and values in shared memory for attention_tiles.cu, as 16-bit floats T.
#pragma once
#include "attention.cuh"
#include "blocks.cuh"

constexpr int PADDING = 8;  // elements behind each row: rows are an odd number of 16 bytes, and do not collide in banks

__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16) {
  mma_f16(d, a, b);
}
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16) {
  mma_bf16(d, a, b);
}

__device__ __forceinline__ uint32_t packed(float low, float high, f16) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ __forceinline__ uint32_t packed(float low, float high, bf16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Sizes of attend_tiles: keys of DK and values of DV elements, SHARED if values are the first elements of keys.
template <int DK, int DV, bool SHARED, int TILES, int WARPS, int CELLS> struct Plan {
  static constexpr int ROWS = 16 * TILES, THREADS = 32 * WARPS;
  static constexpr int KEY = DK + PADDING, VALUE = SHARED ? KEY : DV + PADDING, POWER = CELLS + PADDING;  // pitches
  static constexpr int TILE = CELLS * (SHARED ? KEY : KEY + VALUE), VALUES = SHARED ? 0 : CELLS * KEY;
  static constexpr int ROW_WARPS = TILES == 1 ? 1 : 2, CELL_WARPS = WARPS / ROW_WARPS;
  static constexpr int ROW_TILES = TILES / ROW_WARPS, CELL_TILES = CELLS / 8 / CELL_WARPS;  // of a warp's scores
  static constexpr int COLUMN_TILES = DV / 8 / WARPS;                                       // of a warp's mix
  // Where a warp has one tile of cells for several of rows, two warps take both their tiles, and half of the elements
  // each: that reads a quarter less of shared memory. They exchange sums through EXCHANGED floats.
  static constexpr bool HALVES = CELL_TILES == 1 && ROW_TILES > 1;
  static constexpr int EXCHANGED = HALVES ? WARPS * ROW_TILES * 128 : 0;
  static_assert(ROW_TILES >= 1 && CELL_TILES >= 1 && COLUMN_TILES % 2 == 0 && DK % 32 == 0, "");
};

// Rows of keys or values of one kv head in global memory.
struct Cache {
  const char* data;
  int64_t step;  // bytes from one cell to the next
  int dtype;     // q4_0 or q8_0 by their numbers in blocks.cuh, else T itself
  int width;     // elements of a row, a multiple of 8
  bool can_be_copied;

  __device__ __forceinline__ Cache(const char* data, int64_t step, int dtype, int width)
      : data(data), step(step), dtype(dtype), width(width),
        can_be_copied(dtype != 3 && dtype != 7 && ((reinterpret_cast<uint64_t>(data) | (uint64_t)step) & 15) == 0) {}
};

// Eight elements of a row whose bytes cannot be copied as they are.
template <class T> __device__ __forceinline__ uint4 expanded8(const char* row, int element, int dtype) {
  if (dtype != 3 && dtype != 7) {  // not aligned to 16
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(row) + element;
    const auto both = [&](int i) { return halves[i] | (uint32_t)halves[i + 1] << 16; };
    return make_uint4(both(0), both(2), both(4), both(6));
  }
  float v[8];
  if (dtype == 3)
    Blocks<q4_0>::dequantize8(row + element / 32 * Blocks<q4_0>::bytes, element % 32, v);
  else
    Blocks<q8_0>::dequantize8(row + element / 32 * Blocks<q8_0>::bytes, element % 32, v);
  return make_uint4(packed(v[0], v[1], T()), packed(v[2], v[3], T()), packed(v[4], v[5], T()), packed(v[6], v[7], T()));
}

// Where a piece of eight elements of a tile comes from, and where it goes; a row has the pieces of its key, then its
// value's.
template <class T, class P, int DK, int DV, bool SHARED> struct Piece {
  static constexpr int OF_KEY = DK / 8, OF_ROW = OF_KEY + (SHARED ? 0 : DV / 8);
  const char* source;  // of the row
  T* target;
  int64_t step;  // from one row to the next, in bytes, and in elements of the tile
  int pitch, element, dtype;
  bool is_inside, is_there;

  __device__ __forceinline__ Piece(int i, T* tile, const Cache& keys, const Cache& values, int64_t first,
                                   const unsigned char* seen) {
    const int row = i / OF_ROW, piece = i % OF_ROW;
    const bool is_value = !SHARED && piece >= OF_KEY;
    element = (is_value ? piece - OF_KEY : piece) * 8;
    pitch = is_value ? P::VALUE : P::KEY;
    target = tile + (is_value ? P::VALUES : 0) + row * pitch + element;
    step = is_value ? values.step : keys.step;
    source = (is_value ? values.data : keys.data) + (first + row) * step;
    dtype = is_value ? values.dtype : keys.dtype;
    is_inside = element < (is_value ? values.width : keys.width);
    is_there = is_inside && seen[row];
  }
};

// Begin to bring the keys and values of a chunk's cells, from cell `first` on, to shared memory. Rows that nobody sees
// become zeros, whatever they hold. Bytes that have to be expanded come through registers, several pieces at a time.
template <class T, class P, int DK, int DV, bool SHARED, int TILES, int CELLS>
__device__ __forceinline__ void load_tile(T* tile, const Cache& keys, const Cache& values, int64_t first,
                                          const unsigned char* seen) {
  using Each = Piece<T, P, DK, DV, SHARED>;
  constexpr int PIECES = CELLS * Each::OF_ROW, TOGETHER = TILES == 1 ? 4 : 1;
  const uint4 zeros = make_uint4(0, 0, 0, 0);
  if (keys.can_be_copied && values.can_be_copied) {  // a warp takes a row at a time
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int part = 0; part < Each::OF_ROW; part += 32) {
      if (part + (int)threadIdx.x % 32 >= Each::OF_ROW) break;
      const Each piece(warp * Each::OF_ROW + part + threadIdx.x % 32, tile, keys, values, first, seen);
      const char* source = piece.source + 2 * piece.element;
      T* target = piece.target;
#pragma unroll 1
      for (int row = warp; row < CELLS; row += P::THREADS / 32) {
        if (seen[row] && piece.is_inside)
          copy_async(target, source);
        else
          *reinterpret_cast<uint4*>(target) = zeros;
        source += P::THREADS / 32 * piece.step;
        target += P::THREADS / 32 * piece.pitch;
      }
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < PIECES; i += P::THREADS * TOGETHER) {
      uint4 expanded[TOGETHER];
#pragma unroll
      for (int j = 0; j < TOGETHER; j++) {
        const Each piece(min(i + j * P::THREADS, PIECES - 1), tile, keys, values, first, seen);
        expanded[j] = piece.is_there ? expanded8<T>(piece.source, piece.element, piece.dtype) : zeros;
      }
#pragma unroll
      for (int j = 0; j < TOGETHER; j++)
        if (i + j * P::THREADS < PIECES)
          *reinterpret_cast<uint4*>(Each(i + j * P::THREADS, tile, keys, values, first, seen).target) = expanded[j];
    }
  }
  commit_copies();
}

// A block's queries as T, each row times a power of two that makes its largest element 1 to 2, and what undoes that.
template <class T, class P, int DK>
__device__ __forceinline__ void load_queries(T* queries, float* row_scales, const Tensor& q, int q_kind,
                                             const int* places, float scale) {
  const int lane = threadIdx.x % 32, width = (int)q.shape[3];
  for (int r = threadIdx.x / 32; r < P::ROWS; r += P::THREADS / 32) {
    const int heads = (int)q.shape[2], token = places[r] / heads, query = places[r] % heads;
    const char* source = q.data + token * q.strides[1] + query * q.strides[2];
    const int end = places[r] < 0 ? 0 : width;
    float largest = 0;
    for (int element = lane; element < end; element += 32)
      largest = fmaxf(largest, fabsf(load_as_float(q_kind, source + element * q.strides[3])));
    const int exponent = __float_as_int(warp_max(largest)) >> 23 & 255;
    const bool usual = exponent > 0 && exponent < 254;
    const float factor = usual ? __int_as_float((254 - exponent) << 23) : 1.0f;
    for (int element = lane; element < DK; element += 32)
      queries[r * P::KEY + element] = from_float<T>(
          element < end ? load_as_float(q_kind, source + element * q.strides[3]) * factor : 0.0f);
    if (lane == 0) row_scales[r] = usual ? scale * __int_as_float(exponent << 23) : scale;
  }
}

// Adds to s the scores of rows and cells over `width` elements: q · kᵀ.
template <class T, int ROW_TILES, int CELL_TILES, int PITCH>
__device__ __forceinline__ void add_products(float (&s)[ROW_TILES][CELL_TILES][4], const T* queries, const T* keys,
                                             int width) {
  const int lane = threadIdx.x % 32;
  const T* a_row = queries + lane % 16 * PITCH + lane / 16 * 8;
  if constexpr (CELL_TILES == 1) {  // a load brings 8 cells by 32 elements
    const T* b_row = keys + lane % 8 * PITCH + lane / 8 * 8;
    float odd[ROW_TILES][4] = {};  // sums of their own, so that products do not wait for each other
#pragma unroll 2
    for (int k = 0; k < width; k += 32) {
      uint32_t b[4];
      ldmatrix(b, b_row + k);
#pragma unroll
      for (int i = 0; i < ROW_TILES; i++) {
        uint32_t low[4], high[4];
        ldmatrix(low, a_row + i * 16 * PITCH + k);
        ldmatrix(high, a_row + i * 16 * PITCH + k + 16);
        multiply(s[i][0], low, {b[0], b[1]}, T());
        multiply(odd[i], high, {b[2], b[3]}, T());
      }
    }
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) s[i][0][e] += odd[i][e];
  } else {  // 16 cells by 16 elements
    const T* b_row = keys + (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8;
#pragma unroll 2
    for (int k = 0; k < width; k += 16) {
      uint32_t a[ROW_TILES][4];
#pragma unroll
      for (int i = 0; i < ROW_TILES; i++) ldmatrix(a[i], a_row + i * 16 * PITCH + k);
#pragma unroll
      for (int j = 0; j < CELL_TILES; j += 2) {
        uint32_t b[4];
        ldmatrix(b, b_row + j * 8 * PITCH + k);
#pragma unroll
        for (int i = 0; i < ROW_TILES; i++) {
          multiply(s[i][j], a[i], {b[0], b[1]}, T());
          multiply(s[i][j + 1], a[i], {b[2], b[3]}, T());
        }
      }
    }
  }
}

// Scores of a warp's rows, from `queries` on, and its cells of a tile.
template <class T, class P>
__device__ __forceinline__ void score(float (&s)[P::ROW_TILES][P::CELL_TILES][4], const T* queries, const T* tile,
                                      int width, float* exchange) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, cell_warp = warp % P::CELL_WARPS;
  if constexpr (P::HALVES) {
    const bool is_second = cell_warp % 2;
    float both[P::ROW_TILES][2][4] = {};
    const int begin = is_second ? width / 2 : 0;  // a multiple of 16
    const T* keys = tile + cell_warp / 2 * 16 * P::KEY;
    add_products<T, P::ROW_TILES, 2, P::KEY>(both, queries + begin, keys + begin, width / 2);
    float4* sums = reinterpret_cast<float4*>(exchange) + lane;
#pragma unroll
    for (int i = 0; i < P::ROW_TILES; i++) {
      const float(&sent)[4] = both[i][1], (&other)[4] = both[i][0];
      sums[(warp * P::ROW_TILES + i) * 32] =
          make_float4(is_second ? other[0] : sent[0], is_second ? other[1] : sent[1], is_second ? other[2] : sent[2],
                      is_second ? other[3] : sent[3]);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < P::ROW_TILES; i++) {
      const float4 got = sums[((warp ^ 1) * P::ROW_TILES + i) * 32];
      const float its[4] = {got.x, got.y, got.z, got.w};
#pragma unroll
      for (int e = 0; e < 4; e++) s[i][0][e] = (is_second ? both[i][1][e] : both[i][0][e]) + its[e];
    }
  } else {
    const T* keys = tile + cell_warp * P::CELL_TILES * 8 * P::KEY;
    add_products<T, P::ROW_TILES, P::CELL_TILES, P::KEY>(s, queries, keys, width);
  }
}

// Adds powers · values to a warp's columns of all rows.
template <class T, class P, int TILES, int CELLS>
__device__ __forceinline__ void add_values(float (&mix)[TILES][P::COLUMN_TILES][4], const T* powers, const T* values) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int n = 0; n < CELLS; n += 16) {
    uint32_t a[TILES][4];
#pragma unroll
    for (int i = 0; i < TILES; i++) ldmatrix(a[i], powers + (i * 16 + lane % 16) * P::POWER + n + lane / 16 * 8);
#pragma unroll
    for (int j = 0; j < P::COLUMN_TILES; j += 2) {
      uint32_t b[4];
      ldmatrix_transposed(b, values + (n + lane % 16) * P::VALUE + j * 8 + lane / 16 * 8);
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        multiply(mix[i][j], a[i], {b[0], b[1]}, T());
        multiply(mix[i][j + 1], a[i], {b[2], b[3]}, T());
      }
    }
  }
}
