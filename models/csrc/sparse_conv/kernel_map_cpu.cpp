#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "sparse_conv/ranked_bitmap.h"
#include "sparse_conv/sparse_conv.h"

namespace opus {
namespace {

using sparse_conv::Geometry;

// 1 GiB of bits: 81 grids of 41 x 1600 x 1600.
constexpr int64_t kMaxVoxels = int64_t(1) << 33;
constexpr int64_t kMaxSetting = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxPositions = int64_t(1) << 20;
// 8 GiB of Hits.
constexpr int64_t kMaxHits = int64_t(1) << 30;
constexpr int64_t kInputsPerTask = 1024;
constexpr int64_t kMostInRun = 32;  // number of bits in Hits

// Sets of input and output voxels of a map.
struct Sets {
  const int64_t* coords;       // [n, 4]
  int64_t n;
  RankedBitmap in, out;        // `out` is empty for a submanifold map
  std::vector<int32_t> order;  // index of the input voxel by rank; empty if they are equal
};

void check_active(int64_t count, const char* kind) {
  TORCH_CHECK_VALUE(count <= sparse_conv::kMaxActive, "a kernel map may have up to ",
                    sparse_conv::kMaxActive, " ", kind, " voxels, whose indices are int32, got ",
                    count);
}

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

std::vector<int32_t> order_of(const Sets& sets, const Geometry& geometry) {
  std::vector<int32_t> order(sets.n + 1);  // one extra entry, since ranks are read ahead
  bool sorted = true;
  for (int64_t i = 0; i < sets.n; ++i) {
    const int64_t* c = sets.coords + 4 * i;
    const int64_t rank = sets.in.rank(sparse_conv::linear_index(geometry.in_shape, c[0], c + 1));
    order[rank] = static_cast<int32_t>(i);
    sorted &= rank == i;
  }
  if (sorted) order.clear();
  return order;
}

// Run of adjacent kernel positions along the last axis, at most kMostInRun. The outputs reached
// through them are adjacent too, in the opposite order: bit b of a mask is the position `last - b`.
struct Run {
  int64_t k0, k1, k2;  // kernel index of the first position
  int64_t count, first, last;
};

std::vector<Run> make_runs(const Geometry& geometry) {
  std::vector<Run> runs;
  int64_t first = 0;
  for (int64_t k0 = 0; k0 < geometry.kernel[0]; ++k0) {
    for (int64_t k1 = 0; k1 < geometry.kernel[1]; ++k1) {
      for (int64_t k2 = 0; k2 < geometry.kernel[2]; k2 += kMostInRun) {
        const int64_t count = std::min(kMostInRun, geometry.kernel[2] - k2);
        runs.push_back({k0, k1, k2, count, first, first + count - 1});
        first += count;
      }
    }
  }
  return runs;
}

// Outputs reached by one input, run by run.
class Reach {
 public:
  Reach(const Geometry& geometry, const std::vector<Run>& runs) : geometry_(geometry), runs_(runs) {
    for (int a = 0; a < 2; ++a) out_[a].resize(geometry.kernel[a]);
    along_.resize(num_blocks(geometry.kernel[2], kMostInRun));
  }

  // Calls visit(run, key, count, bits) for the first `num_runs` runs. The outputs inside the grid
  // are key .. key + count, with the mask `bits` of the run.
  template <typename Visit>
  void for_each_run(const int64_t* coords, int64_t num_runs, const Visit& visit) {
    for (int a = 0; a < 2; ++a) {
      for (int64_t k = 0; k < geometry_.kernel[a]; ++k) {
        out_[a][k] = sparse_conv::reach(geometry_, a, coords[1 + a], k);
      }
    }
    for (size_t i = 0; i < along_.size(); ++i) along_[i] = along_last_axis(coords[3], runs_[i]);
    const int64_t* shape = geometry_.out_shape;
    for (int64_t r = 0; r < num_runs; ++r) {
      const Along& along = along_[runs_[r].k2 / kMostInRun];
      const int64_t d0 = out_[0][runs_[r].k0], d1 = out_[1][runs_[r].k1];
      const int64_t row = ((coords[0] * shape[0] + d0) * shape[1] + d1) * shape[2];
      const bool inside = d0 >= 0 && d1 >= 0;
      visit(r, row + along.lowest, inside ? along.count : 0, inside ? along.bits : 0);
    }
  }

