// Checks of the arguments of distance-biased attention, for all devices.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace opus {
namespace distance_attention {

struct Shape {
  int64_t batch, heads, queries, depth;
};

using OptionalTensor = std::optional<at::Tensor>;

inline void check_centres(const at::Tensor& centres) {
  TORCH_CHECK_VALUE(centres.dim() == 3 && centres.size(2) == 3 &&
                        (centres.scalar_type() == at::kFloat ||
                         centres.scalar_type() == at::kDouble),
                    "centres must be float32 or float64 [B, Q, 3], got ", centres.scalar_type(),
                    " ", centres.sizes());
}

inline Shape check(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                   const at::Tensor& tau, const at::Tensor& centres, double dropout_p,
                   const OptionalTensor& seeds, const OptionalTensor& order) {
  TORCH_CHECK_VALUE(query.dim() == 4 && query.size(3) >= 1, "query must be [B, H, Q, d], got ",
                    query.sizes());
  const int64_t B = query.size(0), H = query.size(1), Q = query.size(2), d = query.size(3);
  for (const at::Tensor* other : {&key, &value}) {
    TORCH_CHECK_VALUE(other->sizes() == query.sizes() &&
                          other->scalar_type() == query.scalar_type(),
                      "key and value must be ", query.scalar_type(), " ", query.sizes(), ", got ",
                      other->scalar_type(), " ", other->sizes());
  }
  TORCH_CHECK_VALUE(tau.sizes() == at::IntArrayRef({B, H, Q}), "tau must be [", B, ", ", H, ", ",
                    Q, "], got ", tau.sizes());
  TORCH_CHECK_VALUE(centres.sizes() == at::IntArrayRef({B, Q, 3}), "centres must be [", B, ", ", Q,
                    ", 3], got ", centres.sizes());
  TORCH_CHECK_VALUE(dropout_p >= 0 && dropout_p < 1, "dropout_p must lie in [0, 1), got ",
                    dropout_p);
  const auto is_long = [](const at::Tensor& x, at::IntArrayRef sizes) {
    return x.sizes() == sizes && x.scalar_type() == at::kLong;
  };
  TORCH_CHECK_VALUE(dropout_p == 0 || (seeds && is_long(*seeds, {B})), "seeds must be int64 [", B,
                    "] if dropout_p is above 0");
  TORCH_CHECK_VALUE(!order || is_long(*order, {B, Q}), "order must be int64 [", B, ", ", Q, "]");
  return {B, H, Q, d};
}

}  // namespace distance_attention
}  // namespace opus
