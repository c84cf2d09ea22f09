// Rendering of label grids: rays from one position, and the colours of hits with light, lines along
// voxel edges and fog.
#include "voxel_shading/voxel_shading.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "common/check.h"
#include "common/parallel.h"
#include "common/targets.h"
#include "ray_cast/pyramid.h"
#include "ray_cast/walk_avx2.h"
#include "voxel_shading/beam.h"

#if defined(OPUS_HAS_AVX2_TARGET)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#include "voxel_shading/ray_lanes_avx2.h"
#pragma GCC pop_options
#endif

#define OPUS_BODY_HEADER "voxel_shading/voxel_shading_body.h"
#define OPUS_KERNEL_HEADER "voxel_shading/voxel_shading_cpu_kernel.h"
#include "common/for_each_target.h"

namespace opus {
namespace {

using voxel_shading::kTile;
using voxel_shading::Picture;
using voxel_shading::Scene;
using voxel_shading::View;

// Sets light [Z + 2, X + 2, Y + 2, 2] and its strides in x, y, z.
void set_light(Scene& scene, const at::Tensor& light, at::IntArrayRef size) {
  const int64_t shape[4] = {size[2] + 2, size[0] + 2, size[1] + 2, 2};
  TORCH_CHECK_VALUE(light.sizes() == at::IntArrayRef(shape) && light.scalar_type() == at::kFloat,
                    "light must be float32 ", at::IntArrayRef(shape), " for labels ", size,
                    ", got ", light.scalar_type(), " ", light.sizes());
  scene.light = light.const_data_ptr<float>();
  scene.stride[0] = 2 * shape[2];
  scene.stride[1] = 2;
  scene.stride[2] = 2 * shape[1] * shape[2];
}

// `grid`: lower corner and voxel size in metres.
Scene make_scene(const at::Tensor& masks, const at::Tensor& labels, int64_t empty_label,
                 const at::Tensor& light, const at::Tensor& albedo,
                 at::ArrayRef<double> brightness, double occlusion, at::ArrayRef<double> grid) {
  check_length(brightness, 12, "brightness");
  check_length(grid, 6, "grid");
  TORCH_CHECK_VALUE(labels.dim() == 3 && labels.scalar_type() == at::kByte,
                    "labels must be uint8 [X, Y, Z], got ", labels.scalar_type(), " ",
                    labels.sizes());
  ray_cast::check_grid_size(labels.sizes());
  Scene scene{};
  scene.masks = ray_cast::layout_of(labels.sizes());
  TORCH_CHECK_VALUE(masks.numel() == scene.masks.total && masks.scalar_type() == at::kLong,
                    "masks must be int64 [1, ", scene.masks.total, "] for labels ",
                    labels.sizes(), ", got ", masks.scalar_type(), " ", masks.sizes());
  TORCH_CHECK_VALUE(albedo.dim() == 2 && albedo.size(1) == 3 && albedo.scalar_type() == at::kFloat,
                    "albedo must be float32 [C, 3], got ", albedo.scalar_type(), " ",
                    albedo.sizes());
  scene.masks.words = reinterpret_cast<const uint64_t*>(masks.const_data_ptr<int64_t>());
  ray_cast::check_empty_label(empty_label);
  scene.labels = labels.const_data_ptr<uint8_t>();
  scene.empty_label = static_cast<uint8_t>(empty_label);
  set_light(scene, light, labels.sizes());
  scene.albedo = albedo.const_data_ptr<float>();
  scene.num_classes = albedo.size(0);
  for (int f = 0; f < 6; ++f) {
    for (int i = 0; i < 2; ++i) {
      scene.brightness[f][i] = static_cast<float>(brightness[2 * f + i]);
    }
  }
  scene.occlusion = static_cast<float>(occlusion);
  for (int a = 0; a < 3; ++a) {
    TORCH_CHECK_VALUE(grid[3 + a] > 0, "voxel_size must be positive, got ", grid.slice(3));
    scene.grid_min_m[a] = grid[a];
    scene.voxel_size_m[a] = grid[3 + a];
    scene.grid_min[a] = static_cast<float>(grid[a]);
    scene.voxel_size[a] = static_cast<float>(grid[3 + a]);
  }
  return scene;
}

// `camera`: position, rows of the rotation, focal length in pixels.
View make_view(at::ArrayRef<double> camera, at::ArrayRef<double> edges, at::ArrayRef<double> fog) {
  check_length(camera, 13, "camera");
  check_length(edges, 3, "edges");
  check_length(fog, 3, "fog");
  View view{};
  for (int a = 0; a < 3; ++a) {
    view.position[a] = static_cast<float>(camera[a]);
    for (int b = 0; b < 3; ++b) view.rotation[a][b] = static_cast<float>(camera[3 + 3 * a + b]);
  }
  view.focal_px = static_cast<float>(camera[12]);
  view.edge_strength = static_cast<float>(edges[0]);
  view.edge_width_px = static_cast<float>(edges[1]);
  view.edge_scale = static_cast<float>(edges[2]);
  view.fog_strength = static_cast<float>(fog[0]);
  view.fog_start_m = static_cast<float>(fog[1]);
  view.fog_length_m = static_cast<float>(fog[2]);
  return view;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> voxel_shading_cpu(
    const at::Tensor& masks, const at::Tensor& labels, int64_t empty_label,
    const at::Tensor& light, const at::Tensor& albedo, const at::Tensor& directions,
    const std::optional<at::Tensor>& wanted, const at::Tensor& background,
    at::ArrayRef<double> brightness, double occlusion, at::ArrayRef<double> grid, at::ArrayRef<double> camera,
    at::ArrayRef<double> edges, at::ArrayRef<double> fog) {
  const at::Tensor masks_c = masks.contiguous(), labels_c = labels.contiguous();
  const at::Tensor light_c = light.contiguous(), albedo_c = albedo.contiguous();
  const Scene scene =
      make_scene(masks_c, labels_c, empty_label, light_c, albedo_c, brightness, occlusion, grid);
  const View view = make_view(camera, edges, fog);
  TORCH_CHECK_VALUE(directions.dim() == 3 && directions.size(2) == 3 &&
                        directions.scalar_type() == at::kFloat,
                    "directions must be float32 [H, W, 3], got ", directions.scalar_type(), " ",
                    directions.sizes());
  const int64_t h = directions.size(0), w = directions.size(1);
  TORCH_CHECK_VALUE(background.sizes() == at::IntArrayRef({h, 3}) &&
                        background.scalar_type() == at::kFloat,
                    "background must be float32 [", h, ", 3], got ", background.scalar_type(), " ",
                    background.sizes());
  const at::Tensor directions_c = directions.contiguous();
  const at::Tensor background_c = background.contiguous();
  const at::Tensor wanted_c = wanted ? wanted->contiguous() : at::Tensor();
  TORCH_CHECK_VALUE(!wanted || (wanted_c.sizes() == at::IntArrayRef({h, w}) &&
                                wanted_c.scalar_type() == at::kBool),
                    "wanted must be bool [", h, ", ", w, "], got ", wanted_c.scalar_type(), " ",
                    wanted_c.sizes());
  at::Tensor colour = at::empty({h, w, 4}, directions.options());
  at::Tensor key = at::empty({h, w}, directions.options().dtype(at::kInt));
  at::Tensor distance = at::empty({h, w}, directions.options());
  const Picture picture{directions_c.const_data_ptr<float>(),
                        wanted ? wanted_c.const_data_ptr<bool>() : nullptr,
                        background_c.const_data_ptr<float>(),
                        h,
                        w,
                        colour.mutable_data_ptr<float>(),
                        key.mutable_data_ptr<int32_t>(),
                        distance.mutable_data_ptr<float>()};
  constexpr int64_t kRowsPerTask = 2 * kTile;
  parallel_tasks(num_blocks(h, kRowsPerTask), [&](int64_t task) {
    const int64_t first = task * kRowsPerTask, last = std::min(h, first + kRowsPerTask);
    OPUS_CALL_TARGET(shading::draw_rows, scene, view, picture, first, last);
  });
  return {colour, key, distance};
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) { m.impl("voxel_shading", &voxel_shading_cpu); }

}  // namespace opus
