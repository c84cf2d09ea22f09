// Kernel bodies of ray casting; one item is one mask word or one ray.
#pragma once

#include <cstdint>

#include "common/defs.h"
#include "ray_cast/ray_cast.h"

namespace opus {
namespace ray_cast {

// Returns one bit for each of four voxels along z from `row` on; `count` of them are in the grid.
OPUS_HD uint64_t occupied_along_z(const uint8_t* row, int count, uint8_t empty) {
  if (count == 4) {
    uint32_t word = row[0] | row[1] << 8 | row[2] << 16 | static_cast<uint32_t>(row[3]) << 24;
    word ^= 0x01010101u * empty;
    const uint32_t nonzero = (((word & 0x7F7F7F7Fu) + 0x7F7F7F7Fu) | word) & 0x80808080u;
    return (nonzero >> 7) * 0x01020408u >> 24;  // bit 8i -> bit 24 + i -> bit i
  }
  uint64_t bits = 0;
  for (int i = 0; i < count; ++i) bits |= static_cast<uint64_t>(row[i] != empty) << i;
  return bits;
}

// Recomputes the masks of one level in all blocks of a box, for all grids. The level below must be
// up to date. Items: grid-major, then blocks of the box along x, y, z.
struct FillMasks {
  uint64_t* words;
  const uint8_t* labels;
  Masks layout;  // `words` is not used
  int level;
  int lower[3], extent[3];  // the box, in blocks of the level
  uint8_t empty;

  OPUS_HD int64_t items_of_grid() const {
    return static_cast<int64_t>(extent[0]) * extent[1] * extent[2];
  }

  OPUS_HD void operator()(int64_t item) const {
    const int64_t grid = item / items_of_grid();
    int64_t rest = item - grid * items_of_grid();
    const int bz = lower[2] + static_cast<int>(rest % extent[2]);
    rest /= extent[2];
    const int by = lower[1] + static_cast<int>(rest % extent[1]);
    const int bx = lower[0] + static_cast<int>(rest / extent[1]);
    const int* n = layout.blocks[level];
    uint64_t* own = words + grid * layout.total;
    const int64_t block = (static_cast<int64_t>(bx) * n[1] + by) * n[2] + bz;
    own[layout.offset[level] + block] = level == 0
                                            ? voxel_bits(grid, bx, by, bz)
                                            : child_bits(own + layout.offset[level - 1], bx, by, bz);
  }

 private:
  OPUS_HD uint64_t voxel_bits(int64_t grid, int bx, int by, int bz) const {
    const int* size = layout.size;
    const uint8_t* base = labels + grid * size[0] * size[1] * size[2];
    const int z_count = least_of(4, size[2] - 4 * bz);
    uint64_t bits = 0;
    for (int x = 0; x < least_of(4, size[0] - 4 * bx); ++x) {
      for (int y = 0; y < least_of(4, size[1] - 4 * by); ++y) {
        const int64_t row = static_cast<int64_t>(4 * bx + x) * size[1] + 4 * by + y;
        bits |= occupied_along_z(base + row * size[2] + 4 * bz, z_count, empty) << (16 * x + 4 * y);
      }
    }
    return bits;
  }

  OPUS_HD uint64_t child_bits(const uint64_t* child, int bx, int by, int bz) const {
    const int* n = layout.blocks[level - 1];
    uint64_t bits = 0;
    for (int x = 4 * bx; x < least_of(4 * bx + 4, n[0]); ++x) {
      for (int y = 4 * by; y < least_of(4 * by + 4, n[1]); ++y) {
        for (int z = 4 * bz; z < least_of(4 * bz + 4, n[2]); ++z) {
          const bool any = child[(static_cast<int64_t>(x) * n[1] + y) * n[2] + z] != 0;
          bits |= static_cast<uint64_t>(any) << bit_of(x, y, z);
        }
      }
    }
    return bits;
  }
};

// Casts ray r = (grid * num_origins + origin) * num_directions + direction.
template <typename T>
struct CastRays {
  Masks masks;
  const T *origins, *directions;  // [O, 3]; [D, 3] for all origins or [O, D, 3] per origin
  int64_t num_origins, num_directions;
  bool own_directions;
  double grid_min[3], voxel_size[3], max_distance;
  bool skip_empty;
  int32_t* voxel;
  bool* hit;
  T *t_enter, *t_exit;
  int8_t* face;

  OPUS_HD void operator()(int64_t r) const { cast_one(r, PlainWalk{skip_empty}); }

  template <typename WalkGrid>
  OPUS_HD void cast_one(int64_t r, const WalkGrid& walk) const {
    const int64_t line = r / num_directions, grid = line / num_origins;
    const int64_t column = r - line * num_directions, origin_index = line - grid * num_origins;
    const T* origin = origins + 3 * origin_index;
    const T* direction =
        directions + 3 * (column + (own_directions ? origin_index * num_directions : 0));
    double o[3], d[3];
    for (int a = 0; a < 3; ++a) {
      o[a] = (static_cast<double>(origin[a]) - grid_min[a]) / voxel_size[a];
      d[a] = static_cast<double>(direction[a]) / voxel_size[a];
    }
    const OneGrid words{masks.words + grid * masks.total};
    const Hit result = cast(masks, words, o, d, max_distance, walk);
    for (int a = 0; a < 3; ++a) voxel[3 * r + a] = result.voxel[a];
    hit[r] = result.hit;
    t_enter[r] = static_cast<T>(result.t_enter);
    t_exit[r] = static_cast<T>(result.t_exit);
    face[r] = static_cast<int8_t>(result.face);
  }
};

}  // namespace ray_cast
}  // namespace opus
