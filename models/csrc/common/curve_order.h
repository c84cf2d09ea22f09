// Order of points along a space-filling curve, on the device of the points; host code.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/amin.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/where.h>

#include <limits>
#include <tuple>

#include "common/launch.h"
#include "common/morton.h"

namespace opus {

// Returns int64 [n], the indices of the points [n, 3], n >= 1, in curve order. Non-finite points
// come last. The curve has a resolution of `bits` bits per axis, 21 at most.
template <typename T>
at::Tensor order_along_curve(const at::Tensor& points, int bits) {
  const at::Tensor finite = at::isfinite(points);
  constexpr T inf = std::numeric_limits<T>::infinity();
  const at::Tensor bounds = at::cat({at::amin(at::where(finite, points, inf), {0}),
                                     at::amax(at::where(finite, points, -inf), {0})});
  at::Tensor codes = at::empty({points.size(0)}, points.options().dtype(at::kLong));
  const MortonCodes<T> body{points.const_data_ptr<T>(), bounds.const_data_ptr<T>(),
                            codes.mutable_data_ptr<int64_t>(), bits};
  run(points.device(), body, points.size(0), 4096);
  return std::get<1>(at::sort(codes));
}

}  // namespace opus
