#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "common/parallel.h"
#include "sparse_conv/ranked_bitmap.h"
#include "sparse_conv/sparse_conv.h"

namespace opus {
namespace {

using sparse_conv::Geometry;

// 2 GiB of bits: 163 grids of 41 x 1600 x 1600.
constexpr int64_t kMaxVoxels = int64_t(1) << 34;
constexpr int64_t kInputsPerTask = 1024;
constexpr int64_t kSerialPairs = 65536;

// The sets of input and output voxels of a map.
struct Sets {
  const int64_t* coords;  // [n, 4]
  int64_t n;
  RankedBitmap in, out;       // `out` is empty for a submanifold map
  std::vector<int32_t> order;  // index of the input voxel with a given rank
  bool sorted;                 // whether the inputs come in the order of their rank
};

int64_t checked_volume(const int64_t* coords, int64_t n, const Geometry& geometry,
                       const int64_t* shape) {
  int64_t batch = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t* c = coords + 4 * i;
    bool inside = c[0] >= 0 && c[0] < kMaxVoxels;
    for (int a = 0; a < 3; ++a) inside &= c[1 + a] >= 0 && c[1 + a] < geometry.in_shape[a];
    TORCH_CHECK(inside, "coords[", i, "] = (", c[0], ", ", c[1], ", ", c[2], ", ", c[3],
                ") lies outside the grid of ", geometry.in_shape[0], " x ", geometry.in_shape[1],
                " x ", geometry.in_shape[2], " voxels");
    batch = std::max(batch, c[0] + 1);
  }
  double volume = static_cast<double>(batch);
  for (int a = 0; a < 3; ++a) volume *= static_cast<double>(shape[a]);
  TORCH_CHECK(volume <= static_cast<double>(kMaxVoxels), "a grid may have up to ", kMaxVoxels,
              " voxels over the batch, got ", volume);
  return static_cast<int64_t>(volume);
}

RankedBitmap mark_inputs(const int64_t* coords, int64_t n, const Geometry& geometry) {
  RankedBitmap set(checked_volume(coords, n, geometry, geometry.in_shape));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t key = sparse_conv::linear_index(geometry.in_shape, coords[4 * i],
                                                  coords + 4 * i + 1);
    TORCH_CHECK(!set.test(key), "coords must be unique, (", coords[4 * i], ", ", coords[4 * i + 1],
                ", ", coords[4 * i + 2], ", ", coords[4 * i + 3], ") repeats");
    set.set(key);
  }
  set.index();
  return set;
}

// The outputs that one input reaches, axis by axis: -1 where a kernel index leads nowhere.
class Reach {
 public:
  explicit Reach(const Geometry& geometry) : geometry_(geometry) {
    for (int a = 0; a < 3; ++a) out_[a].resize(geometry.kernel[a]);
  }

  // Calls visit(position, key) for every kernel position, key -1 where it reaches nothing.
  template <typename Visit>
  void for_each_position(const int64_t* coords, const Visit& visit) {
    const int64_t* shape = geometry_.out_shape;
    for (int a = 0; a < 3; ++a) {
      for (int64_t k = 0; k < geometry_.kernel[a]; ++k) {
        out_[a][k] = sparse_conv::reach(geometry_, a, coords[1 + a], k);
      }
    }
    int64_t position = 0;
    for (const int64_t d0 : out_[0]) {
      for (const int64_t d1 : out_[1]) {
        const int64_t row = ((coords[0] * shape[0] + d0) * shape[1] + d1) * shape[2];
        const bool reaches = d0 >= 0 && d1 >= 0;
        for (const int64_t d2 : out_[2]) visit(position++, reaches && d2 >= 0 ? row + d2 : -1);
      }
    }
  }

 private:
  const Geometry& geometry_;
  std::vector<int64_t> out_[3];
};

