// Rays and counts of RayIoU; one item is one ray through prediction and ground truth.
//
// The traversal of the published tool defines the score: Amanatides & Woo with running sums in
// double precision. If a ray crosses several faces nearly simultaneously, the next voxel depends on
// the rounding of these sums, on the order of equal times and on the truncation of the origin. Walk
// below therefore reproduces the tool operation by operation.
#pragma once

#include <float.h>
#include <math.h>

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/defs.h"

namespace opus {
namespace ray_iou {

constexpr int kMaxThresholds = 8;
constexpr int kMaxClasses = 256;
// Largest number of voxels visited by a ray, inside the grid and on the way to it. Larger grids
// than those of the published tool have a higher limit.
constexpr int64_t kMaxVisits = 1001;
constexpr double kFar = 1 << 30;

// Class and depth of the first occupied voxel. The depth is the distance in metres at which the ray
// leaves the voxel. Without a hit, the class is free and the depth is that of the grid's last
// voxel. A ray that never enters the grid has the class of voxel (0, 0, 0) and a depth of minus one
// voxel.
struct RayEnd {
  uint8_t label;
  float depth_m;
};

// Targets of a ray, as bits: its end in the ground truth and in the prediction.
constexpr unsigned kGt = 1, kPred = 2;

OPUS_HD float position_in_voxels(double position_m, double low_m, double voxel_size) {
  return static_cast<float>((position_m - low_m) / voxel_size);
}

// Start of the rays of an origin. RayIoU's definition rounds start and end of a ray to single
// precision, in voxels. The result of a ray close to a voxel's corner depends on this rounding, so
// it is reproduced step by step.
struct Start {
  float voxel[3];
};

// `volatile` enforces the rounding: gcc 12 at -O3 (SLP vectorisation) otherwise uses the double.
OPUS_HD Start start_in_voxels(const double* origin_m, const double* grid_min, double voxel_size) {
  Start start;
  for (int a = 0; a < 3; ++a) {
    volatile float rounded = position_in_voxels(origin_m[a], grid_min[a], voxel_size);
    start.voxel[a] = rounded;
  }
  return start;
}

// Unit direction of a ray in voxels: the difference, in double, of two points in single precision.
OPUS_HD void direction_in_voxels(const double* origin_m, const Start& start, const float* direction,
                                 const double* grid_min, double voxel_size, double* d) {
  double along[3];
  for (int a = 0; a < 3; ++a) {
    const double end_m = origin_m[a] + static_cast<double>(direction[a]);
    volatile float end = position_in_voxels(end_m, grid_min[a], voxel_size);
    along[a] = static_cast<double>(end) - static_cast<double>(start.voxel[a]);
  }
  const double length = sqrt((along[0] * along[0] + along[1] * along[1]) + along[2] * along[2]);
  for (int a = 0; a < 3; ++a) d[a] = along[a] / length;
}

// Traversal state of a ray. Coordinates of the origin are truncated toward zero, so an origin less
// than one voxel below a lower bound counts as inside.
struct Walk {
  int v[3], step[3];
  double t[3], delta[3];  // time of each axis's next crossing, time between its crossings

  // Returns false if origin or direction is not finite, or if the direction is zero.
  OPUS_HD bool init(const Start& start, const double* d) {
    for (int a = 0; a < 3; ++a) {
      const double o = start.voxel[a];
      // A ray from farther away cannot reach the grid within its limit of steps.
      const double bounded = o > kFar ? kFar : (o < -kFar ? -kFar : o);
      if (!(o - o == 0) || !(d[a] - d[a] == 0)) return false;
      v[a] = static_cast<int>(bounded);
      step[a] = d[a] >= 0 ? 1 : -1;
      const double boundary = v[a] + (step[a] < 0 ? 0 : 1);
      t[a] = d[a] != 0 ? (boundary - o) / d[a] : DBL_MAX;
      delta[a] = d[a] != 0 ? step[a] / d[a] : DBL_MAX;
    }
    return true;
  }

  // Returns the axis of the next crossing; of equal times z is first, then y.
  OPUS_HD int next_axis() const {
    const int axis = t[0] < t[1] ? 0 : 1;
    return t[axis] < t[2] ? axis : 2;
  }

  OPUS_HD void cross(int axis) {
    v[axis] += step[axis];
    t[axis] += delta[axis];
  }

  OPUS_HD bool is_inside(const int* size) const {
    // Converted to unsigned, negative numbers are too large.
    return (static_cast<unsigned>(v[0]) < static_cast<unsigned>(size[0])) &
           (static_cast<unsigned>(v[1]) < static_cast<unsigned>(size[1])) &
           (static_cast<unsigned>(v[2]) < static_cast<unsigned>(size[2]));
  }

  // Returns whether the ray has passed the grid on an axis or moves away from it.
  OPUS_HD bool is_lost(const int* size) const {
    for (int a = 0; a < 3; ++a) {
      if (step[a] > 0 ? v[a] >= size[a] : v[a] < 0) return true;
    }
    return false;
  }
};

// Rays of N origins with D directions each, through the grids of their samples.
struct Rays {
  int size[3];                      // X, Y, Z
  const uint8_t *gt, *pred;         // labels [B, X, Y, Z]
  const double* origins_m;          // [N, 3]
  const int64_t* sample_of_origin;  // [N]; rays with a sample outside 0 ... B - 1 are invalid
  const float* directions;          // [D, 3]
  int64_t num_samples, num_origins, num_directions;
  double grid_min[3];
  double voxel_size;                // of a cube, rounded to single precision as in the definition
  float depth_scale;                // the same, for depths
  uint8_t empty;
  bool cast_gt, cast_pred;          // grids that are not cast are not accessed
  uint8_t* gt_label;                // [N, D]; written if cast_gt, else read
  float* gt_depth_m;

