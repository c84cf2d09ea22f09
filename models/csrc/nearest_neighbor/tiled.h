// Brute-force search over all pairs of queries and references, the GPU baseline of the tree search.
#pragma once

#include <cstdint>

#include "common/cuda_launch.h"
#include "nearest_neighbor/nearest_neighbor.h"

namespace opus {
namespace nearest_neighbor {

template <typename T>
struct Tiled {
  const T *query, *reference;  // [n, 3]
  int64_t num_queries, num_references;
  int64_t* index;
  T* squared;

  OPUS_HD void write(int64_t i, const Nearest<T>& best) const {
    index[i] = best.slot >= 0 ? best.slot : 0;
    squared[i] = best.squared;
  }

  // Compares with one reference. Slots ascend, so the first of equally near references is kept.
  OPUS_HD static void compare(const T* q, const T* p, int64_t slot, Nearest<T>& best) {
    const T distance = squared_distance(q, p);
    if (distance < best.squared) best = {distance, 0, slot};
  }

  OPUS_HD void find(int64_t i) const {
    const T q[3] = {query[3 * i], query[3 * i + 1], query[3 * i + 2]};
    Nearest<T> best = nothing<T>();
    for (int64_t slot = 0; slot < num_references; ++slot) {
      compare(q, reference + 3 * slot, slot, best);
    }
    write(i, best);
  }
};

template <typename T>
void launch_tiled_cuda(const Tiled<T>& body, CudaStream stream);

}  // namespace nearest_neighbor
}  // namespace opus
