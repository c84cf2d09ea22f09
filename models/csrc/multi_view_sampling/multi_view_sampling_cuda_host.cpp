// Compiled into CUDA builds only.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "common/launch.h"
#include "multi_view_sampling/multi_view_sampling_check.h"
#include "multi_view_sampling/multi_view_sampling_cuda.h"

namespace opus {
namespace {

using multi_view_sampling::CudaArguments;
using multi_view_sampling::Level;
using multi_view_sampling::Shape;
using multi_view_sampling::view_levels;

constexpr int64_t kSharedBytes = 48 * 1024;   // of a block, on every device
constexpr int64_t kBlocksWithoutShared = 1024;  // enough for any GPU

bool reads_quads(const std::vector<at::Tensor>& maps, const Shape& s) {
  bool result = s.per_group % 4 == 0;
  for (const at::Tensor& map : maps) {
    result = result && map.stride(2) == 1 && starts_at_quad(map);
    for (const int64_t axis : {0, 1, 3, 4}) result = result && map.stride(axis) % 4 == 0;
  }
  return result;
}

// Inputs in the format of the kernels; owns the memory that the arguments point to.
struct Prepared {
  std::vector<at::Tensor> maps;
  at::Tensor points, matrices, weights, grad, parts;
  CudaArguments arguments{};

  Prepared(const Shape& s, at::TensorList feats, const at::Tensor& p, const at::Tensor& m,
           const at::Tensor& w)
      : maps(multi_view_sampling::readable(feats, s)), points(p.contiguous()),
        matrices(m.contiguous()), weights(w.contiguous()) {
    arguments.shape = s;
    arguments.storage = storage_of(maps[0], "feats");
    const std::vector<Level<const void>> levels = view_levels<const void>(maps);
    std::copy(levels.begin(), levels.end(), arguments.levels);
    arguments.quads = reads_quads(maps, s);
    arguments.inputs = {points.const_data_ptr<float>(), matrices.const_data_ptr<float>(),
                        weights.const_data_ptr<float>()};
  }

  void add_backward(const at::Tensor& d_out) {
    const Shape& s = arguments.shape;
    grad = aligned(d_out);
    arguments.grad = grad.const_data_ptr<float>();
    arguments.num_blocks = s.batch * s.queries;
    const int64_t size = multi_view_sampling::parts_per_query(s);
    if (size * static_cast<int64_t>(sizeof(float)) <= kSharedBytes) return;
    arguments.num_blocks = std::min(arguments.num_blocks, kBlocksWithoutShared);
    parts = at::empty({arguments.num_blocks * size}, points.options());
    arguments.parts = parts.mutable_data_ptr<float>();
  }
};

// Adds to the gradients of the maps, which are channels-last and in single precision.
struct MapGradients {
  std::vector<at::Tensor> maps, fixed;
  at::Tensor scale;

  MapGradients(const std::vector<at::Tensor>& sums, CudaArguments& a, const at::Tensor& d_out,
               const at::Tensor& weights)
      : maps(sums) {
    const Shape& s = a.shape;
    const bool any_order = !at::globalContext().deterministicAlgorithms() || d_out.numel() == 0;
    if (!any_order) scale = scale_for(s, d_out, weights);
    for (size_t l = 0; l < maps.size() && !any_order; ++l) {
      fixed.push_back(at::zeros({maps[l].numel()}, maps[l].options().dtype(at::kLong)));
      a.d_fixed[l] = fixed.back().mutable_data_ptr<int64_t>();
    }
    const std::vector<Level<float>> levels = view_levels<float>(maps);
    std::copy(levels.begin(), levels.end(), a.d_levels);
    a.need_maps = true;
    if (!any_order) a.scale = scale.const_data_ptr<float>();
  }

  void finish(CudaStream stream) {
    for (size_t l = 0; l < fixed.size(); ++l) {
      const multi_view_sampling::AddFixed body{fixed[l].const_data_ptr<int64_t>(),
                                               scale.const_data_ptr<float>(),
                                               maps[l].mutable_data_ptr<float>()};
      launch_cuda(body, fixed[l].numel(), stream);
    }
  }

