// Compiled into CUDA builds only.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>

#include "common/launch.h"
#include "sigmoid_focal_loss/sigmoid_focal_loss_check.h"

namespace opus {
namespace {

using sigmoid_focal_loss::Prepared;
using sigmoid_focal_loss::Problem;

Prepared prepare(const at::Tensor& logits, const at::Tensor& labels,
                 const at::Tensor& class_weights, const std::optional<at::Tensor>& row_weights) {
  sigmoid_focal_loss::check(logits, labels, class_weights, row_weights);
  check_same_device(logits, "logits", labels, "labels");
  check_same_device(logits, "logits", class_weights, "class_weights");
  if (row_weights.has_value()) check_same_device(logits, "logits", *row_weights, "row_weights");
  TORCH_CHECK_VALUE(logits.scalar_type() == at::kFloat, "logits must be float32 on CUDA, got ",
                    logits.scalar_type());
  return Prepared(logits, labels, class_weights, row_weights);
}

Problem<float> problem_of(const Prepared& in, double gamma, double alpha) {
  return {in.logits.const_data_ptr<float>(),
          in.labels.const_data_ptr<int64_t>(),
          in.weights.const_data_ptr<float>(),
          in.rows.defined() ? in.rows.const_data_ptr<float>() : nullptr,
          in.logits.size(1),
          static_cast<float>(gamma),
          static_cast<float>(alpha)};
}

at::Tensor focal_loss_cuda(const at::Tensor& logits, const at::Tensor& labels,
                           const at::Tensor& class_weights,
                           const std::optional<at::Tensor>& row_weights, double gamma,
                           double alpha) {
  const c10::DeviceGuard guard(logits.device());
  const Prepared in = prepare(logits, labels, class_weights, row_weights);
  const int64_t num_logits = logits.numel();
  const at::Tensor sums = at::empty({num_blocks(num_logits, sigmoid_focal_loss::kLogitsPerSum)},
                                    logits.options().dtype(at::kDouble));
  sigmoid_focal_loss::sum_losses_cuda(problem_of(in, gamma, alpha), num_logits,
                                      sums.mutable_data_ptr<double>(),
                                      current_stream(logits.device()));
  return sums.sum().to(logits.scalar_type());
}

at::Tensor focal_loss_backward_cuda(const at::Tensor& grad, const at::Tensor& logits,
                                    const at::Tensor& labels, const at::Tensor& class_weights,
                                    const std::optional<at::Tensor>& row_weights, double gamma,
                                    double alpha) {
  const c10::DeviceGuard guard(logits.device());
  const Prepared in = prepare(logits, labels, class_weights, row_weights);
  check_same_device(logits, "logits", grad, "grad");
  TORCH_CHECK_VALUE(grad.numel() == 1, "grad must be one number, got ", grad.sizes());
  const at::Tensor factor = grad.to(logits.scalar_type());
  at::Tensor d_logits = at::empty(logits.sizes(), in.logits.options());
  sigmoid_focal_loss::loss_slopes_cuda(problem_of(in, gamma, alpha), logits.numel(),
                                       factor.const_data_ptr<float>(),
                                       d_logits.mutable_data_ptr<float>(),
                                       current_stream(logits.device()));
  return d_logits;
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CUDA, m) {
  m.impl("sigmoid_focal_loss", &focal_loss_cuda);
  m.impl("sigmoid_focal_loss_backward", &focal_loss_backward_cuda);
}

}  // namespace opus
