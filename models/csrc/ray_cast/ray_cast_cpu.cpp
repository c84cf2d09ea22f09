#include "ray_cast/ray_cast.h"

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <tuple>

#include "common/parallel.h"

namespace opus {
namespace {

using ray_cast::kLevels;
using ray_cast::Masks;

constexpr int64_t kRaysPerTask = 1024;

// Extents of the mask levels of one grid; the levels lie behind one another.
struct Layout {
  int size[3];
  int blocks[kLevels][3];
  int64_t offset[kLevels];
  int64_t total = 0;

  explicit Layout(at::IntArrayRef grid_size) {
    for (int a = 0; a < 3; ++a) size[a] = static_cast<int>(grid_size[a]);
    for (int level = 0; level < kLevels; ++level) {
      const int width = 4 << (2 * level);
      offset[level] = total;
      int64_t count = 1;
      for (int a = 0; a < 3; ++a) {
        blocks[level][a] = (size[a] + width - 1) / width;
        count *= blocks[level][a];
      }
      total += count;
    }
  }
};

void check_grids(const at::Tensor& grids) {
  TORCH_CHECK_VALUE(grids.dim() == 4 && grids.scalar_type() == at::kByte,
              "grids must be uint8 [G, X, Y, Z], got ", grids.scalar_type(), " ", grids.sizes());
  for (int a = 1; a < 4; ++a) {
    TORCH_CHECK_VALUE(grids.size(a) >= 1 && grids.size(a) < (1 << 20),
                "every axis of a grid must have 1 to 2^20 - 1 voxels, got ", grids.sizes());
  }
}

// Four voxels along z starting at `z`: a bit each. `row` points to z = 0 of the row.
inline uint64_t occupied_along_z(const uint8_t* row, int z, int size_z, uint8_t empty) {
  if (z + 4 <= size_z) {
    uint32_t word;
    std::memcpy(&word, row + z, 4);
    word ^= 0x01010101u * empty;
    const uint32_t nonzero = (((word & 0x7F7F7F7Fu) + 0x7F7F7F7Fu) | word) & 0x80808080u;
    return (nonzero >> 7) * 0x01020408u >> 24;  // bit 8i -> bit 24 + i -> bit i
  }
  uint64_t bits = 0;
  for (int i = 0; z + i < size_z; ++i) bits |= static_cast<uint64_t>(row[z + i] != empty) << i;
  return bits;
}

uint64_t voxel_bits(const uint8_t* grid, const Layout& lay, int bx, int by, int bz, uint8_t empty) {
  uint64_t bits = 0;
  const int x_end = std::min(4, lay.size[0] - 4 * bx), y_end = std::min(4, lay.size[1] - 4 * by);
  for (int x = 0; x < x_end; ++x) {
    for (int y = 0; y < y_end; ++y) {
      const int64_t row = static_cast<int64_t>(4 * bx + x) * lay.size[1] + 4 * by + y;
      bits |= occupied_along_z(grid + row * lay.size[2], 4 * bz, lay.size[2], empty)
              << (16 * x + 4 * y);
    }
  }
  return bits;
}

uint64_t child_bits(const uint64_t* child, const int* n, int bx, int by, int bz) {
  uint64_t bits = 0;
  for (int x = 4 * bx; x < std::min(4 * bx + 4, n[0]); ++x) {
    for (int y = 4 * by; y < std::min(4 * by + 4, n[1]); ++y) {
      for (int z = 4 * bz; z < std::min(4 * bz + 4, n[2]); ++z) {
        const bool any = child[(static_cast<int64_t>(x) * n[1] + y) * n[2] + z] != 0;
        bits |= static_cast<uint64_t>(any) << ray_cast::bit_of(x, y, z);
      }
    }
  }
  return bits;
}

// Recomputes the masks of all blocks that overlap voxels [lower, upper).
void fill_masks(uint64_t* masks, const uint8_t* grid, const Layout& lay, uint8_t empty,
                const std::array<int, 3>& lower, const std::array<int, 3>& upper) {
  for (int level = 0; level < kLevels; ++level) {
    const int shift = 2 * (level + 1);
    int lo[3], hi[3];
    for (int a = 0; a < 3; ++a) {
      lo[a] = lower[a] >> shift;
      hi[a] = (upper[a] - 1) >> shift;
    }
    const int* n = lay.blocks[level];
    uint64_t* out = masks + lay.offset[level];
    const uint64_t* child = level > 0 ? masks + lay.offset[level - 1] : nullptr;
    parallel_tasks(hi[0] - lo[0] + 1, [&](int64_t task) {
      const int bx = lo[0] + static_cast<int>(task);
      for (int by = lo[1]; by <= hi[1]; ++by) {
        for (int bz = lo[2]; bz <= hi[2]; ++bz) {
          out[(static_cast<int64_t>(bx) * n[1] + by) * n[2] + bz] =
              level == 0 ? voxel_bits(grid, lay, bx, by, bz, empty)
                         : child_bits(child, lay.blocks[level - 1], bx, by, bz);
        }
      }
    });
  }
}

at::Tensor occupancy_masks(const at::Tensor& grids, int64_t empty_label) {
  check_grids(grids);
  TORCH_CHECK_VALUE(empty_label >= 0 && empty_label <= 255, "empty_label must be in 0..255, got ",
              empty_label);
  const at::Tensor g = grids.contiguous();
  const Layout lay(g.sizes().slice(1));
  at::Tensor masks = at::empty({g.size(0), lay.total}, g.options().dtype(at::kLong));
  const int64_t voxels = g.size(1) * g.size(2) * g.size(3);
  for (int64_t i = 0; i < g.size(0); ++i) {
    fill_masks(reinterpret_cast<uint64_t*>(masks.data_ptr<int64_t>()) + i * lay.total,
               g.const_data_ptr<uint8_t>() + i * voxels, lay, static_cast<uint8_t>(empty_label),
               {0, 0, 0}, {lay.size[0], lay.size[1], lay.size[2]});
  }
  return masks;
}

void occupancy_masks_update(at::Tensor& masks, const at::Tensor& grids, int64_t empty_label,
                            at::IntArrayRef lower, at::IntArrayRef upper) {
  check_grids(grids);
  const Layout lay(grids.sizes().slice(1));
  TORCH_CHECK_VALUE(grids.is_contiguous() && masks.is_contiguous(),
              "grids and masks must be contiguous to be updated in place");
  TORCH_CHECK_VALUE(masks.dim() == 2 && masks.size(0) == grids.size(0) && masks.size(1) == lay.total,
              "masks must be [", grids.size(0), ", ", lay.total, "] for grids ", grids.sizes(),
              ", got ", masks.sizes());
  std::array<int, 3> lo{}, hi{};
  for (int a = 0; a < 3; ++a) {
    lo[a] = static_cast<int>(std::clamp<int64_t>(lower[a], 0, lay.size[a]));
    hi[a] = static_cast<int>(std::clamp<int64_t>(upper[a], 0, lay.size[a]));
    if (lo[a] >= hi[a]) return;
  }
  const int64_t voxels = grids.size(1) * grids.size(2) * grids.size(3);
  for (int64_t i = 0; i < grids.size(0); ++i) {
    fill_masks(reinterpret_cast<uint64_t*>(masks.data_ptr<int64_t>()) + i * lay.total,
               grids.const_data_ptr<uint8_t>() + i * voxels, lay,
               static_cast<uint8_t>(empty_label), lo, hi);
  }
}

template <typename T>
void cast_all(const at::Tensor& masks, const Layout& lay, const at::Tensor& origins,
              const at::Tensor& directions, at::ArrayRef<double> grid_min,
              at::ArrayRef<double> voxel_size, double max_distance, bool skip_empty,
              at::Tensor& voxel, at::Tensor& hit, at::Tensor& t_enter, at::Tensor& t_exit,
              at::Tensor& face) {
  const int64_t num_origins = origins.size(0), num_directions = directions.size(0);
  const int64_t num_rays = masks.size(0) * num_origins * num_directions;
  const auto* bits = reinterpret_cast<const uint64_t*>(masks.const_data_ptr<int64_t>());
  const T* o_m = origins.const_data_ptr<T>();
  const T* d_m = directions.const_data_ptr<T>();
  int32_t* out_voxel = voxel.data_ptr<int32_t>();
  bool* out_hit = hit.data_ptr<bool>();
  T* out_enter = t_enter.data_ptr<T>();
  T* out_exit = t_exit.data_ptr<T>();
  int8_t* out_face = face.data_ptr<int8_t>();

  parallel_tasks(num_blocks(num_rays, kRaysPerTask), [&](int64_t task) {
    Masks view;
    for (int level = 0; level < kLevels; ++level) {
      for (int a = 0; a < 3; ++a) view.blocks[level][a] = lay.blocks[level][a];
    }
    for (int a = 0; a < 3; ++a) view.size[a] = lay.size[a];
    const int64_t end = std::min(num_rays, (task + 1) * kRaysPerTask);
    for (int64_t r = task * kRaysPerTask; r < end; ++r) {
      const int64_t line = r / num_directions;
      const T* origin = o_m + 3 * (line % num_origins);
      const T* direction = d_m + 3 * (r % num_directions);
      const uint64_t* grid_bits = bits + line / num_origins * lay.total;
      for (int level = 0; level < kLevels; ++level) {
        view.level[level] = grid_bits + lay.offset[level];
      }
      double o[3], d[3];
      for (int a = 0; a < 3; ++a) {
        o[a] = (static_cast<double>(origin[a]) - grid_min[a]) / voxel_size[a];
        d[a] = static_cast<double>(direction[a]) / voxel_size[a];
      }
      const ray_cast::Hit result = ray_cast::cast(view, o, d, max_distance, skip_empty);
      for (int a = 0; a < 3; ++a) out_voxel[3 * r + a] = result.voxel[a];
      out_hit[r] = result.hit;
      out_enter[r] = static_cast<T>(result.t_enter);
      out_exit[r] = static_cast<T>(result.t_exit);
      out_face[r] = static_cast<int8_t>(result.face);
    }
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> ray_cast_cpu(
    const at::Tensor& masks, at::IntArrayRef grid_size, const at::Tensor& origins,
    const at::Tensor& directions, at::ArrayRef<double> grid_min, at::ArrayRef<double> voxel_size,
    double max_distance, bool skip_empty) {
  TORCH_CHECK_VALUE(origins.dim() == 2 && origins.size(1) == 3, "origins must be [O, 3], got ",
              origins.sizes());
  TORCH_CHECK_VALUE(directions.dim() == 2 && directions.size(1) == 3, "directions must be [D, 3], got ",
              directions.sizes());
  TORCH_CHECK_VALUE(origins.scalar_type() == directions.scalar_type(),
              "origins and directions must have one dtype, got ", origins.scalar_type(), " and ",
              directions.scalar_type());
  const Layout lay(grid_size);
  TORCH_CHECK_VALUE(masks.dim() == 2 && masks.size(1) == lay.total && masks.scalar_type() == at::kLong,
              "masks must be int64 [G, ", lay.total, "] for grids of ", grid_size, ", got ",
              masks.scalar_type(), " ", masks.sizes());
  for (int a = 0; a < 3; ++a) {
    TORCH_CHECK_VALUE(voxel_size[a] > 0, "voxel_size must be positive, got ", voxel_size);
  }
  const int64_t g = masks.size(0), o = origins.size(0), d = directions.size(0);
  at::Tensor voxel = at::empty({g, o, d, 3}, origins.options().dtype(at::kInt));
  at::Tensor hit = at::empty({g, o, d}, origins.options().dtype(at::kBool));
  at::Tensor t_enter = at::empty({g, o, d}, origins.options());
  at::Tensor t_exit = at::empty({g, o, d}, origins.options());
  at::Tensor face = at::empty({g, o, d}, origins.options().dtype(at::kChar));
  AT_DISPATCH_FLOATING_TYPES(origins.scalar_type(), "ray_cast", [&] {
    cast_all<scalar_t>(masks.contiguous(), lay, origins.contiguous(), directions.contiguous(),
                       grid_min, voxel_size, max_distance, skip_empty, voxel, hit, t_enter, t_exit,
                       face);
  });
  return {voxel, hit, t_enter, t_exit, face};
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) {
  m.impl("occupancy_masks", &occupancy_masks);
  m.impl("occupancy_masks_update_", &occupancy_masks_update);
  m.impl("ray_cast", &ray_cast_cpu);
}

}  // namespace opus
