#include "chamfer/chamfer.h"

#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_put.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "common/launch.h"

namespace opus {
namespace {

using chamfer::Pairs;

constexpr int64_t kPointsPerTask = 8192;

void check_pairs(const at::Tensor& query, const at::Tensor& reference, const at::Tensor& index,
                 double beta) {
  TORCH_CHECK_VALUE(query.dim() == 2 && query.size(1) == 3, "query must be [N, 3], got ",
                    query.sizes());
  TORCH_CHECK_VALUE(reference.dim() == 2 && reference.size(1) == 3,
                    "reference must be [M, 3], got ", reference.sizes());
  TORCH_CHECK_VALUE(index.dim() == 1 && index.size(0) == query.size(0) &&
                        index.scalar_type() == at::kLong,
                    "index must be int64 [", query.size(0), "], got ", index.scalar_type(), " ",
                    index.sizes());
  TORCH_CHECK_VALUE(query.scalar_type() == reference.scalar_type(),
                    "query and reference must have one dtype, got ", query.scalar_type(), " and ",
                    reference.scalar_type());
  TORCH_CHECK_VALUE(beta > 0, "beta must be positive, got ", beta);
  check_same_device(reference, "reference", query, "query");
  check_same_device(index, "index", query, "query");
}

template <typename T>
Pairs<T> pairs_of(const at::Tensor& query, const at::Tensor& reference, const at::Tensor& index,
                  double beta) {
  return {query.const_data_ptr<T>(), reference.const_data_ptr<T>(),
          index.const_data_ptr<int64_t>(), reference.size(0), static_cast<T>(beta)};
}

at::Tensor chamfer_terms(const at::Tensor& query, const at::Tensor& reference,
                         const at::Tensor& index, double beta) {
  check_pairs(query, reference, index, beta);
  const c10::DeviceGuard guard(query.device());
  const at::Tensor q = query.contiguous(), r = reference.contiguous(), i = index.contiguous();
  at::Tensor terms = at::empty({q.size(0)}, q.options());
  AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "chamfer_terms", [&] {
    const chamfer::Terms<scalar_t> body{pairs_of<scalar_t>(q, r, i, beta),
                                        terms.mutable_data_ptr<scalar_t>()};
    run(q.device(), body, q.size(0), kPointsPerTask);
  });
  return terms;
}

// Adds the negated gradients of the queries to their references in a reproducible order. Invalid
// pairs add zero.
void add_in_order(at::Tensor& grad_reference, const at::Tensor& grad_query,
                  const at::Tensor& index) {
  if (grad_reference.size(0) == 0) return;
  const at::Tensor known = at::clamp(index, 0, grad_reference.size(0) - 1);
  at::index_put_(grad_reference, {known}, grad_query.neg(), /*accumulate=*/true);
}

// Returns an empty tensor for a gradient that is not needed.
std::tuple<at::Tensor, at::Tensor> chamfer_terms_backward(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& reference,
    const at::Tensor& index, double beta, bool need_query, bool need_reference) {
  check_pairs(query, reference, index, beta);
  TORCH_CHECK_VALUE(grad.dim() == 1 && grad.size(0) == query.size(0) &&
                        grad.scalar_type() == query.scalar_type(),
                    "grad must be ", query.scalar_type(), " [", query.size(0), "], got ",
                    grad.scalar_type(), " ", grad.sizes());
  check_same_device(grad, "grad", query, "query");
  const c10::DeviceGuard guard(query.device());
  const at::Tensor q = query.contiguous(), r = reference.contiguous(), i = index.contiguous();
  const at::Tensor g = grad.contiguous();
  // The order of atomic additions on a GPU is not reproducible.
  const bool in_order = need_reference && runs_on_gpu(q.device()) &&
                        at::globalContext().deterministicAlgorithms();
  at::Tensor grad_query = at::empty({need_query || in_order ? q.size(0) : 0, 3}, q.options());
  at::Tensor grad_reference = at::zeros({need_reference ? r.size(0) : 0, 3}, q.options());
  AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "chamfer_terms_backward", [&] {
    const auto pairs = pairs_of<scalar_t>(q, r, i, beta);
    const auto* from = g.const_data_ptr<scalar_t>();
    auto* to_query = need_query || in_order ? grad_query.mutable_data_ptr<scalar_t>() : nullptr;
    auto* to_reference =
        need_reference && !in_order ? grad_reference.mutable_data_ptr<scalar_t>() : nullptr;
    if (runs_on_gpu(q.device())) {
      if constexpr (kWithCuda) {
        chamfer::launch_gradients_cuda(pairs, from, to_query, to_reference, q.size(0),
                                       current_stream(q.device()));
      }
      return;
    }
    const chamfer::Gradients<scalar_t, chamfer::AddPlain<scalar_t>> body{pairs, from, to_query,
                                                                         to_reference};
    // Points may share references: one thread adds their gradients in point order.
    const int64_t task = need_reference ? std::max<int64_t>(1, q.size(0)) : kPointsPerTask;
    run_on_cpu(body, q.size(0), task);
  });
  if (in_order) add_in_order(grad_reference, grad_query, i);
  return {need_query ? grad_query : at::empty({0, 3}, q.options()), grad_reference};
}

}  // namespace

OPUS_REGISTER(m) {
  m.impl("chamfer_terms", &chamfer_terms);
  m.impl("chamfer_terms_backward", &chamfer_terms_backward);
}

}  // namespace opus
