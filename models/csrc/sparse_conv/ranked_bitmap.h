// Bitmap of a set of voxels with ranks: sorted list, membership test and index look-up with 1.5
// bits per voxel. It fits into the cache; a table of indices would not.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace opus {

// Own implementation: std::popcount calls a library function if no processor flag is set.
inline int count_ones(uint64_t x) {
  x -= (x >> 1) & 0x5555555555555555ull;
  x = (x & 0x3333333333333333ull) + ((x >> 2) & 0x3333333333333333ull);
  x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0Full;
  return static_cast<int>((x * 0x0101010101010101ull) >> 56);
}

class RankedBitmap {
 public:
  explicit RankedBitmap(int64_t num_bits) : words_((num_bits + 63) / 64) {}

  bool test(int64_t i) const { return words_[i >> 6] >> (i & 63) & 1; }
  void set(int64_t i) { words_[i >> 6] |= uint64_t(1) << (i & 63); }

  // Returns the members in i .. i + count as bits 0 .. count; the range is in the map, count <= 32.
  uint32_t window(int64_t i, int count) const {
    const int shift = static_cast<int>(i & 63);
    uint64_t bits = words_[i >> 6] >> shift;
    if (shift + count > 64) bits |= words_[(i >> 6) + 1] << (64 - shift);
    return static_cast<uint32_t>(bits & ((uint64_t(1) << count) - 1));
  }
  // Sets i .. i + count; the range is in the map, count <= 32.
  void set_window(int64_t i, int count) {
    const int shift = static_cast<int>(i & 63);
    const uint64_t bits = (uint64_t(1) << count) - 1;
    words_[i >> 6] |= bits << shift;
    if (shift + count > 64) words_[(i >> 6) + 1] |= bits >> (64 - shift);
  }

  // Call after the last set() and before rank(). Returns the number of members.
  int64_t index() {
    before_.resize(words_.size());
    int64_t total = 0;
    for (size_t w = 0; w < words_.size(); ++w) {
      before_[w] = static_cast<uint32_t>(total);
      total += count_ones(words_[w]);
    }
    return total;
  }

  // Returns the number of members below i.
  int64_t rank(int64_t i) const {
    const uint64_t below = words_[i >> 6] & ((uint64_t(1) << (i & 63)) - 1);
    return before_[i >> 6] + count_ones(below);
  }

  // Calls visit(i) for each member in ascending order.
  template <typename Visit>
  void for_each(const Visit& visit) const {
    for (size_t w = 0; w < words_.size(); ++w) {
      for (uint64_t rest = words_[w]; rest != 0; rest &= rest - 1) {
        visit(static_cast<int64_t>(w) * 64 + std::countr_zero(rest));
      }
    }
  }

 private:
  std::vector<uint64_t> words_;
  std::vector<uint32_t> before_;
};

}  // namespace opus