RankedBitmap mark_outputs(const int64_t* coords, int64_t n, const Geometry& geometry) {
  RankedBitmap set(checked_volume(coords, n, geometry, geometry.out_shape));
  Reach reach(geometry);
  for (int64_t i = 0; i < n; ++i) {
    reach.for_each_position(coords + 4 * i, [&](int64_t, int64_t key) {
      if (key >= 0) set.set(key);
    });
  }
  return set;
}

// reached[k * n + i]: the output that input i reaches through kernel position k, or -1.
std::unique_ptr<int32_t[]> find_outputs(const Sets& sets, const Geometry& geometry, bool subm) {
  const int64_t positions = geometry.kernel[0] * geometry.kernel[1] * geometry.kernel[2];
  std::unique_ptr<int32_t[]> reached(new int32_t[positions * sets.n]);  // left uninitialised
  int32_t* const table = reached.get();
  parallel_tasks(num_blocks(sets.n, kInputsPerTask), [&](int64_t task) {
    const int64_t end = std::min(sets.n, (task + 1) * kInputsPerTask);
    Reach reach(geometry);
    for (int64_t i = task * kInputsPerTask; i < end; ++i) {
      reach.for_each_position(sets.coords + 4 * i, [&](int64_t position, int64_t key) {
        int32_t index = -1;
        if (key >= 0 && !subm) {
          index = static_cast<int32_t>(sets.out.rank(key));
        } else if (key >= 0 && sets.in.test(key)) {
          index = sets.order[sets.in.rank(key)];
        }
        table[position * sets.n + i] = index;
      });
    }
  });
  return reached;
}

at::Tensor output_coords(const RankedBitmap& out, int64_t m, const Geometry& geometry,
                         const at::TensorOptions& options) {
  at::Tensor coords = at::empty({m, 4}, options);
  int64_t* row = coords.data_ptr<int64_t>();
  const int64_t* shape = geometry.out_shape;
  out.for_each([&](int64_t key) {
    row[3] = key % shape[2];
    row[2] = key / shape[2] % shape[1];
    row[1] = key / (shape[2] * shape[1]) % shape[0];
    row[0] = key / (shape[2] * shape[1] * shape[0]);
    row += 4;
  });
  return coords;
}

// Pairs of all kernel positions one after another; those of a position in the order in which
// `nth(position, j)` gives them, for j in [0, count): a pair (in, out) or out = -1 for none.
template <typename Nth>
at::Tensor list_pairs(const std::vector<int64_t>& starts, int64_t count, const Nth& nth,
                      const at::TensorOptions& options) {
  const auto positions = static_cast<int64_t>(starts.size()) - 1;
  at::Tensor pairs = at::empty({2, starts.back()}, options.dtype(at::kInt));
  int32_t* in = pairs.data_ptr<int32_t>();
  int32_t* out = in + starts.back();
  parallel_tasks_if(positions * count > kSerialPairs, positions, [&](int64_t position) {
    int64_t next = starts[position];
    for (int64_t j = 0; j < count; ++j) {
      const auto [from, to] = nth(position, j);
      if (next == starts[position + 1]) break;
      in[next] = from;  // overwritten if it is no pair: a branch would be unpredictable
      out[next] = to;
      next += (from >= 0) & (to >= 0);
    }
  });
  return pairs;
}

std::vector<int64_t> count_pairs(const int32_t* reached, int64_t positions, int64_t n) {
  std::vector<int64_t> starts(positions + 1, 0);
  parallel_tasks_if(positions * n > kSerialPairs, positions, [&](int64_t position) {
    const int32_t* begin = reached + position * n;
    starts[position + 1] = std::count_if(begin, begin + n, [](int32_t out) { return out >= 0; });
  });
  for (int64_t position = 0; position < positions; ++position) {
    starts[position + 1] += starts[position];
  }
  return starts;
}

