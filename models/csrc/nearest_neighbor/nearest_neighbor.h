// Exact nearest neighbours with a balanced tree of boxes, host and device.
//
// The bound of a box is computed with the same operations, in the same order, as a distance.
// Rounding is monotone, so the bound never exceeds the computed distance to a point of the box, and
// pruning does not change the result. The result therefore does not depend on the assignment of
// points to leaves: a CPU splits at medians, a GPU sorts along a curve.
#pragma once

#include <math.h>

#include <cstdint>

#include "common/defs.h"
#include "common/morton.h"

namespace opus {
namespace nearest_neighbor {

constexpr int64_t kLeafPoints = 10;
constexpr int kMaxDepth = 32;
constexpr int64_t kMaxPoints = (int64_t(1) << 31) - 1;  // per cloud

// 16 bytes in single precision, for one load. Non-finite points are stored as infinity.
template <typename T>
struct alignas(16) Point {
  T at[3];
  int32_t index;  // within its cloud
};

template <typename T>
struct alignas(16) Box {
  T lo[3], hi[3];
  int32_t min_index;  // lowest index inside, for ties between equal distances
};

// Tree in heap order: the children of node i are 2i + 1 and 2i + 2. Node i of level d holds the
// points [n * i / 2^d, n * (i + 1) / 2^d).
template <typename T>
struct Tree {
  Point<T>* points;
  Box<T>* boxes;
  int64_t count;
  int depth;

  OPUS_HD int64_t begin_of(int level, int64_t node) const { return count * node >> level; }
  OPUS_HD int64_t first_leaf() const { return (int64_t(1) << depth) - 1; }
};

OPUS_HD int depth_of(int64_t count) {
  int depth = 0;
  while ((kLeafPoints << depth) < count) ++depth;
  return depth;
}

OPUS_HD int64_t num_boxes(int64_t count) { return (int64_t(2) << depth_of(count)) - 1; }

template <typename T>
OPUS_HD T squared_norm(T x, T y, T z) {
  return (x * x + y * y) + z * z;
}

template <typename T>
OPUS_HD T squared_distance(const T* q, const T* p) {
  return squared_norm(q[0] - p[0], q[1] - p[1], q[2] - p[2]);
}

template <typename T>
OPUS_HD T gap(T q, T lo, T hi) {
  const T below = lo - q, above = q - hi;
  const T outside = below > above ? below : above;
  return outside > T(0) ? outside : T(0);
}

// Lower bound of the squared distance to the points of a box.
template <typename T, typename AnyBox>
OPUS_HD T squared_bound(const T* q, const AnyBox& box) {
  return squared_norm(gap(q[0], box.lo[0], box.hi[0]), gap(q[1], box.lo[1], box.hi[1]),
                      gap(q[2], box.lo[2], box.hi[2]));
}

template <typename T>
struct Nearest {
  T squared;
  int32_t index;
  int64_t slot;  // index into the tree's points; -1 for none
};

// Result of a query without a nearest point: index 0 at infinity.
template <typename T>
OPUS_HD Nearest<T> nothing() {
  return {static_cast<T>(INFINITY), 0, -1};
}

// Returns whether (squared, index) is nearer than `best`; ties go to the lower index.
template <typename T>
OPUS_HD bool is_nearer(T squared, int32_t index, const Nearest<T>& best) {
  return squared < best.squared || (squared == best.squared && index < best.index);
}

template <typename T>
OPUS_HD bool all_finite(const T* p) {
  return is_finite(p[0]) && is_finite(p[1]) && is_finite(p[2]);
}

// Converts a point of the cloud to the tree's format.
template <typename T>
OPUS_HD Point<T> tree_point(const T* p, int64_t index) {
  Point<T> point;
  const bool finite = all_finite(p);
  for (int a = 0; a < 3; ++a) point.at[a] = finite ? p[a] : static_cast<T>(INFINITY);
  point.index = static_cast<int32_t>(index);
  return point;
}

template <typename T>
OPUS_HD void scan(const Point<T>* points, int64_t begin, int64_t end, const T* q,
                  Nearest<T>& best) {
  for (int64_t slot = begin; slot < end; ++slot) {
    const Point<T> point = points[slot];
    const T squared = squared_distance(q, point.at);
    if (is_nearer(squared, point.index, best)) best = {squared, point.index, slot};
  }
}

// Updates `best`, which holds a point of the tree or none. `q` must be finite.
template <typename T>
OPUS_HD void search(const Tree<T>& tree, const T* q, Nearest<T>& best) {
  struct Pending {
    T bound;
    int32_t node;
  };
  Pending stack[kMaxDepth];
  int size = 0;
  const auto first_leaf = static_cast<int32_t>(tree.first_leaf());
  int32_t node = 0;
  T bound = squared_bound(q, tree.boxes[0]);
  while (true) {
    if (is_nearer(bound, tree.boxes[node].min_index, best)) {
      if (node < first_leaf) {
        const int32_t left = 2 * node + 1;
        const T left_bound = squared_bound(q, tree.boxes[left]);
        const T right_bound = squared_bound(q, tree.boxes[left + 1]);
        const bool right_first = right_bound < left_bound;
        stack[size++] = {right_first ? left_bound : right_bound, right_first ? left : left + 1};
        node = right_first ? left + 1 : left;
        bound = right_first ? right_bound : left_bound;
        continue;
      }
      const int64_t leaf = node - first_leaf;
      scan(tree.points, tree.begin_of(tree.depth, leaf), tree.begin_of(tree.depth, leaf + 1), q,
           best);
    }
    if (size == 0) return;
    --size;
    node = stack[size].node;
    bound = stack[size].bound;
  }
}

// ---- bodies: one item is one query, point, leaf or node

template <typename T>
struct Search {
  Tree<T> tree;
  const T* query;
  int64_t first;  // offset of the cloud among all points, added to indices
  int64_t* index;
  T* squared;

