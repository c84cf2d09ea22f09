// Light in the cells of a voxel scene: sunlight with soft shadows, ambient light with occlusion.
#include <ATen/core/Tensor.h>
#include <ATen/ops/ones.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common/check.h"
#include "common/targets.h"

namespace opus {
namespace voxel_light {

// Radius of the neighbourhood that reduces ambient light, in voxels. Sums over a plane of it fit
// into a byte.
constexpr int kReach = 3;

struct Size {
  int64_t x, y, z;
};

// Shift of the sun's rays per layer, in voxels.
struct Slope {
  double x, y;
};

}  // namespace voxel_light
}  // namespace opus

#define OPUS_BODY_HEADER "voxel_light/voxel_light_body.h"
#define OPUS_KERNEL_HEADER "voxel_light/voxel_light_cpu_kernel.h"
#include "common/for_each_target.h"

namespace opus {
namespace {

void check(const at::Tensor& grid, const char* name) {
  TORCH_CHECK_VALUE(grid.dim() == 3 && grid.numel() > 0 && grid.scalar_type() == at::kBool, name,
                    " must be bool [X, Y, Z], got ", grid.scalar_type(), " ", grid.sizes());
}

// Runs on the calling thread, because callers render several grids in parallel.
at::Tensor voxel_light_cpu(const at::Tensor& drawn, const at::Tensor& opaque,
                           at::ArrayRef<double> sun_slope) {
  check(drawn, "drawn");
  check(opaque, "opaque");
  TORCH_CHECK_VALUE(drawn.sizes() == opaque.sizes(), "drawn and opaque must have one shape, got ",
                    drawn.sizes(), " and ", opaque.sizes());
  check_length(sun_slope, 2, "sun_slope");
  for (const double slope : sun_slope) {
    TORCH_CHECK_VALUE(std::fabs(slope) <= 1e3, "sun_slope must be within 1000 voxels, got ",
                      sun_slope);
  }
  const voxel_light::Size size{drawn.size(0), drawn.size(1), drawn.size(2)};
  const at::Tensor drawn_c = drawn.contiguous(), opaque_c = opaque.contiguous();
  at::Tensor light = at::ones({size.z + 2, size.x + 2, size.y + 2, 2},
                              drawn.options().dtype(at::kFloat));
  OPUS_CALL_TARGET(light::light_cells, drawn_c.const_data_ptr<bool>(),
                   opaque_c.const_data_ptr<bool>(), size, {sun_slope[0], sun_slope[1]},
                   light.mutable_data_ptr<float>());
  return light;
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) { m.impl("voxel_light", &voxel_light_cpu); }

}  // namespace opus
