#include "nearest_neighbor/nearest_neighbor.h"

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "common/curve_order.h"
#include "common/launch.h"
#define OPUS_WITH_AVX512
#include "common/targets.h"
#include "nearest_neighbor/median_tree.h"
#include "nearest_neighbor/search_avx2.h"
#include "nearest_neighbor/tiled.h"

#define OPUS_KERNEL_HEADER "nearest_neighbor/packet_search.h"
#include "common/for_each_target.h"

namespace opus {
namespace {

using nearest_neighbor::Box;
using nearest_neighbor::Nearest;
using nearest_neighbor::Point;
using nearest_neighbor::Search;
using nearest_neighbor::SearchInOrder;
using nearest_neighbor::Tree;

constexpr int64_t kQueriesPerTask = 1024;
constexpr int64_t kPointsPerTask = 4096;
constexpr int kCodeBits = 21;  // per axis

template <typename T>
int64_t bytes_of(int64_t count) {
  return count * static_cast<int64_t>(sizeof(Point<T>)) +
         nearest_neighbor::num_boxes(count) * static_cast<int64_t>(sizeof(Box<T>));
}

template <typename T>
int64_t bytes_of_all(at::IntArrayRef lengths) {
  int64_t bytes = 0;
  for (const int64_t length : lengths) bytes += bytes_of<T>(length);
  return bytes;
}

// Returns the tree of a cloud of `count` points stored at `memory`.
template <typename T>
Tree<T> tree_at(uint8_t* memory, int64_t count) {
  auto* points = reinterpret_cast<Point<T>*>(memory);
  return {points, reinterpret_cast<Box<T>*>(points + count), count,
          nearest_neighbor::depth_of(count)};
}

// Returns the sum of the lengths.
int64_t check_lengths(const char* name, at::IntArrayRef lengths) {
  int64_t total = 0;
  for (const int64_t length : lengths) {
    TORCH_CHECK_VALUE(length >= 0 && length <= nearest_neighbor::kMaxPoints, "lengths of ", name,
                      " must be in 0..2^31 - 1, got ", lengths);
    total += length;
  }
  return total;
}

void check_cloud(const at::Tensor& points, const char* name, at::IntArrayRef lengths) {
  TORCH_CHECK_VALUE(points.dim() == 2 && points.size(1) == 3, name, " must be [n, 3], got ",
                    points.sizes());
  TORCH_CHECK_VALUE(
      points.scalar_type() == at::kFloat || points.scalar_type() == at::kDouble, name,
      " must be float32 or float64, got ", points.scalar_type());
  TORCH_CHECK_VALUE(check_lengths(name, lengths) == points.size(0), "lengths of ", name,
                    " must add up to ", points.size(0), " points, got ", lengths);
}

// Assigns the points to leaves along a curve and computes the boxes from the leaves up.
template <typename T>
void build_along_curve(const Tree<T>& tree, const at::Tensor& points) {
  const c10::Device device = points.device();
  const at::Tensor order = order_along_curve<T>(points, kCodeBits);
  run(device,
      nearest_neighbor::PlacePoints<T>{points.const_data_ptr<T>(), order.const_data_ptr<int64_t>(),
                                       tree.points},
      tree.count, kPointsPerTask);
  run(device, nearest_neighbor::LeafBoxes<T>{tree}, tree.first_leaf() + 1, kPointsPerTask);
  for (int level = tree.depth - 1; level >= 0; --level) {
    const int64_t nodes = int64_t(1) << level;
    run(device, nearest_neighbor::MergeBoxes<T>{tree.boxes, nodes - 1}, nodes, kPointsPerTask);
  }
}

at::Tensor point_tree(const at::Tensor& points, at::IntArrayRef lengths, bool along_curve) {
  check_cloud(points, "points", lengths);
  const c10::DeviceGuard guard(points.device());
  const at::Tensor rows = points.contiguous();
  at::Tensor memory;
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "point_tree", [&] {
    memory = at::empty({bytes_of_all<scalar_t>(lengths)}, rows.options().dtype(at::kByte));
    auto* at_cloud = memory.mutable_data_ptr<uint8_t>();
    int64_t first = 0;
    for (const int64_t length : lengths) {
      const Tree<scalar_t> tree = tree_at<scalar_t>(at_cloud, length);
      const at::Tensor cloud = rows.narrow(0, first, length);
      if (length > 0) {
        if (along_curve || runs_on_gpu(rows.device())) {
          build_along_curve(tree, cloud);
        } else {
          nearest_neighbor::build_by_medians(tree, cloud.const_data_ptr<scalar_t>());
        }
      }
      at_cloud += bytes_of<scalar_t>(length);
      first += length;
    }
  });
  return memory;
}

template <typename T>
void search_tree(const Tree<T>& tree, const T* q, Nearest<T>& best) {
#if defined(OPUS_HAS_AVX2_KERNELS)
  if constexpr (std::is_same_v<T, float>) {
    if (use_avx2()) return nearest_neighbor::avx2::search(tree, q, best);
  }
#endif
  nearest_neighbor::search(tree, q, best);
}

template <typename T>
void search_on_cpu(const Search<T>& body, int64_t count) {
  parallel_tasks(num_blocks(count, kQueriesPerTask), [&](int64_t task) {
    const int64_t end = std::min(count, (task + 1) * kQueriesPerTask);
    int64_t previous = -1;
    for (int64_t i = task * kQueriesPerTask; i < end; ++i) {
      const T* q = body.query + 3 * i;
      Nearest<T> best = nearest_neighbor::nothing<T>();
      if (nearest_neighbor::all_finite(q)) {
        // Consecutive queries often have the same nearest point, which is a good initial bound.
        if (previous >= 0) {
          nearest_neighbor::scan(body.tree.points, previous, previous + 1, q, best);
        }
        search_tree(body.tree, q, best);
        if (best.slot >= 0) previous = best.slot;
      }
      body.write(i, best);
    }
  });
}

template <typename T>
void search_all(c10::Device device, const Search<T>& body, int64_t count) {
  if (!runs_on_gpu(device)) return search_on_cpu(body, count);
  if constexpr (kWithCuda) launch_cuda(body, count, current_stream(device));
}

void check_batches(at::IntArrayRef query_lengths, at::IntArrayRef lengths) {
  TORCH_CHECK_VALUE(query_lengths.size() == lengths.size(),
                    "query and reference must have the same number of samples, got ",
                    query_lengths.size(), " and ", lengths.size());
  for (size_t b = 0; b < lengths.size(); ++b) {
    TORCH_CHECK_VALUE(lengths[b] >= 1 || query_lengths[b] == 0, "sample ", b, " has ",
                      query_lengths[b], " queries and no reference point");
  }
}

// Checks the indices of a tree, since results are written to these positions.
template <typename T>
void check_indices(const Tree<T>& queries) {
  for (int64_t slot = 0; slot < queries.count; ++slot) {
    const int64_t index = queries.points[slot].index;
    TORCH_CHECK_VALUE(index >= 0 && index < queries.count,
                      "query must be bytes of point_tree, point ", slot, " has index ", index,
                      " of ", queries.count);
  }
}

void search_in_order(c10::Device device, const Tree<float>& queries, const Search<float>& body) {
  if (runs_on_gpu(device)) {
    const SearchInOrder<float> in_order{body, queries.points, queries.count};
    return run(device, in_order, queries.count, kQueriesPerTask);
  }
  check_indices(queries);
  parallel_tasks(num_blocks(queries.count, kQueriesPerTask), [&](int64_t task) {
    const int64_t begin = task * kQueriesPerTask;
    OPUS_CALL_TARGET(nearest_packets::nearest_of, queries, begin,
                     std::min(queries.count, begin + kQueriesPerTask), body.tree, body.first,
                     body.index, body.squared);
  });
}

void search_in_order(c10::Device device, const Tree<double>& queries, const Search<double>& body) {
  run(device, SearchInOrder<double>{body, queries.points, queries.count}, queries.count,
      kQueriesPerTask);
}

// Trees of several clouds, stored one after another.
template <typename T>
class Trees {
 public:
  Trees(const at::Tensor& memory, const char* name, at::IntArrayRef lengths)
      : next_(const_cast<uint8_t*>(memory.const_data_ptr<uint8_t>())) {
    TORCH_CHECK_VALUE(memory.numel() == bytes_of_all<T>(lengths), name, " must be the ",
                      bytes_of_all<T>(lengths), " bytes of point_tree for ",
                      c10::CppTypeToScalarType<T>::value, " points and lengths ", lengths, ", got ",
                      memory.sizes());
    TORCH_CHECK_VALUE(reinterpret_cast<uintptr_t>(next_) % alignof(Point<T>) == 0, name,
                      " must start at a multiple of ", alignof(Point<T>), " bytes");
  }