  OPUS_HD void write(int64_t i, const Nearest<T>& best) const {
    index[i] = first + best.index;
    squared[i] = best.squared;
  }

  OPUS_HD void operator()(int64_t i) const {
    const T q[3] = {query[3 * i], query[3 * i + 1], query[3 * i + 2]};
    Nearest<T> best = nothing<T>();
    if (all_finite(q)) search(tree, q, best);
    write(i, best);
  }
};

// Item i is the i-th point of a query tree; consecutive items have similar searches. Points with an
// invalid index (the bytes are not a tree) are skipped.
template <typename T>
struct SearchInOrder {
  Search<T> search;  // its `query` is not used
  const Point<T>* points;
  int64_t count;

  OPUS_HD void operator()(int64_t i) const {
    const Point<T> q = points[i];
    if (q.index < 0 || q.index >= count) return;
    Nearest<T> best = nothing<T>();
    if (is_finite(q.at[0])) nearest_neighbor::search(search.tree, q.at, best);
    search.write(q.index, best);
  }
};

template <typename T>
struct PlacePoints {
  const T* cloud;
  const int64_t* order;  // slot -> index within the cloud
  Point<T>* points;

  OPUS_HD void operator()(int64_t slot) const {
    points[slot] = tree_point(cloud + 3 * order[slot], order[slot]);
  }
};

template <typename T>
struct LeafBoxes {
  Tree<T> tree;

  OPUS_HD void operator()(int64_t leaf) const {
    Box<T> box;
    box.min_index = INT32_MAX;
    for (int a = 0; a < 3; ++a) {
      box.lo[a] = static_cast<T>(INFINITY);
      box.hi[a] = -static_cast<T>(INFINITY);
    }
    const int64_t end = tree.begin_of(tree.depth, leaf + 1);
    for (int64_t slot = tree.begin_of(tree.depth, leaf); slot < end; ++slot) {
      const Point<T> point = tree.points[slot];
      if (!is_finite(point.at[0])) continue;
      box.min_index = least_of(box.min_index, point.index);
      for (int a = 0; a < 3; ++a) {
        box.lo[a] = least_of(box.lo[a], point.at[a]);
        box.hi[a] = greatest_of(box.hi[a], point.at[a]);
      }
    }
    tree.boxes[tree.first_leaf() + leaf] = box;
  }
};

// Item i is node `first + i`. The boxes of its children must be complete.
template <typename T>
struct MergeBoxes {
  Box<T>* boxes;
  int64_t first;

  OPUS_HD void operator()(int64_t i) const {
    const Box<T> left = boxes[2 * (first + i) + 1], right = boxes[2 * (first + i) + 2];
    Box<T> box;
    box.min_index = least_of(left.min_index, right.min_index);
    for (int a = 0; a < 3; ++a) {
      box.lo[a] = least_of(left.lo[a], right.lo[a]);
      box.hi[a] = greatest_of(left.hi[a], right.hi[a]);
    }
    boxes[first + i] = box;
  }
};

}  // namespace nearest_neighbor
}  // namespace opus
