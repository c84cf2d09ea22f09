// Checks of the arguments of the sigmoid focal loss, for all devices.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "sigmoid_focal_loss/sigmoid_focal_loss.h"

namespace opus {
namespace sigmoid_focal_loss {

inline void check(const at::Tensor& logits, const at::Tensor& labels, const at::Tensor& class_weights,
           const std::optional<at::Tensor>& row_weights) {
  TORCH_CHECK_VALUE(logits.dim() == 2 && (logits.scalar_type() == at::kFloat ||
                                          logits.scalar_type() == at::kDouble),
                    "logits must be float32 or float64 [n, K], got ", logits.scalar_type(), " ",
                    logits.sizes());
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.size(0) == logits.size(0) &&
                        labels.scalar_type() == at::kLong,
                    "labels must be int64 [", logits.size(0), "], got ", labels.scalar_type(), " ",
                    labels.sizes());
  TORCH_CHECK_VALUE(class_weights.dim() == 1 && class_weights.size(0) == logits.size(1),
                    "class_weights must be [", logits.size(1), "], got ", class_weights.sizes());
  if (row_weights.has_value()) {
    TORCH_CHECK_VALUE(row_weights->dim() == 1 && row_weights->size(0) == logits.size(0),
                      "row_weights must be [", logits.size(0), "], got ", row_weights->sizes());
  }
}

// Contiguous inputs of one dtype.
struct Prepared {
  at::Tensor logits, labels, weights, rows;

  Prepared(const at::Tensor& x, const at::Tensor& label, const at::Tensor& class_weights,
           const std::optional<at::Tensor>& row_weights)
      : logits(x.contiguous()), labels(label.contiguous()),
        weights(class_weights.to(x.scalar_type()).contiguous()) {
    if (row_weights.has_value()) rows = row_weights->to(x.scalar_type()).contiguous();
  }
};

}  // namespace sigmoid_focal_loss
}  // namespace opus