  Tree<T> next(int64_t count) {
    const Tree<T> tree = tree_at<T>(next_, count);
    next_ += bytes_of<T>(count);
    return tree;
  }

 private:
  uint8_t* next_;
};

void check_tree(const at::Tensor& tree, const char* name) {
  TORCH_CHECK_VALUE(tree.scalar_type() == at::kByte && tree.dim() == 1 && tree.is_contiguous(), name,
                    " must be contiguous bytes of point_tree, got ", tree.scalar_type(), " ",
                    tree.sizes());
}

std::tuple<at::Tensor, at::Tensor> nearest_in_tree(const at::Tensor& query,
                                                   at::IntArrayRef query_lengths,
                                                   const at::Tensor& tree,
                                                   at::IntArrayRef lengths) {
  check_cloud(query, "query", query_lengths);
  check_lengths("tree", lengths);
  check_batches(query_lengths, lengths);
  check_same_device(query, "query", tree, "tree");
  check_tree(tree, "tree");
  const c10::DeviceGuard guard(query.device());
  const at::Tensor rows = query.contiguous();
  at::Tensor index = at::empty({rows.size(0)}, rows.options().dtype(at::kLong));
  at::Tensor squared = at::empty({rows.size(0)}, rows.options());
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "nearest_in_tree", [&] {
    Trees<scalar_t> trees(tree, "tree", lengths);
    int64_t first = 0, first_query = 0;
    for (size_t b = 0; b < lengths.size(); ++b) {
      const Search<scalar_t> body{trees.next(lengths[b]),
                                  rows.const_data_ptr<scalar_t>() + 3 * first_query, first,
                                  index.mutable_data_ptr<int64_t>() + first_query,
                                  squared.mutable_data_ptr<scalar_t>() + first_query};
      search_all(rows.device(), body, query_lengths[b]);
      first += lengths[b];
      first_query += query_lengths[b];
    }
  });
  return {index, squared};
}

