// Maximum with NaN above all numbers, host and device.
#pragma once

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/defs.h"
#include "common/half_bits.h"

namespace opus {
namespace voxel_max {

// Returns whether `value` replaces `best`; its point has a higher index than the current winner.
template <typename T>
OPUS_HD bool beats(T value, T best) {
  return value > best || (value != value && best == best);
}

// Encodes a candidate as an integer. Keys are ordered by value, with NaN above all; of equal
// values, the lower index has the larger key. The largest key is therefore the winner that `beats`
// finds in point order, for any processing order. 0 means no candidate.
OPUS_HD uint64_t candidate_key(float value, int64_t index) {
  uint32_t bits = bits_of_float(value == 0 ? 0.0f : value);  // -0 equals 0
  bits = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  if (value != value) bits = 0xffffffffu;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

// Returns the index of a key; -1 for no candidate.
OPUS_HD int64_t candidate_index(uint64_t key) {
  return key == 0 ? -1 : static_cast<int64_t>(0xffffffffu - static_cast<uint32_t>(key));
}

constexpr int64_t kMaxPoints = 0xffffffff;  // indices must fit into a key

// Decodes keys [m, channels] to maxima and winning points; 0 and -1 without a point.
struct ReadKeys {
  const uint64_t* keys;
  const float* features;  // [n, channels]
  int64_t channels;
  float* maximum;
  int64_t* winner;  // null if not requested

  OPUS_HD void operator()(int64_t i) const {
    const int64_t point = candidate_index(keys[i]);
    if (winner != nullptr) winner[i] = point;
    maximum[i] = point < 0 ? 0.0f : features[point * channels + i % channels];
  }
};

// Writes the gradients to the winners that are among the n points. A point wins only in its own
// voxel, so items do not conflict.
struct ScatterGradients {
  const float* grad;      // [m, channels]
  const int64_t* winner;  // shape of grad
  int64_t channels, n;
  float* out;             // [n, channels], initially zero

  OPUS_HD void operator()(int64_t i) const {
    if (winner[i] >= 0 && winner[i] < n) out[winner[i] * channels + i % channels] = grad[i];
  }
};

// Computes keys [num_voxels, channels], initially zero, from features [n, channels] and voxel_index
// [n]. Points with an index out of range are ignored: an error would require a synchronisation.
void find_keys_cuda(const float* features, const int64_t* voxel_index, int64_t n, int64_t channels,
                    int64_t num_voxels, uint64_t* keys, CudaStream stream);

}  // namespace voxel_max
}  // namespace opus
