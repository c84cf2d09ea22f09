// Choosing the larger of two values with NaN above all, host and device.
#pragma once

#include "common/defs.h"

namespace opus {
namespace voxel_max {

// Whether `value`, of a point with a higher index than the current winner, replaces `best`.
template <typename T>
OPUS_HD bool beats(T value, T best) {
  return value > best || (value != value && best == best);
}

}  // namespace voxel_max
}  // namespace opus
