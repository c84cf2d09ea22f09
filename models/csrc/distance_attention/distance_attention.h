// Attention that fades with distance: what host and device launchers share.
#pragma once

#include <cstdint>

#include "common/defs.h"

namespace opus {
namespace distance_attention {

// Finaliser of MurmurHash3 (A. Appleby): every input bit changes every output bit half the time.
// In place, since vectors of words cannot be passed by value between instruction sets.
template <typename Words>
OPUS_HD void mix_bits(Words& x) {
  x = x ^ (x >> 16);
  x = x * 0x85ebca6bu;
  x = x ^ (x >> 13);
  x = x * 0xc2b2ae35u;
  x = x ^ (x >> 16);
}

// Dropout of attention weights decides by a hash of (seed, row, key), so that the backward pass
// finds the decisions again without their being stored.
struct Dropout {
  uint32_t threshold;    // a weight is kept where its hash reaches this; 0 keeps all
  uint32_t seed_row, seed_key;
  double inverse_keep;   // 1 / probability to keep

  // `row` counts (head, query) of a sample.
  OPUS_HD uint32_t row_hash(int64_t row) const {
    uint32_t word = static_cast<uint32_t>(row) * 0x9e3779b1u + seed_row;
    mix_bits(word);
    return word;
  }
  OPUS_HD uint32_t key_hash(int64_t key) const {
    uint32_t word = static_cast<uint32_t>(key) * 0x85ebca77u + seed_key;
    mix_bits(word);
    return word;
  }
};

// Without a seed yet.
inline Dropout make_dropout(double probability) {
  const double threshold = probability * 4294967296.0;
  return {threshold >= 4294967295.0 ? 4294967295u : static_cast<uint32_t>(threshold), 0, 0,
          1.0 / (1.0 - probability)};
}

// With the seed of sample b. Seeds lie in memory, so that a CUDA graph that is replayed reads those
// of the replay.
OPUS_HD Dropout seeded(Dropout dropout, const int64_t* seeds, int64_t b) {
  if (seeds == nullptr) return dropout;
  const uint64_t seed = static_cast<uint64_t>(seeds[b]);
  dropout.seed_row = static_cast<uint32_t>(seed);
  dropout.seed_key = static_cast<uint32_t>(seed >> 32);
  return dropout;
}

}  // namespace distance_attention
}  // namespace opus
