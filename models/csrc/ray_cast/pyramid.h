// Computation of the mask levels of label grids on the device of the grids; host code.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <array>

#include "common/launch.h"
#include "ray_cast/ray_cast_bodies.h"

namespace opus {
namespace ray_cast {

// Returns the extents of the mask levels of one grid; `words` is not set.
inline Masks layout_of(at::IntArrayRef grid_size) {
  Masks lay{};
  for (int a = 0; a < 3; ++a) lay.size[a] = static_cast<int>(grid_size[a]);
  for (int level = 0; level < kLevels; ++level) {
    const int width = 4 << (2 * level);
    lay.offset[level] = lay.total;
    int64_t count = 1;
    for (int a = 0; a < 3; ++a) {
      lay.blocks[level][a] = (lay.size[a] + width - 1) / width;
      count *= lay.blocks[level][a];
    }
    lay.total += count;
  }
  return lay;
}

inline void check_grid_size(at::IntArrayRef grid_size) {
  TORCH_CHECK_VALUE(grid_size.size() == 3, "a grid must have three axes, got ", grid_size);
  for (const int64_t extent : grid_size) {
    TORCH_CHECK_VALUE(extent >= 1 && extent < (1 << 20),
                      "every axis of a grid must have 1 to 2^20 - 1 voxels, got ", grid_size);
  }
}

inline void check_grids(const at::Tensor& grids) {
  TORCH_CHECK_VALUE(grids.dim() == 4 && grids.scalar_type() == at::kByte,
                    "grids must be uint8 [G, X, Y, Z], got ", grids.scalar_type(), " ",
                    grids.sizes());
  check_grid_size(grids.sizes().slice(1));
}

inline void check_empty_label(int64_t empty_label) {
  TORCH_CHECK_VALUE(empty_label >= 0 && empty_label <= 255,
                    "empty_label must be in 0..255, got ", empty_label);
}

// Recomputes the masks of all blocks that overlap voxels [lower, upper), which must not be empty.
// `grids` and `masks` are contiguous.
inline void fill_masks(const at::Tensor& masks, const at::Tensor& grids, int64_t empty_label,
                       const std::array<int, 3>& lower, const std::array<int, 3>& upper) {
  const c10::DeviceGuard guard(grids.device());
  FillMasks body{};
  body.words = reinterpret_cast<uint64_t*>(masks.mutable_data_ptr<int64_t>());
  body.labels = grids.const_data_ptr<uint8_t>();
  body.layout = layout_of(grids.sizes().slice(1));
  body.empty = static_cast<uint8_t>(empty_label);
  for (body.level = 0; body.level < kLevels; ++body.level) {
    const int shift = 2 * (body.level + 1);
    for (int a = 0; a < 3; ++a) {
      body.lower[a] = lower[a] >> shift;
      body.extent[a] = ((upper[a] - 1) >> shift) - body.lower[a] + 1;
    }
    run(grids.device(), body, grids.size(0) * body.items_of_grid(), 512);
  }
}

// Returns the int64 [G, words] masks of contiguous grids already checked by check_grids().
at::Tensor make_masks(const at::Tensor& grids, int64_t empty_label);

}  // namespace ray_cast
}  // namespace opus