Geometry make_geometry(at::IntArrayRef shape, at::IntArrayRef kernel, at::IntArrayRef stride,
                       at::IntArrayRef padding, bool subm) {
  Geometry geometry{};
  for (int a = 0; a < 3; ++a) {
    TORCH_CHECK_VALUE(shape[a] >= 1 && kernel[a] >= 1 && stride[a] >= 1 && padding[a] >= 0,
                      "spatial_shape, kernel_size and stride must be positive and padding not "
                      "negative, got ", shape, ", ", kernel, ", ", stride, " and ", padding);
    TORCH_CHECK_VALUE(!subm || (kernel[a] % 2 == 1 && stride[a] == 1 &&
                                padding[a] == kernel[a] / 2),
                      "a submanifold map needs an odd, centred kernel and stride 1, got kernel ",
                      kernel, ", stride ", stride, ", padding ", padding);
    geometry.in_shape[a] = shape[a];
    geometry.kernel[a] = kernel[a];
    geometry.stride[a] = stride[a];
    geometry.padding[a] = padding[a];
    const int64_t room = shape[a] + 2 * padding[a] - kernel[a];
    geometry.out_shape[a] = room < 0 ? 0 : room / stride[a] + 1;
  }
  return geometry;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> kernel_map_cpu(
    const at::Tensor& coords, at::IntArrayRef spatial_shape, at::IntArrayRef kernel_size,
    at::IntArrayRef stride, at::IntArrayRef padding, bool subm) {
  TORCH_CHECK_VALUE(coords.dim() == 2 && coords.size(1) == 4 && coords.scalar_type() == at::kLong,
                    "coords must be int64 [n, 4], got ", coords.scalar_type(), " ",
                    coords.sizes());
  const Geometry geometry = make_geometry(spatial_shape, kernel_size, stride, padding, subm);
  const at::Tensor c = coords.contiguous();
  const int64_t n = c.size(0);
  const int64_t positions = kernel_size[0] * kernel_size[1] * kernel_size[2];
  const int64_t* rows = c.const_data_ptr<int64_t>();
  Sets sets{rows, n, mark_inputs(rows, n, geometry), RankedBitmap(0), std::vector<int32_t>(n),
            true};
  for (int64_t i = 0; i < n; ++i) {
    const int64_t key = sparse_conv::linear_index(geometry.in_shape, rows[4 * i], rows + 4 * i + 1);
    const int64_t rank = sets.in.rank(key);
    sets.order[rank] = static_cast<int32_t>(i);
    sets.sorted &= rank == i;
  }
  at::Tensor out_coords = at::empty({0, 4}, c.options());
  if (!subm) {
    sets.out = mark_outputs(rows, n, geometry);
    const int64_t m = sets.out.index();
    out_coords = output_coords(sets.out, m, geometry, c.options());
  }

  const std::unique_ptr<int32_t[]> reached = find_outputs(sets, geometry, subm);
  const std::vector<int64_t> starts = count_pairs(reached.get(), positions, n);
  using Pair = std::pair<int32_t, int32_t>;
  const at::Tensor by_in = list_pairs(
      starts, n,
      [&](int64_t position, int64_t j) {
        return Pair(static_cast<int32_t>(j), reached[position * n + j]);
      },
      c.options());
  // With sorted inputs a kernel position shifts all keys alike: both orders are one, given once.
  at::Tensor by_out = at::empty({2, 0}, c.options().dtype(at::kInt));
  if (!sets.sorted && subm) {
    by_out = list_pairs(
        starts, n,
        [&](int64_t position, int64_t j) {  // the mirrored position leads back to the input
          return Pair(reached[(positions - 1 - position) * n + j], static_cast<int32_t>(j));
        },
        c.options());
  } else if (!sets.sorted) {
    by_out = list_pairs(
        starts, n,
        [&](int64_t position, int64_t j) {
          return Pair(sets.order[j], reached[position * n + sets.order[j]]);
        },
        c.options());
  }
  at::Tensor start_tensor = at::empty({positions + 1}, c.options());
  std::copy(starts.begin(), starts.end(), start_tensor.data_ptr<int64_t>());
  return {out_coords, by_out, by_in, start_tensor};
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) { m.impl("kernel_map", &kernel_map_cpu); }

}  // namespace opus