 private:
  struct Along {
    int64_t lowest;
    int count;
    uint32_t bits;
  };

  Along along_last_axis(int64_t in, const Run& run) const {
    Along along{0, 0, 0};
    for (int64_t bit = run.count - 1; bit >= 0; --bit) {
      const int64_t out = sparse_conv::reach(geometry_, 2, in, run.k2 + run.count - 1 - bit);
      if (out < 0) continue;
      along.lowest = out;
      along.bits |= uint32_t(1) << bit;
      ++along.count;
    }
    return along;
  }

  const Geometry& geometry_;
  const std::vector<Run>& runs_;
  std::vector<int64_t> out_[2];
  std::vector<Along> along_;
};

RankedBitmap mark_outputs(const int64_t* coords, int64_t n, const Geometry& geometry,
                          const std::vector<Run>& runs) {
  RankedBitmap set(checked_volume(coords, n, geometry, geometry.out_shape));
  Reach reach(geometry, runs);
  const auto num_runs = static_cast<int64_t>(runs.size());
  for (int64_t i = 0; i < n; ++i) {
    reach.for_each_run(coords + 4 * i, num_runs, [&](int64_t, int64_t key, int count, uint32_t) {
      if (count > 0) set.set_window(key, count);
    });
  }
  return set;
}

// Active outputs reached by an input through a run: their bits, and the rank of the first.
struct Hits {
  uint32_t bits;
  int32_t rank;
};

// [num_runs, n]
std::unique_ptr<Hits[]> find_outputs(const Sets& sets, const Geometry& geometry,
                                     const std::vector<Run>& runs, int64_t num_runs, bool subm) {
  std::unique_ptr<Hits[]> hits(new Hits[num_runs * sets.n]);  // left uninitialised
  Hits* const table = hits.get();
  const RankedBitmap& set = subm ? sets.in : sets.out;
  parallel_tasks(num_blocks(sets.n, kInputsPerTask), [&](int64_t task) {
    const int64_t end = std::min(sets.n, (task + 1) * kInputsPerTask);
    Reach reach(geometry, runs);
    for (int64_t i = task * kInputsPerTask; i < end; ++i) {
      reach.for_each_run(sets.coords + 4 * i, num_runs, [&](int64_t run, int64_t key, int count,
                                                            uint32_t bits) {
        Hits& here = table[run * sets.n + i];
        here = {0, 0};
        if (count == 0) return;
        // All outputs of a dilating map are active. A submanifold map has stride 1, so its bits are
        // adjacent.
        if (subm) bits = set.window(key, count) << std::countr_zero(bits);
        here = {bits, static_cast<int32_t>(set.rank(key))};
      });
    }
  });
  return hits;
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

// Source of the pairs of a list.
struct Source {
  const Hits* hits;  // [num_runs, n]
  const std::vector<Run>& runs;
  int64_t num_runs, n;
  const int32_t* order;  // processing order of the inputs; null: ascending
  const int32_t* index;  // index of an output by rank; null: the rank itself
  bool mirrored;         // swap input and output and use the opposite position (submanifold maps)
  int64_t positions() const { return runs.back().last + 1; }
  int64_t listed() const { return runs[num_runs - 1].last + 1; }
  int64_t tasks() const { return num_blocks(n, kInputsPerTask); }
  int64_t position_of(const Run& run, int64_t bit) const {
    return mirrored ? positions() - 1 - (run.last - bit) : run.last - bit;
  }
};

// kCount is run.count, or 0 if it is not known at compile time.
template <int64_t kCount>
void list_run(const Source& source, const Run& run, const Hits* hits, int64_t begin, int64_t end,
              const int64_t* starts, const int64_t* ends, int32_t* in, int32_t* out) {
  const int64_t count = kCount != 0 ? kCount : run.count;
  int64_t next[kMostInRun], last[kMostInRun];
  for (int64_t bit = 0; bit < count; ++bit) {
    next[bit] = starts[source.position_of(run, bit)];
    last[bit] = ends[source.position_of(run, bit)];
  }
  if (source.mirrored) std::swap(in, out);
  for (int64_t i = begin; i < end; ++i) {
    const int32_t from = source.order != nullptr ? source.order[i] : static_cast<int32_t>(i);
    const Hits here = hits[from];
    int32_t rank = here.rank;
    for (int64_t bit = 0; bit < count; ++bit) {
      const auto hit = static_cast<int32_t>(here.bits >> bit & 1);
      if (next[bit] < last[bit]) {  // without a hit overwritten later; avoids a branch on `hit`
        in[next[bit]] = from;
        out[next[bit]] = source.index != nullptr ? source.index[rank] : rank;
      }
      next[bit] += hit;
      rank += hit;
    }
  }
}

// Returns the pairs [2, R] of all kernel positions in sequence, and the start of each position.
// Positions not listed by the source are the opposites of listed ones; their pairs are in the same
// order.
std::pair<at::Tensor, std::vector<int64_t>> list_pairs(const Source& source,
                                                       const at::TensorOptions& options) {
  const int64_t positions = source.positions(), listed = source.listed(), tasks = source.tasks();
  // First the number of pairs of each task, then their start; the entry after the last task is the
  // end of the position.
  std::vector<int64_t> next((tasks + 1) * positions, 0);
  const auto of_task = [&](int64_t task, const auto& visit) {
    const int64_t begin = task * kInputsPerTask, end = std::min(source.n, begin + kInputsPerTask);
    for (int64_t r = 0; r < source.num_runs; ++r) {
      visit(source.runs[r], source.hits + r * source.n, begin, end);
    }
  };
  parallel_tasks(tasks, [&](int64_t task) {
    int64_t* counts = next.data() + task * positions;
    of_task(task, [&](const Run& run, const Hits* hits, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const uint32_t bits = hits[source.order != nullptr ? source.order[i] : i].bits;
        for (int64_t bit = 0; bit < run.count; ++bit) {
          counts[source.position_of(run, bit)] += bits >> bit & 1;
        }
      }
    });
  });
  std::vector<int64_t> starts(positions + 1, 0);
  for (int64_t position = 0; position < positions; ++position) {
    const int64_t turned = positions - 1 - position;
    int64_t total = starts[position];
    if (position >= listed) total += starts[turned + 1] - starts[turned];
    for (int64_t task = 0; task <= tasks; ++task) {
      total += std::exchange(next[task * positions + position], total);
    }
    starts[position + 1] = total;
  }
  at::Tensor pairs = at::empty({2, starts.back()}, options.dtype(at::kInt));
  int32_t* in = pairs.data_ptr<int32_t>();
  int32_t* out = in + starts.back();
  parallel_tasks(tasks, [&](int64_t task) {
    const int64_t *begins = next.data() + task * positions, *ends = begins + positions;
    of_task(task, [&](const Run& run, const Hits* hits, int64_t begin, int64_t end) {
      if (run.count == 3) {
        list_run<3>(source, run, hits, begin, end, begins, ends, in, out);
      } else {
        list_run<0>(source, run, hits, begin, end, begins, ends, in, out);
      }
    });
  });
  parallel_tasks(positions - listed, [&](int64_t task) {
    const int64_t position = listed + task, turned = positions - 1 - position;
    const int64_t begin = starts[turned], end = starts[turned + 1];
    std::copy(in + begin, in + end, out + starts[position]);
    std::copy(out + begin, out + end, in + starts[position]);
  });
  return {pairs, starts};
}

Geometry make_geometry(at::IntArrayRef shape, at::IntArrayRef kernel, at::IntArrayRef stride,
                       at::IntArrayRef padding, bool subm) {
  Geometry geometry{};
  check_length(shape, 3, "spatial_shape");
  check_length(kernel, 3, "kernel_size");
  check_length(stride, 3, "stride");
  check_length(padding, 3, "padding");
  double positions = 1;
  for (int a = 0; a < 3; ++a) {
    TORCH_CHECK_VALUE(std::max({shape[a], kernel[a], stride[a], padding[a]}) <= kMaxSetting,
                      "spatial_shape, kernel_size, stride and padding may be up to ", kMaxSetting,
                      ", got ", shape, ", ", kernel, ", ", stride, " and ", padding);
    positions *= static_cast<double>(kernel[a]);
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
  TORCH_CHECK_VALUE(positions <= static_cast<double>(kMaxPositions), "a kernel may have up to ",
                    kMaxPositions, " positions, got ", kernel);
  return geometry;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> kernel_map_cpu(
    const at::Tensor& coords, at::IntArrayRef spatial_shape, at::IntArrayRef kernel_size,
    at::IntArrayRef stride, at::IntArrayRef padding, bool subm) {
  TORCH_CHECK_VALUE(coords.dim() == 2 && coords.size(1) == 4 && coords.scalar_type() == at::kLong,
                    "coords must be int64 [n, 4], got ", coords.scalar_type(), " ",
                    coords.sizes());
  check_active(coords.size(0), "input");
  const Geometry geometry = make_geometry(spatial_shape, kernel_size, stride, padding, subm);
  const at::Tensor c = coords.contiguous();
  const int64_t n = c.size(0);
  const int64_t* rows = c.const_data_ptr<int64_t>();
  Sets sets{rows, n, mark_inputs(rows, n, geometry), RankedBitmap(0), {}};
  sets.order = order_of(sets, geometry);
  const bool sorted = sets.order.empty();
  const std::vector<Run> runs = make_runs(geometry);
  auto num_runs = static_cast<int64_t>(runs.size());
  at::Tensor out_coords = at::empty({0, 4}, c.options());
  if (!subm) {
    sets.out = mark_outputs(rows, n, geometry, runs);
    const int64_t m = sets.out.index();
    check_active(m, "output");
    out_coords = output_coords(sets.out, m, geometry, c.options());
  } else if (sorted) {
    num_runs = num_runs / 2 + 1;  // the others are mirrored
  }

  TORCH_CHECK_VALUE(num_runs <= kMaxHits / std::max<int64_t>(n, 1), "a kernel of ", kernel_size,
                    " is too large for ", n, " voxels");
  const std::unique_ptr<Hits[]> hits = find_outputs(sets, geometry, runs, num_runs, subm);
  const int32_t* order = sorted ? nullptr : sets.order.data();
  const Source source{hits.get(), runs, num_runs, n, nullptr, subm ? order : nullptr, false};
  const auto [by_in, starts] = list_pairs(source, c.options());
  // With sorted inputs, both orders of pairs are equal and only one is returned.
  at::Tensor by_out = at::empty({2, 0}, c.options().dtype(at::kInt));
  if (!sorted && subm) {
    by_out = list_pairs({hits.get(), runs, num_runs, n, nullptr, order, true}, c.options()).first;
  } else if (!sorted) {
    by_out = list_pairs({hits.get(), runs, num_runs, n, order, nullptr, false}, c.options()).first;
  }
  at::Tensor start_tensor = at::empty({static_cast<int64_t>(starts.size())}, c.options());
  std::copy(starts.begin(), starts.end(), start_tensor.data_ptr<int64_t>());
  return {out_coords, by_out, by_in, start_tensor};
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) { m.impl("kernel_map", &kernel_map_cpu); }

}  // namespace opus
