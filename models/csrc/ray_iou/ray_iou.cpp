#include "ray_iou/ray_iou.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "ray_cast/packet_avx2.h"
#include "ray_cast/pyramid.h"
#include "ray_iou/packet_starts_avx2.h"

namespace opus {
namespace {

using ray_iou::Counting;
using ray_iou::RayEnd;
using ray_iou::Rays;

constexpr int64_t kRaysPerTask = 1024;

// Counts of one task, added to those of its sample at the end. They are integers, so the order of
// additions does not matter.
class TaskCounts {
 public:
  TaskCounts(const Rays& rays, const Counting& counting) : rays_(rays), counting_(counting) {
    std::fill_n(own_.begin(), counting.size(), 0);
  }

  void add(const RayEnd& gt, const RayEnd& pred) {
    if (counting_.counts == nullptr) return;
    counting_.count(gt, pred, rays_.empty, [this](int entry) { ++own_[entry]; });
  }

  void hand_over(int64_t sample) const {
    if (counting_.counts == nullptr || sample < 0 || sample >= rays_.num_samples) return;
    int64_t* counts = counting_.counts + sample * counting_.size();
    for (int i = 0; i < counting_.size(); ++i) {
      if (own_[i] != 0) __atomic_fetch_add(counts + i, own_[i], __ATOMIC_RELAXED);
    }
  }

 private:
  const Rays& rays_;
  const Counting& counting_;
  std::array<int, (ray_iou::kMaxThresholds + 2) * ray_iou::kMaxClasses> own_;
};

void run_rays_cpu(const Rays& rays, const Counting& counting) {
  const int64_t chunks = num_blocks(rays.num_directions, kRaysPerTask);
  parallel_tasks(rays.num_origins * chunks, [&](int64_t task) {
    const int64_t origin = task / chunks, begin = (task - origin * chunks) * kRaysPerTask;
    TaskCounts counts(rays, counting);
    for (int64_t i = begin; i < std::min(rays.num_directions, begin + kRaysPerTask); ++i) {
      RayEnd gt, pred;
      rays.cast(origin, i, gt, pred);
      counts.add(gt, pred);
    }
    counts.hand_over(rays.sample_of_origin[origin]);
  });
}

#if defined(OPUS_HAS_AVX2_KERNELS)
namespace packet = ray_cast::packet;

// Rays of one task and origin, traced in packets. Rays with an unsure order of crossings or
// rounding of a depth are traced again one by one.
class Task {
 public:
  Task(const Rays& rays, int64_t origin, int64_t sample, int64_t begin, int64_t end)
      : rays_(rays),
        origin_(origin),
        first_label_(sample * rays.size[0] * rays.size[1] * rays.size[2]),
        begin_(begin),
        end_(end) {
    doubtful_.fill(false);
    for (int64_t column = begin; column < end; ++column) {
      const RayEnd gt = rays.known_gt(origin, column);
      gt_[column - begin] = gt;
      pred_[column - begin] = {rays.empty, 0.f};
      columns_[count_] = static_cast<int32_t>(column);
      count_ += rays.cast_gt || gt.label != rays.empty;
    }
  }

  void walk(const packet::EmptySquares& maps) {
    const ray_iou::PacketStarts starts(rays_, origin_);
    const auto begin = [&](int64_t i, int64_t end, packet::Set& set) {
      const int count = static_cast<int>(end - i);
      const int started = starts.start(columns_.data() + i, count, maps, set);
      for (int lane = 0; lane < count; ++lane) {
        if ((started >> lane & 1) == 0) doubtful_[columns_[i + lane] - begin_] = true;
      }
    };
    const auto meet = [this](const packet::Set& set, const packet::Ends& ends) {
      if (rays_.cast_gt) take(rays_.gt, 0, set, ends, gt_.data());
      if (rays_.cast_pred) take(rays_.pred, 1, set, ends, pred_.data());
    };
    packet::walk(maps, count_, to_cast(), begin, meet);
  }

