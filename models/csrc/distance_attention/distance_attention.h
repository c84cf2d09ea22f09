// Distance-biased attention: definitions shared by host and device launchers.
#pragma once

#include <cstdint>

#include "common/defs.h"

namespace opus {
namespace distance_attention {

// Finaliser of MurmurHash3 (A. Appleby): every input bit flips every output bit with probability
// 1/2. It works in place, because vectors cannot be passed by value between instruction sets.
template <typename Words>
OPUS_HD void mix_bits(Words& x) {
  x = x ^ (x >> 16);
  x = x * 0x85ebca6bu;
  x = x ^ (x >> 13);
  x = x * 0xc2b2ae35u;
  x = x ^ (x >> 16);
}

// Dropout of attention weights by a hash of (seed, row, key). The backward pass recomputes the mask
// instead of storing it.
struct Dropout {
  uint32_t threshold;    // a weight is kept if its hash is at least this; 0 keeps all
  uint32_t seed_row, seed_key;
  double inverse_keep;   // 1 / probability to keep

  // `row` is the index of (head, query) within a sample.
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

// Returns a dropout without a seed.
inline Dropout make_dropout(double probability) {
  const double threshold = probability * 4294967296.0;
  return {threshold >= 4294967295.0 ? 4294967295u : static_cast<uint32_t>(threshold), 0, 0,
          1.0 / (1.0 - probability)};
}

// Returns the dropout with the seed of sample b. Seeds are in memory, so that a replayed CUDA graph
// reads the current ones.
OPUS_HD Dropout seeded(Dropout dropout, const int64_t* seeds, int64_t b) {
  if (seeds == nullptr) return dropout;
  const uint64_t seed = static_cast<uint64_t>(seeds[b]);
  dropout.seed_row = static_cast<uint32_t>(seed);
  dropout.seed_key = static_cast<uint32_t>(seed >> 32);
  return dropout;
}

}  // namespace distance_attention
}  // namespace opus
