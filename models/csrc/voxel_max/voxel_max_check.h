// Checks of the arguments of the voxel maximum, for all devices.
#pragma once

#include <ATen/core/Tensor.h>

namespace opus {
namespace voxel_max {

inline void check(const at::Tensor& features, const at::Tensor& voxel_index, int64_t num_voxels) {
  TORCH_CHECK_VALUE(features.dim() == 2, "features must be [n, C], got ", features.sizes());
  TORCH_CHECK_VALUE(voxel_index.dim() == 1 && voxel_index.size(0) == features.size(0) &&
                        voxel_index.scalar_type() == at::kLong,
                    "voxel_index must be int64 [", features.size(0), "], got ",
                    voxel_index.scalar_type(), " ", voxel_index.sizes());
  TORCH_CHECK_VALUE(num_voxels >= 0, "num_voxels must not be negative, got ", num_voxels);
}

}  // namespace voxel_max
}  // namespace opus
