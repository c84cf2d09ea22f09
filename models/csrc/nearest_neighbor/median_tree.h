// Building of a tree by median splits on torch's CPU threads.
#pragma once

#include <algorithm>

#include "common/parallel.h"
#include "nearest_neighbor/nearest_neighbor.h"

namespace opus {
namespace nearest_neighbor {

constexpr int64_t kSerialPoints = 4096;
constexpr int kTopLevels = 4;

// Median splits with ties broken by index keep the tree balanced even if all points coincide.
template <typename T>
class MedianSplits {
 public:
  MedianSplits(const Tree<T>& tree, const T* cloud) : tree_(tree) {
    for (int64_t i = 0; i < tree.count; ++i) tree.points[i] = tree_point(cloud + 3 * i, i);
    // Split the top levels one by one, then build all subtrees in parallel: this needs few barriers.
    const int top = tree.count < kSerialPoints ? 0 : std::min(tree.depth, kTopLevels);
    for (int level = 0; level < top; ++level) {
      parallel_tasks(int64_t(1) << level, [&](int64_t node) { split(level, node); });
    }
    parallel_tasks(int64_t(1) << top, [&](int64_t node) { build(top, node); });
    const MergeBoxes<T> merge{tree.boxes, 0};
    for (int64_t node = (int64_t(1) << top) - 2; node >= 0; --node) merge(node);
  }

 private:
  void split(int level, int64_t node) const {
    Point<T>* begin = tree_.points + tree_.begin_of(level, node);
    Point<T>* end = tree_.points + tree_.begin_of(level, node + 1);
    Point<T>* middle = tree_.points + tree_.begin_of(level + 1, 2 * node + 1);
    if (begin == end) return;
    T lo[3], hi[3];
    for (int a = 0; a < 3; ++a) lo[a] = hi[a] = begin->at[a];
    for (const Point<T>* p = begin + 1; p < end; ++p) {
      for (int a = 0; a < 3; ++a) {
        lo[a] = std::min(lo[a], p->at[a]);
        hi[a] = std::max(hi[a], p->at[a]);
      }
    }
    int axis = 0;
    for (int a = 1; a < 3; ++a) {
      if (hi[a] - lo[a] > hi[axis] - lo[axis]) axis = a;
    }
    std::nth_element(begin, middle, end, [axis](const Point<T>& p, const Point<T>& q) {
      return p.at[axis] < q.at[axis] || (p.at[axis] == q.at[axis] && p.index < q.index);
    });
  }

  // Splits a node down to its leaves and computes its box and all boxes below it.
  void build(int level, int64_t node) const {
    if (level == tree_.depth) return LeafBoxes<T>{tree_}(node);
    split(level, node);
    build(level + 1, 2 * node);
    build(level + 1, 2 * node + 1);
    MergeBoxes<T>{tree_.boxes, (int64_t(1) << level) - 1}(node);
  }

  Tree<T> tree_;
};

template <typename T>
void build_by_medians(const Tree<T>& tree, const T* cloud) {
  const MedianSplits<T> splits(tree, cloud);
  (void)splits;
}

}  // namespace nearest_neighbor
}  // namespace opus