std::tuple<at::Tensor, at::Tensor> nearest_between_trees(const at::Tensor& query,
                                                         at::IntArrayRef query_lengths,
                                                         const at::Tensor& tree,
                                                         at::IntArrayRef lengths,
                                                         at::ScalarType type) {
  const int64_t queries = check_lengths("query", query_lengths);
  check_lengths("tree", lengths);
  check_batches(query_lengths, lengths);
  check_same_device(query, "query", tree, "tree");
  check_tree(query, "query");
  check_tree(tree, "tree");
  const c10::DeviceGuard guard(query.device());
  at::Tensor index = at::empty({queries}, query.options().dtype(at::kLong));
  at::Tensor squared = at::empty({queries}, query.options().dtype(type));
  AT_DISPATCH_FLOATING_TYPES(type, "nearest_between_trees", [&] {
    Trees<scalar_t> query_trees(query, "query", query_lengths), trees(tree, "tree", lengths);
    int64_t first = 0, first_query = 0;
    for (size_t b = 0; b < lengths.size(); ++b) {
      const Search<scalar_t> body{trees.next(lengths[b]), nullptr, first,
                                  index.mutable_data_ptr<int64_t>() + first_query,
                                  squared.mutable_data_ptr<scalar_t>() + first_query};
      search_in_order(query.device(), query_trees.next(query_lengths[b]), body);
      first += lengths[b];
      first_query += query_lengths[b];
    }
  });
  return {index, squared};
}

std::tuple<at::Tensor, at::Tensor> nearest_by_brute_force(const at::Tensor& query,
                                                          const at::Tensor& reference) {
  for (const at::Tensor* points : {&query, &reference}) {
    check_cloud(*points, points == &query ? "query" : "reference",
                {points->dim() == 0 ? 0 : points->size(0)});
  }
  check_batches({query.size(0)}, {reference.size(0)});
  check_same_device(query, "query", reference, "reference");
  TORCH_CHECK_VALUE(query.scalar_type() == reference.scalar_type(),
                    "query and reference must have one dtype, got ", query.scalar_type(), " and ",
                    reference.scalar_type());
  const c10::DeviceGuard guard(query.device());
  const at::Tensor rows = query.contiguous(), points = reference.contiguous();
  at::Tensor index = at::empty({rows.size(0)}, rows.options().dtype(at::kLong));
  at::Tensor squared = at::empty({rows.size(0)}, rows.options());
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "nearest_by_brute_force", [&] {
    const nearest_neighbor::Tiled<scalar_t> body{
        rows.const_data_ptr<scalar_t>(), points.const_data_ptr<scalar_t>(), rows.size(0),
        points.size(0), index.mutable_data_ptr<int64_t>(), squared.mutable_data_ptr<scalar_t>()};
    if (runs_on_gpu(rows.device())) {
      if constexpr (kWithCuda) launch_tiled_cuda(body, current_stream(rows.device()));
    } else {
      parallel_tasks(num_blocks(body.num_queries, kQueriesPerTask), [&](int64_t task) {
        const int64_t end = std::min(body.num_queries, (task + 1) * kQueriesPerTask);
        for (int64_t i = task * kQueriesPerTask; i < end; ++i) body.find(i);
      });
    }
  });
  return {index, squared};
}

}  // namespace

OPUS_REGISTER(m) {
  m.impl("point_tree", &point_tree);
  m.impl("nearest_in_tree", &nearest_in_tree);
  m.impl("nearest_between_trees", &nearest_between_trees);
  m.impl("nearest_by_brute_force", &nearest_by_brute_force);
}

}  // namespace opus
