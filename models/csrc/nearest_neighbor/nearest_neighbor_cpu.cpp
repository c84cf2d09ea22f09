#include "nearest_neighbor/nearest_neighbor.h"

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "common/parallel.h"

namespace opus {
namespace {

using nearest_neighbor::Box;
using nearest_neighbor::Nearest;

constexpr int64_t kLeafPoints = 10;
constexpr int64_t kQueriesPerTask = 1024;
constexpr int64_t kSerialPoints = 4096;
constexpr int kTopLevels = 4;
constexpr int kMaxDepth = 48;

// A balanced k-d tree in heap order: the children of node i are 2i + 1 and 2i + 2. Node i of level
// d holds the points [n * i / 2^d, n * (i + 1) / 2^d). Splitting at the median, with ties broken by
// index, keeps the tree balanced even where all points coincide.
template <typename T>
class Tree {
 public:
  Tree(const T* reference, int64_t count) {
    points_.reserve(count);
    for (int64_t i = 0; i < count; ++i) {
      const T* p = reference + 3 * i;
      if (std::isfinite(p[0]) && std::isfinite(p[1]) && std::isfinite(p[2])) {
        points_.push_back({{p[0], p[1], p[2]}, i});
      }
    }
    const auto n = static_cast<int64_t>(points_.size());
    while ((kLeafPoints << depth_) < n) ++depth_;
    boxes_.resize((int64_t(2) << depth_) - 1);
    // A few levels together, then every subtree on its own: few waits of one thread for another.
    const int top = n < kSerialPoints ? 0 : std::min(depth_, kTopLevels);
    for (int level = 0; level < top; ++level) {
      parallel_tasks(int64_t(1) << level, [&](int64_t node) { split(level, node); });
    }
    parallel_tasks(int64_t(1) << top, [&](int64_t node) { build(top, node); });
    for (int64_t node = (int64_t(1) << top) - 2; node >= 0; --node) {
      boxes_[node] = merge(boxes_[2 * node + 1], boxes_[2 * node + 2]);
    }
  }

  bool empty() const { return points_.empty(); }

  // Improves `best`, which holds some reference point or (infinity, 0).
  void search(const T* q, Nearest<T>& best) const {
    struct Pending {
      int64_t node;
      T bound;
    };
    Pending stack[kMaxDepth];
    int size = 0;
    const int64_t first_leaf = (int64_t(1) << depth_) - 1;
    int64_t node = 0;
    T bound = nearest_neighbor::squared_bound(q, boxes_[0]);
    while (true) {
      if (nearest_neighbor::is_nearer(bound, boxes_[node].min_index, best)) {
        if (node < first_leaf) {
          int64_t near = 2 * node + 1, far = near + 1;
          T near_bound = nearest_neighbor::squared_bound(q, boxes_[near]);
          T far_bound = nearest_neighbor::squared_bound(q, boxes_[far]);
          if (far_bound < near_bound) {
            std::swap(near, far);
            std::swap(near_bound, far_bound);
          }
          stack[size++] = {far, far_bound};
          node = near;
          bound = near_bound;
          continue;
        }
        scan(node - first_leaf, q, best);
      }
      if (size == 0) return;
      --size;
      node = stack[size].node;
      bound = stack[size].bound;
    }
  }

 private:
  struct Point {
    T at[3];
    int64_t index;
  };

  int64_t begin_of(int level, int64_t node) const {
    return static_cast<int64_t>(points_.size()) * node >> level;
  }

  void split(int level, int64_t node) {
    Point* begin = points_.data() + begin_of(level, node);
    Point* end = points_.data() + begin_of(level, node + 1);
    Point* middle = points_.data() + begin_of(level + 1, 2 * node + 1);
    T lo[3], hi[3];
    for (int a = 0; a < 3; ++a) lo[a] = hi[a] = begin->at[a];
    for (const Point* p = begin + 1; p < end; ++p) {
      for (int a = 0; a < 3; ++a) {
        lo[a] = std::min(lo[a], p->at[a]);
        hi[a] = std::max(hi[a], p->at[a]);
      }
    }
    int axis = 0;
    for (int a = 1; a < 3; ++a) {
      if (hi[a] - lo[a] > hi[axis] - lo[axis]) axis = a;
    }
    std::nth_element(begin, middle, end, [axis](const Point& p, const Point& q) {
      return p.at[axis] < q.at[axis] || (p.at[axis] == q.at[axis] && p.index < q.index);
    });
  }

