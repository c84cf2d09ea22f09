#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "common/check.h"
#include "ray_cast/pyramid.h"
#include "ray_cast/walk_avx2.h"

namespace opus {

using ray_cast::check_grids;
using ray_cast::layout_of;
using ray_cast::Masks;

at::Tensor ray_cast::make_masks(const at::Tensor& grids, int64_t empty_label) {
  const auto size = grids.sizes().slice(1);
  at::Tensor masks =
      at::empty({grids.size(0), layout_of(size).total}, grids.options().dtype(at::kLong));
  fill_masks(masks, grids, empty_label, {0, 0, 0},
             {static_cast<int>(size[0]), static_cast<int>(size[1]), static_cast<int>(size[2])});
  return masks;
}

namespace {

constexpr int64_t kRaysPerTask = 1024;

at::Tensor occupancy_masks(const at::Tensor& grids, int64_t empty_label) {
  check_grids(grids);
  ray_cast::check_empty_label(empty_label);
  const c10::DeviceGuard guard(grids.device());
  return ray_cast::make_masks(grids.contiguous(), empty_label);
}

void occupancy_masks_update(at::Tensor& masks, const at::Tensor& grids, int64_t empty_label,
                            at::IntArrayRef lower, at::IntArrayRef upper) {
  check_grids(grids);
  ray_cast::check_empty_label(empty_label);
  check_same_device(masks, "masks", grids, "grids");
  check_length(lower, 3, "lower");
  check_length(upper, 3, "upper");
  const Masks lay = layout_of(grids.sizes().slice(1));
  TORCH_CHECK_VALUE(grids.is_contiguous() && masks.is_contiguous(),
                    "grids and masks must be contiguous to be updated in place");
  TORCH_CHECK_VALUE(masks.dim() == 2 && masks.size(0) == grids.size(0) &&
                        masks.size(1) == lay.total && masks.scalar_type() == at::kLong,
                    "masks must be int64 [", grids.size(0), ", ", lay.total, "] for grids ",
                    grids.sizes(), ", got ", masks.scalar_type(), " ", masks.sizes());
  std::array<int, 3> lo{}, hi{};
  for (int a = 0; a < 3; ++a) {
    lo[a] = static_cast<int>(std::clamp<int64_t>(lower[a], 0, lay.size[a]));
    hi[a] = static_cast<int>(std::clamp<int64_t>(upper[a], 0, lay.size[a]));
    if (lo[a] >= hi[a]) return;
  }
  ray_cast::fill_masks(masks, grids, empty_label, lo, hi);
}

void check_rays(const at::Tensor& origins, const at::Tensor& directions) {
  TORCH_CHECK_VALUE(origins.dim() == 2 && origins.size(1) == 3, "origins must be [O, 3], got ",
                    origins.sizes());
  const bool shared = directions.dim() == 2;
  TORCH_CHECK_VALUE((shared || (directions.dim() == 3 && directions.size(0) == origins.size(0))) &&
                        directions.size(-1) == 3,
                    "directions must be [D, 3] or [", origins.size(0), ", D, 3], got ",
                    directions.sizes());
  TORCH_CHECK_VALUE(origins.scalar_type() == directions.scalar_type(),
                    "origins and directions must have one dtype, got ", origins.scalar_type(),
                    " and ", directions.scalar_type());
  check_same_device(origins, "origins", directions, "directions");
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> cast_rays(
    const at::Tensor& masks, at::IntArrayRef grid_size, const at::Tensor& origins,
    const at::Tensor& directions, at::ArrayRef<double> grid_min, at::ArrayRef<double> voxel_size,
    double max_distance, bool skip_empty) {
  check_rays(origins, directions);
  ray_cast::check_grid_size(grid_size);
  check_length(grid_min, 3, "grid_min");
  check_length(voxel_size, 3, "voxel_size");
  check_same_device(masks, "masks", origins, "origins");
  Masks lay = layout_of(grid_size);
  TORCH_CHECK_VALUE(masks.dim() == 2 && masks.size(1) == lay.total &&
                        masks.scalar_type() == at::kLong,
                    "masks must be int64 [G, ", lay.total, "] for grids of ", grid_size, ", got ",
                    masks.scalar_type(), " ", masks.sizes());
  for (int a = 0; a < 3; ++a) {
    TORCH_CHECK_VALUE(voxel_size[a] > 0, "voxel_size must be positive, got ", voxel_size);
  }
  const c10::DeviceGuard guard(origins.device());
  const int64_t g = masks.size(0), o = origins.size(0), d = directions.size(-2);
  at::Tensor voxel = at::empty({g, o, d, 3}, origins.options().dtype(at::kInt));
  at::Tensor hit = at::empty({g, o, d}, origins.options().dtype(at::kBool));
  at::Tensor t_enter = at::empty({g, o, d}, origins.options());
  at::Tensor t_exit = at::empty({g, o, d}, origins.options());
  at::Tensor face = at::empty({g, o, d}, origins.options().dtype(at::kChar));
  const at::Tensor words = masks.contiguous(), from = origins.contiguous();
  const at::Tensor along = directions.contiguous();
  lay.words = reinterpret_cast<const uint64_t*>(words.const_data_ptr<int64_t>());
  AT_DISPATCH_FLOATING_TYPES(origins.scalar_type(), "ray_cast", [&] {
    ray_cast::CastRays<scalar_t> body{};
    body.masks = lay;
    body.origins = from.const_data_ptr<scalar_t>();
    body.directions = along.const_data_ptr<scalar_t>();
    body.num_origins = o;
    body.num_directions = d;
    body.own_directions = directions.dim() == 3;
    std::copy_n(grid_min.begin(), 3, body.grid_min);
    std::copy_n(voxel_size.begin(), 3, body.voxel_size);
    body.max_distance = max_distance;
    body.skip_empty = skip_empty;
    body.voxel = voxel.mutable_data_ptr<int32_t>();
    body.hit = hit.mutable_data_ptr<bool>();
    body.t_enter = t_enter.mutable_data_ptr<scalar_t>();
    body.t_exit = t_exit.mutable_data_ptr<scalar_t>();
    body.face = face.mutable_data_ptr<int8_t>();
#if defined(OPUS_HAS_AVX2_KERNELS)
    if (!runs_on_gpu(origins.device()) && skip_empty && use_avx2()) {
      const auto fast = [&body](int64_t r) { body.cast_one(r, ray_cast::avx2::FastWalk{}); };
      return run_on_cpu(fast, g * o * d, kRaysPerTask);
    }
#endif
    run(origins.device(), body, g * o * d, kRaysPerTask);
  });
  return {voxel, hit, t_enter, t_exit, face};
}

}  // namespace

OPUS_REGISTER(m) {
  m.impl("occupancy_masks", &occupancy_masks);
  m.impl("occupancy_masks_update_", &occupancy_masks_update);
  m.impl("ray_cast", &cast_rays);
}

}  // namespace opus