 private:
  // A power of two that keeps the sum of a texel within 62 bits: a point adds to it at most once
  // per frame, at most its largest gradient times the largest weight.
  static at::Tensor scale_for(const Shape& s, const at::Tensor& d_out, const at::Tensor& weights) {
    const auto largest = [](const at::Tensor& x) {
      return at::where(at::isfinite(x), x, 0.0).abs().amax().to(at::kDouble);
    };
    const at::Tensor bound =
        largest(d_out).mul(largest(weights)).mul(static_cast<double>(s.queries * s.points));
    const at::Tensor bits = at::clamp(bound.log2().neg().add(61.0).floor(), -120.0, 120.0);
    return bits.exp2().to(at::kFloat);
  }
};

Shape check_all(at::TensorList feats, const at::Tensor& points, const at::Tensor& occ2img,
                const at::Tensor& level_weights, int64_t img_h, int64_t img_w, int64_t num_cams,
                bool permuted) {
  const Shape s = multi_view_sampling::check(feats, points, occ2img, level_weights, img_h, img_w,
                                             num_cams, permuted);
  for (const at::Tensor& feat : feats) check_same_device(points, "points", feat, "feats");
  check_same_device(points, "points", occ2img, "occ2img");
  check_same_device(points, "points", level_weights, "level_weights");
  TORCH_CHECK_VALUE(points.scalar_type() == at::kFloat, "points must be float32 on CUDA, got ",
                    points.scalar_type());
  return s;
}

at::Tensor sampling_cuda(at::TensorList feats, const at::Tensor& points, const at::Tensor& occ2img,
                         const at::Tensor& level_weights, int64_t img_h, int64_t img_w,
                         int64_t num_cams, bool permuted) {
  const Shape s =
      check_all(feats, points, occ2img, level_weights, img_h, img_w, num_cams, permuted);
  const c10::DeviceGuard guard(points.device());
  Prepared prepared(s, feats, points, occ2img, level_weights);
  at::Tensor out = at::empty(
      {s.batch, s.queries, s.groups, static_cast<int64_t>(s.frames) * s.points, s.per_group},
      points.options());
  prepared.arguments.out = out.mutable_data_ptr<float>();
  multi_view_sampling::forward_cuda(prepared.arguments, current_stream(points.device()));
  return out;
}

// Adds to `sums`, which may be empty.
std::tuple<at::Tensor, at::Tensor> add_backward(
    const at::Tensor& grad, at::TensorList feats, const at::Tensor& points,
    const at::Tensor& occ2img, const at::Tensor& level_weights, const Shape& s, bool need_points,
    const std::vector<at::Tensor>& sums) {
  TORCH_CHECK_VALUE(grad.numel() == s.batch * s.queries * s.samples_per_query() * s.per_group,
                    "grad must have the shape of the output, got ", grad.sizes());
  check_same_device(points, "points", grad, "grad");
  Prepared prepared(s, feats, points, occ2img, level_weights);
  prepared.add_backward(grad);
  CudaArguments& a = prepared.arguments;
  std::optional<MapGradients> d_maps;
  if (!sums.empty()) d_maps.emplace(sums, a, prepared.grad, prepared.weights);
  at::Tensor d_points = at::empty({0}, points.options());
  at::Tensor d_weights = at::empty({0}, points.options());
  if (need_points) {
    d_points = at::zeros(points.sizes(), points.options());
    d_weights = at::zeros(level_weights.sizes(), points.options());
    a.d_points = d_points.mutable_data_ptr<float>();
    a.d_weights = d_weights.mutable_data_ptr<float>();
  }
  const CudaStream stream = current_stream(points.device());
  multi_view_sampling::backward_cuda(a, stream);
  if (d_maps) d_maps->finish(stream);
  return {d_points, d_weights};
}

std::tuple<std::vector<at::Tensor>, at::Tensor, at::Tensor> sampling_backward_cuda(
    const at::Tensor& grad, at::TensorList feats, const at::Tensor& points,
    const at::Tensor& occ2img, const at::Tensor& level_weights, int64_t img_h, int64_t img_w,
    int64_t num_cams, bool permuted, bool need_feats, bool need_points) {
  const Shape s =
      check_all(feats, points, occ2img, level_weights, img_h, img_w, num_cams, permuted);
  const c10::DeviceGuard guard(points.device());
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

std::tuple<at::Tensor, at::Tensor> sampling_backward_into_cuda(
    const at::Tensor& grad, at::TensorList feats, const at::Tensor& points,
    const at::Tensor& occ2img, const at::Tensor& level_weights, int64_t img_h, int64_t img_w,
    int64_t num_cams, bool permuted, bool need_points, at::TensorList sums) {
  const Shape s =
      check_all(feats, points, occ2img, level_weights, img_h, img_w, num_cams, permuted);
  multi_view_sampling::check_sums(sums, feats, points);
  const c10::DeviceGuard guard(points.device());
  return add_backward(grad, feats, points, occ2img, level_weights, s, need_points, sums.vec());
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CUDA, m) {
  m.impl("multi_view_sampling", &sampling_cuda);
  m.impl("multi_view_sampling_backward", &sampling_backward_cuda);
  m.impl("multi_view_sampling_backward_into", &sampling_backward_into_cuda);
}

}  // namespace opus
