// Unique voxels through a bitmap, host and device: one bit for each voxel of the grid.
#pragma once

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/defs.h"

namespace opus {
namespace unique_voxels {

constexpr int64_t kMaxVoxels = int64_t(1) << 34;  // 2 GiB of bits
constexpr int kWordBits = 32;

OPUS_HD int count_ones(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return __popc(x);
#else
  x -= (x >> 1) & 0x55555555u;
  x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
  return static_cast<int>((((x + (x >> 4)) & 0x0F0F0F0Fu) * 0x01010101u) >> 24);
#endif
}

struct CountBits {
  const uint32_t* words;
  int32_t* counts;  // as words

  OPUS_HD void operator()(int64_t w) const { counts[w] = count_ones(words[w]); }
};

// The members of word w, in ascending order, where they come in the list of all.
struct ListMembers {
  const uint32_t* words;
  const int64_t* up_to;  // members of this word and those before
  int64_t* unique;

  OPUS_HD void operator()(int64_t w) const {
    uint32_t rest = words[w];
    int64_t* next = unique + (up_to[w] - count_ones(rest));
    for (; rest != 0; rest &= rest - 1) {
      *next++ = w * kWordBits + count_ones((rest & (~rest + 1)) - 1);
    }
  }
};

struct RankKeys {
  const int64_t* keys;  // members, all of them
  const uint32_t* words;
  const int64_t* up_to;
  int64_t* rank;        // as keys

  OPUS_HD void operator()(int64_t i) const {
    const int64_t w = keys[i] / kWordBits;
    rank[i] = up_to[w] - count_ones(words[w] >> (keys[i] % kWordBits));
  }
};

// Sets the bits of keys [n] in words, zero at first. first_bad, n at first, becomes the index of
// the first key outside [0, num_keys), if there is one.
void mark_keys_cuda(const int64_t* keys, int64_t n, int64_t num_keys, uint32_t* words,
                    int64_t* first_bad, CudaStream stream);

}  // namespace unique_voxels
}  // namespace opus
