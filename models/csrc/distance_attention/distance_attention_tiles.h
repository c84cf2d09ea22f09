// Data of the host's tiles of distance-biased attention; see distance_attention_cpu_kernel.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "distance_attention/distance_attention.h"

namespace opus {
namespace distance_attention {

constexpr int kTile = 64;  // rows of a block, queries of a task

// Packed rows in the order of a space-filling curve, so that each block of kTile rows is spatially
// compact. `rows` is the number of queries rounded up to whole blocks; rows past the end are zero.
template <typename T>
struct Rows {
  int64_t batch, heads, queries, rows;
  int depth;                                       // a multiple of 4
  const T *query, *key, *value;                    // [batch, heads, rows, depth]
  const T *grad, *log_sum, *delta;                 // backward pass only; [.., depth], [..], [..]
  const T* tau;                                    // [batch, heads, rows]
  const T* centre;                                 // [batch, rows, 3]
  const uint32_t *row_hash, *key_hash;             // [batch, heads, rows], [batch, rows]
  const T *key_norm, *query_norm;                  // maxima of blocks; [batch, heads, blocks]
  T scale;
  bool may_skip;  // false if a number is not finite

  int64_t blocks() const { return rows / kTile; }
  int64_t head_row(int64_t b, int64_t h, int64_t row) const {
    return (b * heads + h) * rows + row;
  }
};

template <typename T>
struct Box {
  T low[3], high[3];
};

template <typename T>
Box<T> box_of(const T* centres, int64_t count) {
  Box<T> box;
  for (int a = 0; a < 3; ++a) {
    box.low[a] = box.high[a] = centres[a];
    for (int64_t i = 1; i < count; ++i) {
      box.low[a] = std::min(box.low[a], centres[3 * i + a]);
      box.high[a] = std::max(box.high[a], centres[3 * i + a]);
    }
  }
  return box;
}

// Smallest and largest distance between points of two boxes.
template <typename T>
void box_distances(const Box<T>& a, const Box<T>& b, T& least, T& largest) {
  T near = 0, far = 0;
  for (int i = 0; i < 3; ++i) {
    const T gap = std::max(T(0), std::max(a.low[i] - b.high[i], b.low[i] - a.high[i]));
    const T span = std::max(a.high[i] - b.low[i], b.high[i] - a.low[i]);
    near += gap * gap;
    far += span * span;
  }
  least = std::sqrt(near);
  largest = std::sqrt(far);
}

// A block may be skipped if all its logits are lower than the largest one (or log_sum) by at least
// this gap. The sum of all skipped weights is then below a quarter of the sum's rounding error.
template <typename T>
T negligible_gap(int64_t queries) {
  return -std::log(std::numeric_limits<T>::epsilon()) + T(2) +
         std::log(static_cast<T>(std::max<int64_t>(queries, 1)));
}

// Upper bound of a logit over a block, from Cauchy-Schwarz and the most favourable distance.
template <typename T>
T logit_bound(T norms, T tau, T least, T largest) {
  return norms - (tau >= 0 ? tau * least : tau * largest);
}

// Interleaves the bits of three numbers below 2^10.
inline uint32_t morton(uint32_t x, uint32_t y, uint32_t z) {
  uint32_t code = 0;
  for (int bit = 0; bit < 10; ++bit) {
    code |= ((x >> bit & 1) << (3 * bit)) | ((y >> bit & 1) << (3 * bit + 1)) |
            ((z >> bit & 1) << (3 * bit + 2));
  }
  return code;
}

// Indices of `count` centres [count, 3] along a Morton curve; deterministic.
template <typename T>
std::vector<int64_t> spatial_order(const T* centres, int64_t count) {
  std::vector<int64_t> order(count);
  for (int64_t i = 0; i < count; ++i) order[i] = i;
  if (count <= kTile) return order;
  const Box<T> box = box_of(centres, count);
  T extent = 0;
  for (int a = 0; a < 3; ++a) extent = std::max(extent, box.high[a] - box.low[a]);
  if (!(extent > 0) || !std::isfinite(extent)) return order;
  std::vector<uint32_t> code(count);
  for (int64_t i = 0; i < count; ++i) {
    uint32_t cell[3];
    for (int a = 0; a < 3; ++a) {
      const T at = (centres[3 * i + a] - box.low[a]) / extent * T(1023);
      cell[a] = at > 0 && at <= T(1023) ? static_cast<uint32_t>(at) : 0;
    }
    code[i] = morton(cell[0], cell[1], cell[2]);
  }
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return code[a] != code[b] ? code[a] < code[b] : a < b;
  });
  return order;
}

}  // namespace distance_attention
}  // namespace opus
