// Checks of the arguments of unique voxels, for all devices.
#pragma once

#include <ATen/core/Tensor.h>

#include "unique_voxels/unique_voxels.h"

namespace opus {
namespace unique_voxels {

inline void check(const at::Tensor& keys, int64_t num_keys) {
  TORCH_CHECK_VALUE(keys.dim() == 1 && keys.scalar_type() == at::kLong,
                    "keys must be int64 [n], got ", keys.scalar_type(), " ", keys.sizes());
  TORCH_CHECK_VALUE(num_keys >= 0 && num_keys <= kMaxVoxels, "num_keys must lie in [0, ",
                    kMaxVoxels, "], got ", num_keys);
}

}  // namespace unique_voxels
}  // namespace opus
