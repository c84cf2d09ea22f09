// Bitmaps of integer sets, host and device: membership, rank and list of members.
//
// up_to[w] is the number of members in words 0 to w, so the rank of a member needs one word and one
// entry. The last word of a set is empty, so that the rank of a number past the end is correct too.
#pragma once

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/defs.h"

namespace opus {
namespace bit_set {

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

OPUS_HD bool test(const uint32_t* words, int64_t i) {
  return (words[i / kWordBits] >> (i % kWordBits) & 1u) != 0;
}

// Returns the number of members below i.
OPUS_HD int64_t rank(const uint32_t* words, const int64_t* up_to, int64_t i) {
  const int64_t w = i / kWordBits;
  const int at_or_above = count_ones(words[w] >> (i % kWordBits));
  // Unsigned: no overflow for any counts passed by a caller.
  return static_cast<int64_t>(static_cast<uint64_t>(up_to[w]) - static_cast<uint64_t>(at_or_above));
}

struct CountBits {
  const uint32_t* words;
  int32_t* counts;  // one per word

  OPUS_HD void operator()(int64_t w) const { counts[w] = count_ones(words[w]); }
};

// Writes the members of word w to their places in the ascending list of all members. Places from
// `limit` on are skipped.
struct ListMembers {
  const uint32_t* words;
  const int64_t* up_to;
  int64_t* members;
  int64_t limit;

  OPUS_HD void operator()(int64_t w) const {
    uint32_t rest = words[w];
    int64_t next = up_to[w] - count_ones(rest);
    for (; rest != 0 && next < limit; rest &= rest - 1) {
      members[next++] = w * kWordBits + count_ones((rest & (~rest + 1)) - 1);
    }
  }
};

}  // namespace bit_set
}  // namespace opus
