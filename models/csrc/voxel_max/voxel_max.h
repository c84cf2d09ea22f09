// Choosing the larger of two values with NaN above all, host and device.
#pragma once

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/defs.h"
#include "common/half_bits.h"

namespace opus {
namespace voxel_max {

// Whether `value`, of a point with a higher index than the current winner, replaces `best`.
template <typename T>
OPUS_HD bool beats(T value, T best) {
  return value > best || (value != value && best == best);
}

// Candidates of a voxel and channel as integers in the same order: by value, a NaN above all, and of
// equal values the lower index first. The largest of a set, found in any order, is so the winner
// that `beats` finds in the order of the points. 0 stands for no candidate.
OPUS_HD uint64_t candidate_key(float value, int64_t index) {
  uint32_t bits = bits_of_float(value == 0 ? 0.0f : value);  // -0 is no less than 0
  bits = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  if (value != value) bits = 0xffffffffu;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

// -1 of no candidate.
OPUS_HD int64_t candidate_index(uint64_t key) {
  return key == 0 ? -1 : static_cast<int64_t>(0xffffffffu - static_cast<uint32_t>(key));
}

constexpr int64_t kMaxPoints = 0xffffffff;  // whose indices fit into a key

// What the keys [m, channels] say: the maxima and the points they are of; 0 and -1 of no point.
struct ReadKeys {
  const uint64_t* keys;
  const float* features;  // [n, channels]
  int64_t channels;
  float* maximum;
  int64_t* winner;  // null where it is not wanted

  OPUS_HD void operator()(int64_t i) const {
    const int64_t point = candidate_index(keys[i]);
    if (winner != nullptr) winner[i] = point;
    maximum[i] = point < 0 ? 0.0f : features[point * channels + i % channels];
  }
};

// Gradients go to the winners, if they are among the n points. A point wins in its own voxel only: no
// two items meet.
struct ScatterGradients {
  const float* grad;      // [m, channels]
  const int64_t* winner;  // as grad
  int64_t channels, n;
  float* out;             // [n, channels], zero at first

  OPUS_HD void operator()(int64_t i) const {
    if (winner[i] >= 0 && winner[i] < n) out[winner[i] * channels + i % channels] = grad[i];
  }
};

// features [n, channels] and voxel_index [n] to keys [num_voxels, channels], zero at first. Points
// whose index is out of range are left out: to name them would need a wait for the device.
void find_keys_cuda(const float* features, const int64_t* voxel_index, int64_t n, int64_t channels,
                    int64_t num_voxels, uint64_t* keys, CudaStream stream);

}  // namespace voxel_max
}  // namespace opus