  // Splits a node down to its leaves and sets all boxes below it and its own.
  void build(int level, int64_t node) {
    if (level == depth_) {
      finish_leaf(node);
      return;
    }
    split(level, node);
    build(level + 1, 2 * node);
    build(level + 1, 2 * node + 1);
    const int64_t heap = (int64_t(1) << level) - 1 + node;
    boxes_[heap] = merge(boxes_[2 * heap + 1], boxes_[2 * heap + 2]);
  }

  void finish_leaf(int64_t leaf) {
    const Point* begin = points_.data() + begin_of(depth_, leaf);
    const Point* end = points_.data() + begin_of(depth_, leaf + 1);
    Box<T>& box = boxes_[(int64_t(1) << depth_) - 1 + leaf];
    box.min_index = std::numeric_limits<int64_t>::max();
    for (int a = 0; a < 3; ++a) {
      box.lo[a] = std::numeric_limits<T>::infinity();
      box.hi[a] = -std::numeric_limits<T>::infinity();
    }
    for (const Point* p = begin; p < end; ++p) {
      box.min_index = std::min(box.min_index, p->index);
      for (int a = 0; a < 3; ++a) {
        box.lo[a] = std::min(box.lo[a], p->at[a]);
        box.hi[a] = std::max(box.hi[a], p->at[a]);
      }
    }
  }

  static Box<T> merge(const Box<T>& left, const Box<T>& right) {
    Box<T> box;
    box.min_index = std::min(left.min_index, right.min_index);
    for (int a = 0; a < 3; ++a) {
      box.lo[a] = std::min(left.lo[a], right.lo[a]);
      box.hi[a] = std::max(left.hi[a], right.hi[a]);
    }
    return box;
  }

  void scan(int64_t leaf, const T* q, Nearest<T>& best) const {
    const Point* end = points_.data() + begin_of(depth_, leaf + 1);
    for (const Point* p = points_.data() + begin_of(depth_, leaf); p < end; ++p) {
      const T squared = nearest_neighbor::squared_distance(q, p->at[0], p->at[1], p->at[2]);
      if (nearest_neighbor::is_nearer(squared, p->index, best)) best = {squared, p->index};
    }
  }

  std::vector<Point> points_;
  std::vector<Box<T>> boxes_;
  int depth_ = 0;
};

template <typename T>
void find_all(const at::Tensor& query, const at::Tensor& reference, at::Tensor& index,
              at::Tensor& squared) {
  const T* q = query.const_data_ptr<T>();
  const T* ref = reference.const_data_ptr<T>();
  int64_t* out_index = index.data_ptr<int64_t>();
  T* out_squared = squared.data_ptr<T>();
  const int64_t n = query.size(0);
  const Tree<T> tree(ref, reference.size(0));
  const Nearest<T> none{std::numeric_limits<T>::infinity(), 0};
  parallel_tasks(num_blocks(n, kQueriesPerTask), [&](int64_t task) {
    const int64_t end = std::min(n, (task + 1) * kQueriesPerTask);
    int64_t previous = -1;
    for (int64_t i = task * kQueriesPerTask; i < end; ++i) {
      const T* p = q + 3 * i;
      Nearest<T> best = none;
      if (!tree.empty() && std::isfinite(p[0]) && std::isfinite(p[1]) && std::isfinite(p[2])) {
        // Neighbouring queries often share their answer: it is a good first bound.
        if (previous >= 0) {
          const T* r = ref + 3 * previous;
          const T start = nearest_neighbor::squared_distance(p, r[0], r[1], r[2]);
          if (start < best.squared) best = {start, previous};
        }
        tree.search(p, best);
        if (best.squared < none.squared) previous = best.index;
      }
      out_index[i] = best.index;
      out_squared[i] = best.squared;
    }
  });
}

std::tuple<at::Tensor, at::Tensor> nearest_neighbor_cpu(const at::Tensor& query,
                                                        const at::Tensor& reference) {
  TORCH_CHECK_VALUE(query.dim() == 2 && query.size(1) == 3, "query must be [N, 3], got ",
                    query.sizes());
  TORCH_CHECK_VALUE(reference.dim() == 2 && reference.size(1) == 3 && reference.size(0) >= 1,
                    "reference must be [M, 3] with M >= 1, got ", reference.sizes());
  TORCH_CHECK_VALUE(query.scalar_type() == reference.scalar_type(),
                    "query and reference must have one dtype, got ", query.scalar_type(), " and ",
                    reference.scalar_type());
  at::Tensor index = at::empty({query.size(0)}, query.options().dtype(at::kLong));
  at::Tensor squared = at::empty({query.size(0)}, query.options());
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "nearest_neighbor", [&] {
    find_all<scalar_t>(query.contiguous(), reference.contiguous(), index, squared);
  });
  return {index, squared};
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) { m.impl("nearest_neighbor", &nearest_neighbor_cpu); }

}  // namespace opus
