// The one packed order of a linear's weights on GPUs: fragments of `mma.sync` m16n8k32 and of
// `wgmma` m64nNk32 with the weights as the A operand, which agree. Made on the host while a model
// is loaded, by any number of threads (row tiles are independent); read by the kernels of
// kernels/cuda/device/linear_*.h. Owns nothing.
//
// Rows are padded to 64 and cut into row tiles; columns, shifted right by `lead`, are padded and
// cut into K tiles of 128 bytes' worth of activations: 128 int8 values or 64 fp16 ones. Tiles lie
// in the order [row tile][K tile]. Lane t of the 128 lanes that multiply a tile (t / 32 = warp w,
// l = t % 32, g = l / 4, c = l % 4) owns rows r = 16 w + g and r + 8:
//   u4 (4096 bytes):    [2 pairs of K steps][lane][4 words]. Word 2 s + j of pair p belongs to K
//                       step 2 p + s and columns k = 32 (2 p + s) + 16 j + 4 c + i, i = 0..3: byte
//                       i has the code of row r in its low half and that of row r + 8 in its high
//                       half. So `word & 0x0f0f0f0f` is register 2 j of the fragment, and
//                       `word >> 4 & 0x0f0f0f0f` register 2 j + 1.
//   int8 (8192 bytes):  [4 K steps][lane][4 words]: the fragment's four registers, row r and r + 8
//                       at columns 32 step + 4 c, then both at columns + 16.
//   fp16 (8192 bytes):  [4 K steps][lane][4 words]: likewise, with 16 columns a step and two values
//                       a word: columns 16 step + 2 c, then + 8.
// Groups (kW4Group128): one word per row and K tile, low half s = group_scale, high half a = 128 +
// group_offset as int16, in the order [row tile][K tile][w][g][r or r + 8].
//
// code * s + a is the weight plus 128, in 0..255 for every stored code. Four codes are multiplied
// at once, word * s + a * 0x01010101 modulo 2^32: the true sum of the four bytes, since each of
// them is in range once a is added, whatever the products and a (which may be negative) are before
// that. Columns of padding repeat a stored code of their row and group, so that they cannot spoil
// their neighbours; rows of padding have s = a = 0.
#pragma once

#include <cstdint>

#include "kernels/quant/linear_weight.h"
#include "kernels/types.h"

namespace qserve::kernels {

inline constexpr int64_t kGpuTileRows = 64;
inline constexpr int64_t kGpuTileLanes = 128;
// Bytes of one token's activations that a K tile multiplies.
inline constexpr int64_t kGpuTileActivationBytes = 128;
inline constexpr int64_t kGpuGroupBytes = kGpuTileRows * 4;  // of a tile

// Where the parts of a packed weight lie in its one buffer: byte offsets, multiples of 256.
// Sections that a format lacks are empty and share the next one's offset.
struct GpuWeightLayout {
  WeightFormat format = WeightFormat::kW4Group128;
  int64_t n = 0;
  int64_t k = 0;
  int64_t lead = 0;
  bool has_bias = false;
  int64_t row_tiles = 0;
  int64_t k_tiles = 0;
  int64_t tile_bytes = 0;
  int64_t tiles = 0;        // offset of the tiles
  int64_t groups = 0;       // uint32 [row_tiles][k_tiles][64], kW4Group128 only
  int64_t scale = 0;        // float [row_tiles * 64], padding 0; not kHalfFixedOrder
  int64_t scaled_zero = 0;  // likewise, kW4PerChannel only
  int64_t bias = 0;         // likewise, if there is one
  int64_t bytes = 0;        // of the whole buffer

  int64_t padded_rows() const { return row_tiles * kGpuTileRows; }
  // Bytes of a token's row of activations, padded.
  int64_t activation_bytes() const { return k_tiles * kGpuTileActivationBytes; }
};

// Columns of a K tile.
constexpr int64_t GpuTileColumns(WeightFormat format) {
  return format == WeightFormat::kHalfFixedOrder ? 64 : 128;
}

// True for the formats that have a packed order here: all but kFloat.
constexpr bool HasGpuOrder(WeightFormat format) { return format != WeightFormat::kFloat; }

// The weight's shape and format must be valid (Validate) and HasGpuOrder.
GpuWeightLayout GpuLayoutOf(const LinearWeight& weight);

// Writes row tiles [begin, end) and what belongs to their rows into `buffer` (layout.bytes bytes,
// zeroed by the caller, aligned to 4). Different row tiles may be packed by different threads.
void PackGpuRowTiles(const LinearWeight& weight, const GpuWeightLayout& layout, int64_t begin,
                     int64_t end, uint8_t* buffer);

// The weight that was packed: for tests, and to see what is in device memory.
LinearWeight UnpackGpuWeight(const GpuWeightLayout& layout, const uint8_t* buffer);

}  // namespace qserve::kernels
