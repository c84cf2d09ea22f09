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

namespace opus {
namespace {

using ray_iou::Counting;
using ray_iou::RayEnd;
using ray_iou::Rays;

constexpr int64_t kRaysPerTask = 1024;

// Counts of one task, added to those of its sample at the end: integers, so any order will do.
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

// Calls cast(origin, first ray, end of its rays, counts) for every task.
template <typename Cast>
void for_tasks(const Rays& rays, const Counting& counting, const Cast& cast) {
  const int64_t chunks = num_blocks(rays.num_directions, kRaysPerTask);
  parallel_tasks(rays.num_origins * chunks, [&](int64_t task) {
    const int64_t origin = task / chunks, begin = (task - origin * chunks) * kRaysPerTask;
    TaskCounts counts(rays, counting);
    cast(origin, begin, std::min(rays.num_directions, begin + kRaysPerTask), counts);
    counts.hand_over(rays.sample_of_origin[origin]);
  });
}

void run_rays_cpu(const Rays& rays, const Counting& counting) {
  for_tasks(rays, counting, [&](int64_t origin, int64_t begin, int64_t end, TaskCounts& counts) {
    for (int64_t column = begin; column < end; ++column) {
      RayEnd gt, pred;
      rays.cast(origin, column, gt, pred);
      counts.add(gt, pred);
    }
  });
}

#if defined(OPUS_HAS_AVX2_KERNELS)
namespace packet = ray_cast::packet;
static_assert(ray_iou::kGt == packet::RowBits::kFirst && ray_iou::kPred == packet::RowBits::kSecond);

// The same, eight rays abreast.
void run_packets(const Rays& rays, const Counting& counting) {
  const int64_t voxels =
      static_cast<int64_t>(rays.layout.size[0]) * rays.layout.size[1] * rays.layout.size[2];
  std::vector<packet::RowBits> rows(rays.num_samples, packet::RowBits(rays.layout.size));
  for (int64_t sample = 0; sample < rays.num_samples; ++sample) {
    if (rays.cast_gt) rows[sample].fill(rays.gt + sample * voxels, rays.empty, ray_iou::kGt);
    if (rays.cast_pred) rows[sample].fill(rays.pred + sample * voxels, rays.empty, ray_iou::kPred);
  }
  for_tasks(rays, counting, [&](int64_t origin, int64_t begin, int64_t end, TaskCounts& counts) {
    RayEnd gt[packet::kWidth], pred[packet::kWidth];
    uint64_t wanted[packet::kWidth];
    const int64_t sample = rays.sample_of_origin[origin];
    const ray_iou::Start from = rays.start_of(origin);
    const auto done = [&](int64_t column, int slot) {
      rays.keep(origin, column, gt[slot]);
      counts.add(gt[slot], pred[slot]);
    };
    const auto start = [&](int64_t column, int slot, ray_cast::Ray& ray) {
      wanted[slot] = rays.set_up(origin, from, column, ray, gt[slot], pred[slot]);
      if (wanted[slot] == 0) done(column, slot);
      return wanted[slot];
    };
    const auto meet = [&](int64_t column, int slot, const ray_cast::Ray& ray, uint64_t met) {
      ray_cast::Hit hit;
      ray_cast::finish(ray, met != 0, hit);
      wanted[slot] = rays.settle(sample, hit, met, wanted[slot], gt[slot], pred[slot]);
      if (wanted[slot] == 0) done(column, slot);
      return wanted[slot];
    };
    const bool known = sample >= 0 && sample < rays.num_samples;
    packet::walk(rows[known ? sample : 0], begin, end, start, meet);
  });
}
#endif

bool uses_packets(c10::Device device) {
#if defined(OPUS_HAS_AVX2_KERNELS)
  return !device.is_cuda() && use_avx2();
#else
  return false;
#endif
}

void run_rays(c10::Device device, const Rays& rays, const Counting& counting) {
  if (rays.num_origins == 0 || rays.num_directions == 0) return;
#if defined(OPUS_HAS_AVX2_KERNELS)
  if (uses_packets(device) && rays.num_samples > 0) return run_packets(rays, counting);
#endif
  if (!device.is_cuda()) return run_rays_cpu(rays, counting);
  if constexpr (kWithCuda) ray_iou::launch_rays_cuda(rays, counting, current_stream(device));
}

// Keeps what the pointers of `rays` point to.
struct Held {
  at::Tensor origins, samples, directions, gt, pred, gt_words, pred_words;
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
  rays.layout = ray_cast::layout_of(grids.sizes().slice(1));
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

const uint64_t* words_of(const at::Tensor& masks) {
  return reinterpret_cast<const uint64_t*>(masks.const_data_ptr<int64_t>());
}

void set_gt(Held& held, const at::Tensor& gt) {
  held.gt = gt.contiguous();
  held.rays.gt = held.gt.const_data_ptr<uint8_t>();
  if (!uses_packets(gt.device())) {
    held.gt_words = ray_cast::make_masks(held.gt, held.rays.empty);
    held.rays.gt_words = words_of(held.gt_words);
  }
  held.rays.cast_gt = true;
}

void set_pred(Held& held, const at::Tensor& pred) {
  held.pred = pred.contiguous();
  held.rays.pred = held.pred.const_data_ptr<uint8_t>();
  if (!uses_packets(pred.device())) {
    held.pred_words = ray_cast::make_masks(held.pred, held.rays.empty);
    held.rays.pred_words = words_of(held.pred_words);
  }
  held.rays.cast_pred = true;
}

// Where the rays of the ground truth go.
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
                    "give either the ground truth's grids or its rays");
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
    // Read only: these rays are not cast. Results of an operation share no memory with its inputs,
    // so none are returned.
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
