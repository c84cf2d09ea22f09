// SmoothL1 distances between points and their nearest neighbours; one item is one point.
#pragma once

#include <math.h>

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/defs.h"

namespace opus {
namespace chamfer {

OPUS_HD float magnitude(float x) { return fabsf(x); }
OPUS_HD double magnitude(double x) { return fabs(x); }
OPUS_HD float with_sign_of(float y, float x) { return copysignf(x, y); }
OPUS_HD double with_sign_of(double y, double x) { return copysign(x, y); }

// SmoothL1 of a difference: size^2 / (2 beta) below beta, else size - beta / 2. The caller sums
// over the axes. Both functions compile to a minimum instead of an unpredictable branch. NaN
// propagates.
template <typename T>
OPUS_HD T smooth_l1(T difference, T beta) {
  const T size = magnitude(difference);
  const T bounded = beta < size ? beta : size;
  return bounded / beta * (size - T(0.5) * bounded);
}

// Its derivative.
template <typename T>
OPUS_HD T smooth_l1_slope(T difference, T beta) {
  const T size = magnitude(difference);
  return with_sign_of(difference, (beta < size ? beta : size) / beta);
}

// Inputs of the forward and backward pass: pairs of point i and reference index[i]. A pair with an
// invalid index gives zero and has no gradient.
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
    if (pairs.exists(i)) {
      for (int a = 0; a < 3; ++a) sum += smooth_l1(pairs.difference(i, a), pairs.beta);
    }
    terms[i] = sum;
  }
};

// Backward pass: recomputes the differences instead of storing them. Many points may share a
// reference; `Add` adds to its gradient, atomically on a GPU.
template <typename T, typename Add>
struct Gradients {
  Pairs<T> pairs;
  const T* grad;                      // [N]
  T *grad_query, *grad_reference;     // [N, 3]; [M, 3], initially zero; either may be null

  OPUS_HD void operator()(int64_t i) const {
    const bool exists = pairs.exists(i);
    T value[3] = {0, 0, 0};
    if (exists) {
      for (int a = 0; a < 3; ++a) {
        value[a] = grad[i] * smooth_l1_slope(pairs.difference(i, a), pairs.beta);
      }
    }
    for (int a = 0; grad_query != nullptr && a < 3; ++a) grad_query[3 * i + a] = value[a];
    for (int a = 0; grad_reference != nullptr && exists && a < 3; ++a) {
      Add::add(grad_reference + 3 * pairs.index[i] + a, -value[a]);
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
