// Sets of whole numbers as one bit each, host and device: membership, rank, and the list of members.
//
// up_to[w] holds the members of word w and of those before, so that the rank of a member needs one
// word and one entry. The last word of a set is empty: the rank of a number past the end is right too.
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

// How many members are below i.
OPUS_HD int64_t rank(const uint32_t* words, const int64_t* up_to, int64_t i) {
  const int64_t w = i / kWordBits;
  const int at_or_above = count_ones(words[w] >> (i % kWordBits));
  // Unsigned: whatever a caller's counts hold.
  return static_cast<int64_t>(static_cast<uint64_t>(up_to[w]) - static_cast<uint64_t>(at_or_above));
}

struct CountBits {
  const uint32_t* words;
  int32_t* counts;  // as words

  OPUS_HD void operator()(int64_t w) const { counts[w] = count_ones(words[w]); }
};

// The members of word w, in ascending order, where they come in the list of all; those that come at
// `limit` or after are left out.
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
