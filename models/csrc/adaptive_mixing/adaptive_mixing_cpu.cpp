#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "adaptive_mixing/adaptive_mixing_check.h"
#include "common/parallel.h"
#define OPUS_WITH_AVX512
#include "common/targets.h"

#define OPUS_BODY_HEADER "adaptive_mixing/adaptive_mixing_body.h"
#define OPUS_KERNEL_HEADER "adaptive_mixing/adaptive_mixing_cpu_kernel.h"
#include "common/for_each_target.h"

namespace opus {
namespace {

using adaptive_mixing::Shape;
using adaptive_mixing::with_whole_rows;

constexpr int64_t kRowsPerTask = 16;

at::ScalarType computed_in(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

template <typename T>
void forward(const Shape& s, const at::Tensor& x, const at::Tensor& parameters, at::Tensor& out) {
  const T *x_data = x.const_data_ptr<T>(), *p_data = parameters.const_data_ptr<T>();
  T* out_data = out.data_ptr<T>();
  parallel_tasks(num_blocks(s.count, kRowsPerTask), [&](int64_t task) {
    const int64_t begin = task * kRowsPerTask, end = std::min(s.count, begin + kRowsPerTask);
    OPUS_CALL_TARGET(mixing_rows::forward_rows, {s.s_in, s.s_out, s.c}, x_data, x.stride(0),
                     p_data, parameters.stride(0), begin, end, out_data);
  });
}

template <typename T>
void backward(const Shape& s, const at::Tensor& grad, const at::Tensor& x,
              const at::Tensor& parameters, at::Tensor& d_x, at::Tensor& d_parameters) {
  const T *x_data = x.const_data_ptr<T>(), *p_data = parameters.const_data_ptr<T>(),
          *g_data = grad.const_data_ptr<T>();
  T *dx_data = d_x.data_ptr<T>(), *dp_data = d_parameters.data_ptr<T>();
  parallel_tasks(num_blocks(s.count, kRowsPerTask), [&](int64_t task) {
    const int64_t begin = task * kRowsPerTask, end = std::min(s.count, begin + kRowsPerTask);
    OPUS_CALL_TARGET(mixing_rows::backward_rows, {s.s_in, s.s_out, s.c}, x_data, x.stride(0),
                     p_data, parameters.stride(0), g_data, grad.stride(0), begin, end, dx_data,
                     dp_data);
  });
}

at::Tensor mixing_cpu(const at::Tensor& sampled, const at::Tensor& parameters,
                      int64_t out_points) {
  const Shape s = adaptive_mixing::check(sampled, parameters, out_points);
  const at::Tensor x = with_whole_rows(sampled.to(computed_in(sampled)));
  const at::Tensor p = with_whole_rows(parameters.to(computed_in(sampled)));
  at::Tensor out = at::empty({s.count, s.s_out, s.c}, x.options());
  if (x.scalar_type() == at::kDouble) {
    forward<double>(s, x, p, out);
  } else {
    forward<float>(s, x, p, out);
  }
  return out.to(sampled.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> mixing_backward_cpu(const at::Tensor& grad,
                                                       const at::Tensor& sampled,
                                                       const at::Tensor& parameters,
                                                       int64_t out_points) {
  const Shape s = adaptive_mixing::check(sampled, parameters, out_points);
  TORCH_CHECK_VALUE(grad.sizes() == at::IntArrayRef({s.count, s.s_out, s.c}), "grad must be [",
                    s.count, ", ", s.s_out, ", ", s.c, "], got ", grad.sizes());
  const at::ScalarType type = computed_in(sampled);
  const at::Tensor x = with_whole_rows(sampled.to(type));
  const at::Tensor p = with_whole_rows(parameters.to(type));
  const at::Tensor g = with_whole_rows(grad.to(type));
  at::Tensor d_x = at::empty(x.sizes(), x.options()), d_p = at::empty(p.sizes(), x.options());
  if (type == at::kDouble) {
    backward<double>(s, g, x, p, d_x, d_p);
  } else {
    backward<float>(s, g, x, p, d_x, d_p);
  }
  return {d_x.to(sampled.scalar_type()), d_p.to(sampled.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) {
  m.impl("adaptive_mixing", &mixing_cpu);
  m.impl("adaptive_mixing_backward", &mixing_backward_cpu);
}

}  // namespace opus