  // Adding zero turns -0, which mirrored rays produce, into 0.
  OPUS_HD float depth_m(double t_exit) const {
    return static_cast<float>(t_exit) * depth_scale + 0.f;
  }

  // Computes the ends of ray `column` of an origin, with one traversal of both grids. `pred` is
  // only set if the ground truth is not free.
  OPUS_HD void cast(int64_t origin, int64_t column, RayEnd& gt_end, RayEnd& pred_end) const {
    gt_end = known_gt(origin, column);
    pred_end = {empty, 0.f};
    const int64_t sample = sample_of_origin[origin];
    const bool is_scored = cast_gt || gt_end.label != empty;
    Walk walk;
    if (is_scored && sample >= 0 && sample < num_samples && start(origin, column, walk)) {
      const int64_t first = sample * size[0] * size[1] * size[2];
      follow(walk, cast_gt ? gt + first : nullptr, cast_pred ? pred + first : nullptr, gt_end,
             pred_end);
    }
    keep(origin, column, gt_end);
  }

  OPUS_HD Start start_of(int64_t origin) const {
    return start_in_voxels(origins_m + 3 * origin, grid_min, voxel_size);
  }

  OPUS_HD unsigned to_cast() const { return (cast_gt ? kGt : 0) | (cast_pred ? kPred : 0); }

  // Returns the ray's end in the ground truth, if it is known before casting.
  OPUS_HD RayEnd known_gt(int64_t origin, int64_t column) const {
    if (cast_gt) return {empty, 0.f};
    const int64_t r = origin * num_directions + column;
    return {gt_label[r], gt_depth_m[r]};
  }

  OPUS_HD bool start(int64_t origin, int64_t column, Walk& walk) const {
    const Start from = start_of(origin);
    double d[3];
    direction_in_voxels(origins_m + 3 * origin, from, directions + 3 * column, grid_min, voxel_size,
                        d);
    return walk.init(from, d);
  }

  // Traces a ray to its ends in two grids [X, Y, Z]; pass null to omit one.
  OPUS_HD void follow(Walk& walk, const uint8_t* first, const uint8_t* second, RayEnd& first_end,
                      RayEnd& second_end) const {
    const bool has_first = first != nullptr, has_second = second != nullptr;
    if (has_first) first_end = {first[0], -depth_scale};
    if (has_second) second_end = {second[0], -depth_scale};
    const int64_t longest = static_cast<int64_t>(size[0]) + size[1] + size[2];
    const int64_t most = longest > kMaxVisits ? longest : kMaxVisits;
    bool was_inside = false;
    for (int64_t visit = 0; visit < most && (first != nullptr || second != nullptr); ++visit) {
      const bool inside = walk.is_inside(size);
      if (!inside && (was_inside || walk.is_lost(size))) break;
      was_inside |= inside;
      const int axis = walk.next_axis();
      if (inside) {
        const int* v = walk.v;
        const int64_t voxel = (static_cast<int64_t>(v[0]) * size[1] + v[1]) * size[2] + v[2];
        const float depth = depth_m(walk.t[axis]);
        if (first != nullptr) first_end = {first[voxel], depth};
        if (second != nullptr) second_end = {second[voxel], depth};
        if (first != nullptr && first_end.label != empty) first = nullptr;
        if (second != nullptr && second_end.label != empty) second = nullptr;
      }
      walk.cross(axis);
    }
  }

  // Stores the ground truth's end if it was cast.
  OPUS_HD void keep(int64_t origin, int64_t column, const RayEnd& gt_end) const {
    if (!cast_gt) return;
    const int64_t r = origin * num_directions + column;
    gt_label[r] = gt_end.label;
    gt_depth_m[r] = gt_end.depth_m;
  }

  // Stores the invalid rays of an origin without a sample.
  OPUS_HD void keep_nothing(int64_t origin) const {
    for (int64_t column = 0; column < num_directions; ++column) {
      keep(origin, column, {empty, 0.f});
    }
  }
};

// Counts by class of one sample. Rows 0 ... H - 1: rays with equal classes whose depths differ by
// less than a threshold. Row H: rays of the ground truth. Row H + 1: rays of the prediction. Rays
// that are free in the ground truth and labels of num_classes and above are not counted.
struct Counting {
  int num_classes, num_thresholds;
  float thresholds_m[kMaxThresholds];
  int64_t* counts;  // [B, H + 2, num_classes]

  OPUS_HD int size() const { return (num_thresholds + 2) * num_classes; }

  // Calls add(i) for every entry i of a sample's counts that the ray raises by one.
  template <typename Add>
  OPUS_HD void count(const RayEnd& gt, const RayEnd& pred, uint8_t empty, const Add& add) const {
    if (gt.label == empty) return;
    if (gt.label < num_classes) add(num_thresholds * num_classes + gt.label);
    if (pred.label < num_classes) add((num_thresholds + 1) * num_classes + pred.label);
    if (gt.label != pred.label || gt.label >= num_classes) return;
    const float error = fabsf(pred.depth_m - gt.depth_m);
    for (int h = 0; h < num_thresholds; ++h) {
      if (error < thresholds_m[h]) add(h * num_classes + gt.label);
    }
  }
};

// Casts all rays and accumulates the counts; `counting.counts` is null if only rays are requested.
void launch_rays_cuda(const Rays& rays, const Counting& counting, CudaStream stream);

}  // namespace ray_iou
}  // namespace opus
