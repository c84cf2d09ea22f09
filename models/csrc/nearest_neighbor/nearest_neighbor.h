// Distances and their bounds for exact nearest neighbours, host and device.
//
// The bound of a box is computed with the same operations, in the same order, as a distance. As
// rounding is monotone, it never exceeds the computed distance to any point of the box, so pruning
// by it loses nothing, not even in the last bit.
#pragma once

#include <cstdint>

#include "common/defs.h"

namespace opus {
namespace nearest_neighbor {

template <typename T>
struct Box {
  T lo[3], hi[3];
  int64_t min_index;  // lowest reference index inside: decides between equal distances
};

template <typename T>
OPUS_HD T squared_norm(T x, T y, T z) {
  return (x * x + y * y) + z * z;
}

template <typename T>
OPUS_HD T squared_distance(const T* q, T x, T y, T z) {
  return squared_norm(q[0] - x, q[1] - y, q[2] - z);
}

template <typename T>
OPUS_HD T gap(T q, T lo, T hi) {
  const T below = lo - q, above = q - hi;
  const T outside = below > above ? below : above;
  return outside > T(0) ? outside : T(0);
}

// Least squared distance that a point of the box can have.
template <typename T>
OPUS_HD T squared_bound(const T* q, const Box<T>& box) {
  return squared_norm(gap(q[0], box.lo[0], box.hi[0]), gap(q[1], box.lo[1], box.hi[1]),
                      gap(q[2], box.lo[2], box.hi[2]));
}

template <typename T>
struct Nearest {
  T squared;
  int64_t index;
};

// Whether (squared, index) is nearer than `best`; of equally near points the lower index is.
template <typename T>
OPUS_HD bool is_nearer(T squared, int64_t index, const Nearest<T>& best) {
  return squared < best.squared || (squared == best.squared && index < best.index);
}

}  // namespace nearest_neighbor
}  // namespace opus