  void hand_over(TaskCounts& counts) {
    for (int64_t i = 0; i < end_ - begin_; ++i) {
      if (doubtful_[i]) rays_.cast(origin_, begin_ + i, gt_[i], pred_[i]);
      rays_.keep(origin_, begin_ + i, gt_[i]);
      counts.add(gt_[i], pred_[i]);
    }
  }

 private:
  unsigned to_cast() const {
    return (rays_.cast_gt ? packet::kFirst : 0) | (rays_.cast_pred ? packet::kSecond : 0);
  }

  void take(const uint8_t* labels, int which, const packet::Set& set, const packet::Ends& ends,
            RayEnd* out) {
    for (int lane = 0; lane < packet::kLanes; ++lane) {
      if (set.item[lane] < 0) continue;
      const int64_t i = set.item[lane] - begin_;
      if ((ends.unsure[which] >> lane & 1) != 0) {
        doubtful_[i] = true;
        continue;
      }
      const uint8_t label = labels[first_label_ + ends.label[which][lane]];
      out[i] = {ends.occupied[which] >> lane & 1 ? label : rays_.empty,
                rays_.depth_m(ends.t_exit[which][lane])};
    }
  }

  const Rays& rays_;
  int64_t origin_, first_label_, begin_, end_, count_ = 0;
  std::array<RayEnd, kRaysPerTask> gt_, pred_;
  std::array<bool, kRaysPerTask> doubtful_;
  std::array<int32_t, kRaysPerTask + 1> columns_;  // rays to trace
};

// The same with packets of rays; sample by sample, so that the maps of a sample stay in the cache.
void run_packets(const Rays& rays, const Counting& counting) {
  const int64_t voxels =
      static_cast<int64_t>(rays.size[0]) * rays.size[1] * rays.size[2];
  const int64_t chunks = num_blocks(rays.num_directions, kRaysPerTask);
  packet::EmptySquares maps(rays.size);
  std::vector<std::vector<int64_t>> origins(rays.num_samples);
  for (int64_t origin = 0; origin < rays.num_origins; ++origin) {
    const int64_t sample = rays.sample_of_origin[origin];
    if (sample >= 0 && sample < rays.num_samples) {
      origins[sample].push_back(origin);
    } else {
      rays.keep_nothing(origin);
    }
  }
  for (int64_t sample = 0; sample < rays.num_samples; ++sample) {
    if (origins[sample].empty()) continue;
    const uint8_t* gt = (rays.cast_gt ? rays.gt : rays.pred) + sample * voxels;
    maps.fill(gt, rays.cast_pred ? rays.pred + sample * voxels : gt, rays.empty);
    parallel_tasks(static_cast<int64_t>(origins[sample].size()) * chunks, [&](int64_t number) {
      const int64_t begin = number % chunks * kRaysPerTask;
      Task task(rays, origins[sample][number / chunks], sample, begin,
                std::min(rays.num_directions, begin + kRaysPerTask));
      task.walk(maps);
      TaskCounts counts(rays, counting);
      task.hand_over(counts);
      counts.hand_over(sample);
    });
  }
}
#endif

void run_rays(c10::Device device, const Rays& rays, const Counting& counting) {
  if (rays.num_origins == 0 || rays.num_directions == 0) return;
#if defined(OPUS_HAS_AVX2_KERNELS)
  if (!runs_on_gpu(device) && use_avx2() && packet::EmptySquares::fits(rays.size) &&
      rays.num_samples > 0) {
    return run_packets(rays, counting);
  }
#endif
  if (!runs_on_gpu(device)) return run_rays_cpu(rays, counting);
  if constexpr (kWithCuda) ray_iou::launch_rays_cuda(rays, counting, current_stream(device));
}

// Owns the memory of `rays`.
struct Held {
  at::Tensor origins, samples, directions, gt, pred;
  Rays rays{};
};

void check_rays(const at::Tensor& grids, const at::Tensor& origins, const at::Tensor& samples,
                const at::Tensor& directions, at::ArrayRef<double> grid_min, double voxel_size,
                int64_t empty_label) {
  ray_cast::check_grids(grids);
  ray_cast::check_empty_label(empty_label);
  TORCH_CHECK_VALUE(origins.dim() == 2 && origins.size(1) == 3 &&
                        origins.scalar_type() == at::kDouble,
                    "origins must be float64 [N, 3], got ", origins.scalar_type(), " ",
                    origins.sizes());
  TORCH_CHECK_VALUE(samples.dim() == 1 && samples.size(0) == origins.size(0) &&
                        samples.scalar_type() == at::kLong,
                    "sample_of_origin must be int64 [", origins.size(0), "], got ",
                    samples.scalar_type(), " ", samples.sizes());
  TORCH_CHECK_VALUE(directions.dim() == 2 && directions.size(1) == 3 &&
                        directions.scalar_type() == at::kFloat,
                    "directions must be float32 [D, 3], got ", directions.scalar_type(), " ",
                    directions.sizes());
  TORCH_CHECK_VALUE(grid_min.size() == 3 && voxel_size > 0,
                    "grid_min must have three entries and voxel_size be positive, got ", grid_min,
                    " and ", voxel_size);
  check_same_device(origins, "origins", grids, "grids");
  check_same_device(samples, "sample_of_origin", grids, "grids");
  check_same_device(directions, "directions", grids, "grids");
}

Held hold_rays(const at::Tensor& grids, const at::Tensor& origins, const at::Tensor& samples,
               const at::Tensor& directions, at::ArrayRef<double> grid_min, double voxel_size,
               int64_t empty_label) {
  check_rays(grids, origins, samples, directions, grid_min, voxel_size, empty_label);
  Held held;
  held.origins = origins.contiguous();
  held.samples = samples.contiguous();
  held.directions = directions.contiguous();
  Rays& rays = held.rays;
  for (int a = 0; a < 3; ++a) rays.size[a] = static_cast<int>(grids.size(a + 1));
  rays.origins_m = held.origins.const_data_ptr<double>();
  rays.sample_of_origin = held.samples.const_data_ptr<int64_t>();
  rays.directions = held.directions.const_data_ptr<float>();
  rays.num_samples = grids.size(0);
  rays.num_origins = origins.size(0);
  rays.num_directions = directions.size(0);
  std::copy_n(grid_min.begin(), 3, rays.grid_min);
  rays.depth_scale = static_cast<float>(voxel_size);
  rays.voxel_size = static_cast<double>(rays.depth_scale);
  rays.empty = static_cast<uint8_t>(empty_label);
  return held;
}

void set_gt(Held& held, const at::Tensor& gt) {
  held.gt = gt.contiguous();
  held.rays.gt = held.gt.const_data_ptr<uint8_t>();
  held.rays.cast_gt = true;
}

void set_pred(Held& held, const at::Tensor& pred) {
  held.pred = pred.contiguous();
  held.rays.pred = held.pred.const_data_ptr<uint8_t>();
  held.rays.cast_pred = true;
}

// Allocates the outputs for the rays of the ground truth.
std::tuple<at::Tensor, at::Tensor> make_gt_rays(Held& held) {
  const auto options = held.origins.options();
  const std::array<int64_t, 2> shape{held.rays.num_origins, held.rays.num_directions};
  at::Tensor label = at::empty(shape, options.dtype(at::kByte));
  at::Tensor depth = at::empty(shape, options.dtype(at::kFloat));
  held.rays.gt_label = label.mutable_data_ptr<uint8_t>();
  held.rays.gt_depth_m = depth.mutable_data_ptr<float>();
  return {label, depth};
}

std::tuple<at::Tensor, at::Tensor> label_rays(const at::Tensor& grids, const at::Tensor& origins,
                                              const at::Tensor& sample_of_origin,
                                              const at::Tensor& directions,
                                              at::ArrayRef<double> grid_min, double voxel_size,
                                              int64_t empty_label) {
  const c10::DeviceGuard guard(grids.device());
  Held held = hold_rays(grids, origins, sample_of_origin, directions, grid_min, voxel_size,
                        empty_label);
  set_gt(held, grids);
  auto result = make_gt_rays(held);
  run_rays(grids.device(), held.rays, Counting{});
  return result;
}

Counting make_counting(const at::Tensor& counts, at::ArrayRef<double> thresholds) {
  Counting counting{};
  counting.num_thresholds = static_cast<int>(thresholds.size());
  counting.num_classes = static_cast<int>(counts.size(2));
  for (size_t h = 0; h < thresholds.size(); ++h) {
    counting.thresholds_m[h] = static_cast<float>(thresholds[h]);
  }
  counting.counts = counts.mutable_data_ptr<int64_t>();
  return counting;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> ray_iou_counts(
    const at::Tensor& pred, const std::optional<at::Tensor>& gt, const at::Tensor& origins,
    const at::Tensor& sample_of_origin, const at::Tensor& directions,
    at::ArrayRef<double> grid_min, double voxel_size, int64_t empty_label, int64_t num_classes,
    at::ArrayRef<double> thresholds, const std::optional<at::Tensor>& gt_label,
    const std::optional<at::Tensor>& gt_depth) {
  const c10::DeviceGuard guard(pred.device());
  Held held = hold_rays(pred, origins, sample_of_origin, directions, grid_min, voxel_size,
                        empty_label);
  TORCH_CHECK_VALUE(num_classes >= 1 && num_classes <= ray_iou::kMaxClasses,
                    "num_classes must be in 1..", ray_iou::kMaxClasses, ", got ", num_classes);
  const auto num_thresholds = static_cast<int64_t>(thresholds.size());
  TORCH_CHECK_VALUE(num_thresholds >= 1 && num_thresholds <= ray_iou::kMaxThresholds,
                    "there must be 1 to ", ray_iou::kMaxThresholds, " thresholds, got ",
                    num_thresholds);
  TORCH_CHECK_VALUE(gt.has_value() != (gt_label.has_value() && gt_depth.has_value()),
                    "pass either the grids or the rays of the ground truth");
  set_pred(held, pred);
  at::Tensor label, depth;
  if (gt.has_value()) {
    TORCH_CHECK_VALUE(gt->sizes() == pred.sizes() && gt->scalar_type() == at::kByte,
                      "prediction and ground truth must be uint8 grids of one shape, got ",
                      pred.sizes(), " and ", gt->scalar_type(), " ", gt->sizes());
    check_same_device(*gt, "gt", pred, "pred");
    set_gt(held, *gt);
    std::tie(label, depth) = make_gt_rays(held);
  } else {
    const std::array<int64_t, 2> shape{held.rays.num_origins, held.rays.num_directions};
    TORCH_CHECK_VALUE(gt_label->sizes() == shape && gt_label->scalar_type() == at::kByte,
                      "gt_label must be uint8 [", shape[0], ", ", shape[1], "], got ",
                      gt_label->scalar_type(), " ", gt_label->sizes());
    TORCH_CHECK_VALUE(gt_depth->sizes() == shape && gt_depth->scalar_type() == at::kFloat,
                      "gt_depth must be float32 [", shape[0], ", ", shape[1], "], got ",
                      gt_depth->scalar_type(), " ", gt_depth->sizes());
    check_same_device(*gt_label, "gt_label", pred, "pred");
    check_same_device(*gt_depth, "gt_depth", pred, "pred");
    // These rays are only read. Results of an operation must not share memory with its inputs, so
    // none are returned.
    label = gt_label->contiguous();
    depth = gt_depth->contiguous();
    held.rays.gt_label = const_cast<uint8_t*>(label.const_data_ptr<uint8_t>());
    held.rays.gt_depth_m = const_cast<float*>(depth.const_data_ptr<float>());
  }
  at::Tensor counts =
      at::zeros({pred.size(0), num_thresholds + 2, num_classes}, origins.options().dtype(at::kLong));
  run_rays(pred.device(), held.rays, make_counting(counts, thresholds));
  if (gt.has_value()) return {counts, label, depth};
  return {counts, at::empty({0, 0}, label.options()), at::empty({0, 0}, depth.options())};
}

}  // namespace

OPUS_REGISTER(m) {
  m.impl("label_rays", &label_rays);
  m.impl("ray_iou_counts", &ray_iou_counts);
}

}  // namespace opus
