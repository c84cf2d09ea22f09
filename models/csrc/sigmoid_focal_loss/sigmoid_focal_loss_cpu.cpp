#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/parallel.h"
#include "common/targets.h"
#include "sigmoid_focal_loss/sigmoid_focal_loss_check.h"

#define OPUS_BODY_HEADER "sigmoid_focal_loss/sigmoid_focal_loss_body.h"
#define OPUS_KERNEL_HEADER "sigmoid_focal_loss/sigmoid_focal_loss_cpu_kernel.h"
#include "common/for_each_target.h"

namespace opus {
namespace {

using sigmoid_focal_loss::check;
using sigmoid_focal_loss::Prepared;

constexpr int64_t kRowsPerTask = 512;
constexpr int64_t kMostLanes = 8;

// Calls run(problem of type tag T, T()) with weights padded to whole vectors.
template <typename T, typename Run>
void with_problem(const Prepared& in, double gamma, double alpha, const Run& run) {
  const int64_t classes = in.logits.size(1);
  std::vector<T> padded(num_blocks(classes, kMostLanes) * kMostLanes, T(0));
  std::copy_n(in.weights.const_data_ptr<T>(), classes, padded.begin());
  run(in.logits.const_data_ptr<T>(), in.labels.const_data_ptr<int64_t>(), padded.data(),
      in.rows.defined() ? in.rows.const_data_ptr<T>() : nullptr, classes, static_cast<T>(gamma),
      static_cast<T>(alpha));
}

// Adds the sums of blocks of rows in order, so the number of threads does not change the result.
at::Tensor focal_loss_cpu(const at::Tensor& logits, const at::Tensor& labels,
                          const at::Tensor& class_weights,
                          const std::optional<at::Tensor>& row_weights, double gamma,
                          double alpha) {
  check(logits, labels, class_weights, row_weights);
  const Prepared in(logits, labels, class_weights, row_weights);
  const int64_t n = logits.size(0);
  std::vector<double> sums(num_blocks(n, kRowsPerTask), 0.0);
  AT_DISPATCH_FLOATING_TYPES(logits.scalar_type(), "sigmoid_focal_loss", [&] {
    with_problem<scalar_t>(in, gamma, alpha, [&](auto... fields) {
      parallel_tasks(static_cast<int64_t>(sums.size()), [&](int64_t task) {
        const int64_t begin = task * kRowsPerTask, end = std::min(n, begin + kRowsPerTask);
        sums[task] = OPUS_CALL_TARGET(focal_rows::forward_rows<scalar_t>, {fields...}, begin, end);
      });
    });
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  // The sum becomes infinite if it exceeds the range of the logits' dtype.
  return at::scalar_tensor(total, logits.options().dtype(at::kDouble)).to(logits.scalar_type());
}

at::Tensor focal_loss_backward_cpu(const at::Tensor& grad, const at::Tensor& logits,
                                   const at::Tensor& labels, const at::Tensor& class_weights,
                                   const std::optional<at::Tensor>& row_weights, double gamma,
                                   double alpha) {
  check(logits, labels, class_weights, row_weights);
  TORCH_CHECK_VALUE(grad.numel() == 1, "grad must be one number, got ", grad.sizes());
  const Prepared in(logits, labels, class_weights, row_weights);
  const int64_t n = logits.size(0);
  at::Tensor result = at::empty(logits.sizes(), in.logits.options());
  AT_DISPATCH_FLOATING_TYPES(logits.scalar_type(), "sigmoid_focal_loss_backward", [&] {
    const auto factor = grad.item<scalar_t>();
    scalar_t* out = result.data_ptr<scalar_t>();
    with_problem<scalar_t>(in, gamma, alpha, [&](auto... fields) {
      parallel_tasks(num_blocks(n, kRowsPerTask), [&](int64_t task) {
        const int64_t begin = task * kRowsPerTask, end = std::min(n, begin + kRowsPerTask);
        OPUS_CALL_TARGET(focal_rows::backward_rows<scalar_t>, {fields...}, begin, end, factor,
                         out);
      });
    });
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) {
  m.impl("sigmoid_focal_loss", &focal_loss_cpu);
  m.impl("sigmoid_focal_loss_backward", &focal_loss_backward_cpu);
}

}  // namespace opus
