// Checks of the arguments of adaptive mixing, for all devices.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>

namespace opus {
namespace adaptive_mixing {

struct Shape {
  int64_t count;  // groups of queries
  int s_in, s_out, c;

  int64_t parameters() const { return static_cast<int64_t>(c) * c + int64_t(s_in) * s_out; }
};

inline Shape check(const at::Tensor& sampled, const at::Tensor& parameters, int64_t out_points) {
  TORCH_CHECK_VALUE(sampled.dim() == 3 && sampled.size(1) >= 1 && sampled.size(2) >= 1,
                    "sampled must be [n, S_in, c], got ", sampled.sizes());
  const int64_t n = sampled.size(0), s_in = sampled.size(1), c = sampled.size(2);
  TORCH_CHECK_VALUE(out_points >= 1, "out_points must be positive, got ", out_points);
  const int64_t wanted = c * c + s_in * out_points;
  TORCH_CHECK_VALUE(c <= 4096 && s_in <= 4096 && out_points <= 4096,
                    "c, S_in and S_out may be up to 4096, got ", c, ", ", s_in, " and ",
                    out_points);
  TORCH_CHECK_VALUE(parameters.dim() == 2 && parameters.size(0) == n &&
                        parameters.size(1) == wanted,
                    "parameters must be [", n, ", ", wanted, "], got ", parameters.sizes());
  TORCH_CHECK_VALUE(parameters.scalar_type() == sampled.scalar_type(),
                    "sampled and parameters must have one dtype, got ", sampled.scalar_type(),
                    " and ", parameters.scalar_type());
  return {n, static_cast<int>(s_in), static_cast<int>(out_points), static_cast<int>(c)};
}

// Returns a tensor with contiguous rows and any row stride; copies if necessary.
inline at::Tensor with_whole_rows(const at::Tensor& tensor) {
  int64_t expected = 1;
  for (int64_t axis = tensor.dim() - 1; axis >= 1; --axis) {
    if (tensor.size(axis) != 1 && tensor.stride(axis) != expected) return tensor.contiguous();
    expected *= tensor.size(axis);
  }
  return tensor;
}

}  // namespace adaptive_mixing
}  // namespace opus
