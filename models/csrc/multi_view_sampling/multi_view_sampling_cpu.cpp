#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/parallel.h"
#include "common/targets.h"
#include "multi_view_sampling/multi_view_sampling_check.h"

#define OPUS_BODY_HEADER "multi_view_sampling/multi_view_sampling_body.h"
#define OPUS_KERNEL_HEADER "multi_view_sampling/multi_view_sampling_cpu_kernel.h"
#include "common/for_each_target.h"

namespace opus {
namespace {

using multi_view_sampling::Inputs;
using multi_view_sampling::Level;
using multi_view_sampling::Projection;
using multi_view_sampling::readable;
using multi_view_sampling::Shape;
using multi_view_sampling::view_levels;

constexpr int64_t kQueriesPerTask = 8;

// Calls run(tag of the type of the maps, tag of the type of the computation).
template <typename Run>
void dispatch(at::ScalarType maps, const Run& run) {
  switch (maps) {
    case at::kDouble: return run(double(), double());
    case at::kHalf: return run(HalfBits(), float());
    case at::kBFloat16: return run(BrainBits(), float());
    default: return run(float(), float());
  }
}

template <typename T>
Inputs<T> view_inputs(const at::Tensor& points, const at::Tensor& matrices,
                      const at::Tensor& weights) {
  return {points.const_data_ptr<T>(), matrices.const_data_ptr<T>(), weights.const_data_ptr<T>()};
}

// run(begin, end) for the queries of each task.
template <typename Run>
void parallel_queries(const Shape& s, const Run& run) {
  const int64_t rows = s.batch * s.queries;
  parallel_tasks(num_blocks(rows, kQueriesPerTask), [&](int64_t task) {
    run(task * kQueriesPerTask, std::min(rows, (task + 1) * kQueriesPerTask));
  });
}

at::Tensor sampling_cpu(at::TensorList feats, const at::Tensor& points, const at::Tensor& occ2img,
                        const at::Tensor& level_weights, int64_t img_h, int64_t img_w,
                        int64_t num_cams, bool permuted) {
  const Shape s = multi_view_sampling::check(feats, points, occ2img, level_weights, img_h, img_w,
                                             num_cams, permuted);
  const std::vector<at::Tensor> maps = readable(feats, s);
  const at::Tensor p = points.contiguous(), m = occ2img.contiguous(),
                   w = level_weights.contiguous();
  at::Tensor out = at::empty(
      {s.batch, s.queries, s.groups, static_cast<int64_t>(s.frames) * s.points, s.per_group},
      points.options());
  dispatch(maps[0].scalar_type(), [&](auto stored, auto computed) {
    using S = decltype(stored);
    using T = decltype(computed);
    const Inputs<T> in = view_inputs<T>(p, m, w);
    const std::vector<Level<const S>> levels = view_levels<const S>(maps);
    T* result = out.data_ptr<T>();
    parallel_queries(s, [&](int64_t begin, int64_t end) {
      OPUS_CALL_TARGET(sampling_rows::forward_queries, s, levels.data(), in, begin, end, result);
    });
  });
  return out;
}

template <typename S, typename T>
void backward(const Shape& s, at::TensorList feats, const Inputs<T>& in, const T* grad,
              const std::vector<at::Tensor>& d_feats, at::Tensor& d_points,
              at::Tensor& d_weights) {
  std::vector<Projection<T>> projections(s.batch * s.queries * s.samples_per_query());
  parallel_queries(s, [&](int64_t begin, int64_t end) {
    OPUS_CALL_TARGET(sampling_rows::project_queries, s, in, begin, end, projections.data());
  });
  if (d_points.defined()) {
    const std::vector<at::Tensor> maps = readable(feats, s);
    const std::vector<Level<const S>> levels = view_levels<const S>(maps);
    T *points = d_points.data_ptr<T>(), *weights = d_weights.data_ptr<T>();
    parallel_queries(s, [&](int64_t begin, int64_t end) {
      OPUS_CALL_TARGET(sampling_rows::backward_queries, s, levels.data(), in, projections.data(),
                       grad, begin, end, points, weights);
    });
  }
  if (!d_feats.empty()) {
    const std::vector<Level<T>> d_levels = view_levels<T>(d_feats);
    parallel_tasks(s.batch * s.frames * s.groups, [&](int64_t task) {
      OPUS_CALL_TARGET(sampling_rows::backward_maps, s, d_levels.data(), in, projections.data(),
                       grad, task / s.groups / s.frames,
                       static_cast<int>(task / s.groups % s.frames),
                       static_cast<int>(task % s.groups));
    });
  }
}

// Adds to `sums`, which may be empty.
std::tuple<at::Tensor, at::Tensor> add_backward(
    const at::Tensor& grad, at::TensorList feats, const at::Tensor& points,
    const at::Tensor& occ2img, const at::Tensor& level_weights, const Shape& s, bool need_points,
    const std::vector<at::Tensor>& sums) {
  const at::Tensor d_out = grad.contiguous(), p = points.contiguous(), m = occ2img.contiguous(),
                   w = level_weights.contiguous();
  TORCH_CHECK_VALUE(d_out.numel() == s.batch * s.queries * s.samples_per_query() * s.per_group,
                    "grad must have the shape of the output, got ", grad.sizes());
  at::Tensor d_points, d_weights;
  if (need_points) {
    d_points = at::zeros(points.sizes(), points.options());
    d_weights = at::zeros(level_weights.sizes(), points.options());
  }
  dispatch(feats[0].scalar_type(), [&](auto stored, auto computed) {
    using T = decltype(computed);
    backward<decltype(stored), T>(s, feats, view_inputs<T>(p, m, w), d_out.const_data_ptr<T>(),
                                  sums, d_points, d_weights);
  });
  if (!need_points) {
    return {at::empty({0}, points.options()), at::empty({0}, points.options())};
  }
  return {d_points, d_weights};
}

std::tuple<std::vector<at::Tensor>, at::Tensor, at::Tensor> sampling_backward_cpu(
    const at::Tensor& grad, at::TensorList feats, const at::Tensor& points,
    const at::Tensor& occ2img, const at::Tensor& level_weights, int64_t img_h, int64_t img_w,
    int64_t num_cams, bool permuted, bool need_feats, bool need_points) {
  const Shape s = multi_view_sampling::check(feats, points, occ2img, level_weights, img_h, img_w,
                                             num_cams, permuted);
  std::vector<at::Tensor> d_feats;
  if (need_feats) {
    for (const at::Tensor& feat : feats) {
      d_feats.push_back(multi_view_sampling::zero_sums(feat, points.options()));
    }
  }
  const auto [d_points, d_weights] =
      add_backward(grad, feats, points, occ2img, level_weights, s, need_points, d_feats);
  for (at::Tensor& d_feat : d_feats) d_feat = d_feat.to(feats[0].scalar_type());
  return {d_feats, d_points, d_weights};
}

std::tuple<at::Tensor, at::Tensor> sampling_backward_into_cpu(
    const at::Tensor& grad, at::TensorList feats, const at::Tensor& points,
    const at::Tensor& occ2img, const at::Tensor& level_weights, int64_t img_h, int64_t img_w,
    int64_t num_cams, bool permuted, bool need_points, at::TensorList sums) {
  const Shape s = multi_view_sampling::check(feats, points, occ2img, level_weights, img_h, img_w,
                                             num_cams, permuted);
  multi_view_sampling::check_sums(sums, feats, points);
  return add_backward(grad, feats, points, occ2img, level_weights, s, need_points, sums.vec());
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) {
  m.impl("multi_view_sampling", &sampling_cpu);
  m.impl("multi_view_sampling_backward", &sampling_backward_cpu);
  m.impl("multi_view_sampling_backward_into", &sampling_backward_into_cpu);
}

}  // namespace opus
