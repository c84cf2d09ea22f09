#include "voxel_max/voxel_max.h"

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/parallel.h"
#include "common/targets.h"
#include "voxel_max/voxel_max_check.h"

#define OPUS_BODY_HEADER "voxel_max/voxel_max.h"
#define OPUS_KERNEL_HEADER "voxel_max/voxel_max_cpu_kernel.h"
#include "common/for_each_target.h"

namespace opus {
namespace {

constexpr int64_t kVoxelsPerTask = 256;

// Points by voxel: those of voxel v are order[starts[v] .. starts[v + 1]), ascending.
struct Groups {
  std::vector<int64_t> starts, order;
};

Groups group_points(const int64_t* voxel_of, int64_t num_points, int64_t num_voxels) {
  Groups groups{std::vector<int64_t>(num_voxels + 1), std::vector<int64_t>(num_points)};
  for (int64_t i = 0; i < num_points; ++i) {
    TORCH_CHECK_VALUE(voxel_of[i] >= 0 && voxel_of[i] < num_voxels, "voxel_index[", i, "] is ",
                      voxel_of[i], ", expected 0 <= index < num_voxels=", num_voxels);
    ++groups.starts[voxel_of[i] + 1];
  }
  for (int64_t v = 0; v < num_voxels; ++v) groups.starts[v + 1] += groups.starts[v];
  std::vector<int64_t> next(groups.starts.begin(), groups.starts.end() - 1);
  for (int64_t i = 0; i < num_points; ++i) groups.order[next[voxel_of[i]]++] = i;
  return groups;
}

std::tuple<at::Tensor, at::Tensor> voxel_max_cpu(const at::Tensor& features,
                                                 const at::Tensor& voxel_index,
                                                 int64_t num_voxels, bool with_winner) {
  voxel_max::check(features, voxel_index, num_voxels);
  const at::Tensor f = features.contiguous(), index = voxel_index.contiguous();
  const int64_t n = f.size(0), channels = f.size(1);
  at::Tensor out = at::empty({num_voxels, channels}, f.options());
  at::Tensor winner = at::empty({with_winner ? num_voxels : 0, channels}, index.options());
  const Groups groups = group_points(index.const_data_ptr<int64_t>(), n, num_voxels);
  int64_t* winners = with_winner ? winner.data_ptr<int64_t>() : nullptr;
  AT_DISPATCH_FLOATING_TYPES(f.scalar_type(), "voxel_max", [&] {
    const scalar_t* values = f.const_data_ptr<scalar_t>();
    scalar_t* maxima = out.data_ptr<scalar_t>();
    parallel_tasks(num_blocks(num_voxels, kVoxelsPerTask), [&](int64_t task) {
      const int64_t begin = task * kVoxelsPerTask, end = std::min(num_voxels, begin + kVoxelsPerTask);
      OPUS_CALL_TARGET(voxel_maxima::reduce_voxels, values, channels, groups.starts.data(),
                       groups.order.data(), begin, end, maxima, winners);
    });
  });
  return {out, winner};
}

at::Tensor voxel_max_backward_cpu(const at::Tensor& grad, const at::Tensor& winner,
                                  int64_t num_points) {
  voxel_max::check_backward(grad, winner, num_points);
  const at::Tensor g = grad.contiguous(), w = winner.contiguous();
  const int64_t num_voxels = g.size(0), channels = g.size(1);
  at::Tensor out = at::zeros({num_points, channels}, g.options());
  const int64_t* winners = w.const_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "voxel_max_backward", [&] {
    const scalar_t* values = g.const_data_ptr<scalar_t>();
    scalar_t* grads = out.data_ptr<scalar_t>();
    // A point wins only in its own voxel, so no two voxels write the same element.
    parallel_tasks(num_blocks(num_voxels, kVoxelsPerTask), [&](int64_t task) {
      const int64_t end = std::min(num_voxels, (task + 1) * kVoxelsPerTask) * channels;
      for (int64_t i = task * kVoxelsPerTask * channels; i < end; ++i) {
        if (winners[i] < 0 || winners[i] >= num_points) continue;
        grads[winners[i] * channels + i % channels] = values[i];
      }
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) {
  m.impl("voxel_max", &voxel_max_cpu);
  m.impl("voxel_max_backward", &voxel_max_backward_cpu);
}

}  // namespace opus
