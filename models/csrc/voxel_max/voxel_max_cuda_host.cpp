// Compiled into CUDA builds only.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "common/launch.h"
#include "voxel_max/voxel_max.h"
#include "voxel_max/voxel_max_check.h"

namespace opus {
namespace {

std::tuple<at::Tensor, at::Tensor> voxel_max_cuda(const at::Tensor& features,
                                                  const at::Tensor& voxel_index,
                                                  int64_t num_voxels, bool with_winner) {
  voxel_max::check(features, voxel_index, num_voxels);
  check_same_device(features, "features", voxel_index, "voxel_index");
  TORCH_CHECK_VALUE(features.scalar_type() == at::kFloat, "features must be float32 on CUDA, got ",
                    features.scalar_type());
  const c10::DeviceGuard guard(features.device());
  const at::Tensor f = features.contiguous(), index = voxel_index.contiguous();
  const int64_t n = f.size(0), channels = f.size(1);
  TORCH_CHECK_VALUE(n <= voxel_max::kMaxPoints, "features may have up to ", voxel_max::kMaxPoints,
                    " rows on CUDA, got ", n);
  const at::Tensor keys = at::zeros({num_voxels, channels}, index.options());
  at::Tensor maximum = at::empty({num_voxels, channels}, f.options());
  at::Tensor winner = at::empty({with_winner ? num_voxels : 0, channels}, index.options());
  auto* key_data = reinterpret_cast<uint64_t*>(keys.mutable_data_ptr<int64_t>());
  const auto* values = f.const_data_ptr<float>();
  const CudaStream stream = current_stream(f.device());
  voxel_max::find_keys_cuda(values, index.const_data_ptr<int64_t>(), n, channels, num_voxels,
                            key_data, stream);
  const voxel_max::ReadKeys body{key_data, values, channels, maximum.mutable_data_ptr<float>(),
                                 with_winner ? winner.mutable_data_ptr<int64_t>() : nullptr};
  launch_cuda(body, maximum.numel(), stream);
  return {maximum, winner};
}

at::Tensor voxel_max_backward_cuda(const at::Tensor& grad, const at::Tensor& winner,
                                   int64_t num_points) {
  voxel_max::check_backward(grad, winner, num_points);
  TORCH_CHECK_VALUE(grad.scalar_type() == at::kFloat, "grad must be float32 on CUDA, got ",
                    grad.scalar_type());
  check_same_device(grad, "grad", winner, "winner");
  const c10::DeviceGuard guard(grad.device());
  const at::Tensor g = grad.contiguous(), w = winner.contiguous();
  at::Tensor out = at::zeros({num_points, g.size(1)}, g.options());
  const voxel_max::ScatterGradients body{g.const_data_ptr<float>(), w.const_data_ptr<int64_t>(),
                                         g.size(1), num_points, out.mutable_data_ptr<float>()};
  launch_cuda(body, g.numel(), current_stream(g.device()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CUDA, m) {
  m.impl("voxel_max", &voxel_max_cuda);
  m.impl("voxel_max_backward", &voxel_max_backward_cuda);
}

}  // namespace opus
