// Geometry of a sparse convolution, host and device.
#pragma once

#include <cstdint>
#include <limits>

#include "common/defs.h"

namespace opus {
namespace sparse_conv {

// Largest number of voxels of a set, because pairs hold 32-bit indices. The numbers of pairs,
// feature values and voxels of a grid may be larger.
constexpr int64_t kMaxActive = std::numeric_limits<int32_t>::max();

struct Geometry {
  int64_t in_shape[3], out_shape[3], kernel[3], stride[3], padding[3];
};

OPUS_HD int64_t linear_index(const int64_t* shape, int64_t b, const int64_t* v) {
  return ((b * shape[0] + v[0]) * shape[1] + v[1]) * shape[2] + v[2];
}

// Returns the output index along `axis` reached by input index `in` through kernel index k; -1 for
// none.
OPUS_HD int64_t reach(const Geometry& geometry, int axis, int64_t in, int64_t k) {
  const int64_t shifted = in + geometry.padding[axis] - k;
  const int64_t stride = geometry.stride[axis];
  if (shifted < 0) return -1;
  const int64_t out = stride == 1 ? shifted : shifted / stride;
  return out * stride == shifted && out < geometry.out_shape[axis] ? out : -1;
}

}  // namespace sparse_conv
}  // namespace opus
