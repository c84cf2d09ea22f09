// SmoothL1 distances between points and their nearest neighbours: one item is one point.
#pragma once

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/defs.h"

namespace opus {
namespace chamfer {

// SmoothL1 of a difference, summed over the axes by the caller.
template <typename T>
OPUS_HD T smooth_l1(T difference, T beta) {
  const T size = difference < 0 ? -difference : difference;
  return size < beta ? T(0.5) * size * size / beta : size - T(0.5) * beta;
}

// Its derivative; a NaN stays one.
template <typename T>
OPUS_HD T smooth_l1_slope(T difference, T beta) {
  const T size = difference < 0 ? -difference : difference;
  return size < beta ? difference / beta : (difference < 0 ? T(-1) : (difference > 0 ? T(1) : difference));
}

// What both directions of the computation read: pairs of point i and reference index[i]. A pair
// whose index is not one of a reference gives zero and has no gradient.
template <typename T>
struct Pairs {
  const T *query, *reference;  // [N, 3], [M, 3]
  const int64_t* index;
  int64_t num_references;
  T beta;

  OPUS_HD bool exists(int64_t i) const { return index[i] >= 0 && index[i] < num_references; }
  OPUS_HD T difference(int64_t i, int a) const {
    return query[3 * i + a] - reference[3 * index[i] + a];
  }
};

template <typename T>
struct Terms {
  Pairs<T> pairs;
  T* terms;  // [N]

  OPUS_HD void operator()(int64_t i) const {
    T sum = 0;
    for (int a = 0; pairs.exists(i) && a < 3; ++a) {
      sum += smooth_l1(pairs.difference(i, a), pairs.beta);
    }
    terms[i] = sum;
  }
};

// Gradients from those of the terms; the differences are computed anew instead of stored. Many
// points share a reference: `Add` adds to it as the device requires.
template <typename T, typename Add>
struct Gradients {
  Pairs<T> pairs;
  const T* grad;                      // [N]
  T *grad_query, *grad_reference;     // [N, 3]; [M, 3], zero at first; either may be null

  OPUS_HD void operator()(int64_t i) const {
    const bool exists = pairs.exists(i);
    for (int a = 0; a < 3; ++a) {
      const T value =
          exists ? grad[i] * smooth_l1_slope(pairs.difference(i, a), pairs.beta) : T(0);
      if (grad_query != nullptr) grad_query[3 * i + a] = value;
      if (grad_reference != nullptr && exists) {
        Add::add(grad_reference + 3 * pairs.index[i] + a, -value);
      }
    }
  }
};

template <typename T>
struct AddPlain {
  OPUS_HD static void add(T* where, T value) { *where += value; }
};

template <typename T>
void launch_gradients_cuda(const Pairs<T>& pairs, const T* grad, T* grad_query, T* grad_reference,
                           int64_t count, CudaStream stream);

}  // namespace chamfer
}  // namespace opus
