// Unique voxels from a bitmap with one bit per voxel of the grid, host and device.
#pragma once

#include <cstdint>

#include "common/bit_set.h"
#include "common/cuda_launch.h"
#include "common/defs.h"

namespace opus {
namespace unique_voxels {

constexpr int64_t kMaxVoxels = int64_t(1) << 34;  // 2 GiB of bits
constexpr int kWordBits = bit_set::kWordBits;

struct RankKeys {
  const int64_t* keys;  // all are members
  const uint32_t* words;
  const int64_t* up_to;
  int64_t* rank;        // shape of keys

  OPUS_HD void operator()(int64_t i) const { rank[i] = bit_set::rank(words, up_to, keys[i]); }
};

// Sets the bits of keys [n] in words, initially zero. first_bad, initially n, becomes the index of
// the first key outside [0, num_keys), if any.
void mark_keys_cuda(const int64_t* keys, int64_t n, int64_t num_keys, uint32_t* words,
                    int64_t* first_bad, CudaStream stream);

}  // namespace unique_voxels
}  // namespace opus
