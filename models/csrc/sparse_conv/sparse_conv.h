// Geometry of a sparse convolution, host and device.
#pragma once

#include <cstdint>

#include "common/defs.h"

namespace opus {
namespace sparse_conv {

struct Geometry {
  int64_t in_shape[3], out_shape[3], kernel[3], stride[3], padding[3];
};

OPUS_HD int64_t linear_index(const int64_t* shape, int64_t b, const int64_t* v) {
  return ((b * shape[0] + v[0]) * shape[1] + v[1]) * shape[2] + v[2];
}

// The output voxel that input voxel `in` reaches through kernel position (k0, k1, k2); false where
// it reaches none.
OPUS_HD bool reach(const Geometry& geometry, const int64_t* in, const int64_t* k, int64_t* out) {
  for (int a = 0; a < 3; ++a) {
    const int64_t shifted = in[a] + geometry.padding[a] - k[a];
    if (shifted < 0) return false;
    out[a] = shifted / geometry.stride[a];
    if (out[a] * geometry.stride[a] != shifted || out[a] >= geometry.out_shape[a]) return false;
  }
  return true;
}

}  // namespace sparse_conv
}  // namespace opus
