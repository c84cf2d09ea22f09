// Checks of the arguments of the voxel maximum, for all devices.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>

namespace opus {
namespace voxel_max {

constexpr int64_t kMaxVoxels = std::numeric_limits<int32_t>::max();

inline void check(const at::Tensor& features, const at::Tensor& voxel_index, int64_t num_voxels) {
  TORCH_CHECK_VALUE(features.dim() == 2, "features must be [n, C], got ", features.sizes());
  TORCH_CHECK_VALUE(voxel_index.dim() == 1 && voxel_index.size(0) == features.size(0) &&
                        voxel_index.scalar_type() == at::kLong,
                    "voxel_index must be int64 [", features.size(0), "], got ",
                    voxel_index.scalar_type(), " ", voxel_index.sizes());
  TORCH_CHECK_VALUE(num_voxels >= 0 && num_voxels <= kMaxVoxels, "num_voxels must lie in [0, ",
                    kMaxVoxels, "], got ", num_voxels);
}

// The kernels check the indices of `winner`.
inline void check_backward(const at::Tensor& grad, const at::Tensor& winner, int64_t num_points) {
  TORCH_CHECK_VALUE(winner.dim() == 2 && winner.scalar_type() == at::kLong,
                    "winner must be int64 [m, C], got ", winner.scalar_type(), " ",
                    winner.sizes());
  TORCH_CHECK_VALUE(grad.sizes() == winner.sizes(), "grad must be ", winner.sizes(), ", got ",
                    grad.sizes());
  TORCH_CHECK_VALUE(num_points >= 0, "num_points must not be negative, got ", num_points);
}

}  // namespace voxel_max
}  // namespace opus
