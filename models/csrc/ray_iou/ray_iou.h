// RayIoU's rays and counts: one item is one ray, walked through prediction and ground truth at once.
#pragma once

#include <math.h>

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/defs.h"
#include "ray_cast/ray_cast.h"

namespace opus {
namespace ray_iou {

constexpr int kMaxThresholds = 8;
constexpr int kMaxClasses = 256;

// Class and depth of the first occupied voxel. The depth, in metres, is that of the point where the
// ray leaves the voxel; without a voxel the class is free and the voxel the last of the grid.
struct RayEnd {
  uint8_t label;
  float depth_m;
};

// What a ray looks for: its end in the ground truth, in the prediction, or both.
constexpr unsigned kGt = 1, kPred = 2;

// Words of two grids, of which those that are not looked for do not count.
struct GridPair {
  const uint64_t *gt, *pred;
  unsigned wanted;
  OPUS_HD uint64_t operator()(int64_t word) const {
    return (wanted & kGt ? gt[word] : 0) | (wanted & kPred ? pred[word] : 0);
  }
};

OPUS_HD float position_in_voxels(double position_m, double low_m, double voxel_size) {
  return static_cast<float>((position_m - low_m) / voxel_size);
}

// Where the rays of an origin start. RayIoU's definition hands start and end of a ray over in single
// precision, in voxels. Rays that graze a voxel's corner turn on that rounding, so it is repeated
// here step by step.
struct Start {
  float voxel[3];
};

// Volatile keeps a rounding: gcc 12 at -O3 (SLP vectorisation) otherwise hands the double on.
OPUS_HD Start start_in_voxels(const double* origin_m, const double* grid_min, double voxel_size) {
  Start start;
  for (int a = 0; a < 3; ++a) {
    volatile float rounded = position_in_voxels(origin_m[a], grid_min[a], voxel_size);
    start.voxel[a] = rounded;
  }
  return start;
}

// Unit direction of a ray in voxels, likewise.
OPUS_HD void direction_in_voxels(const double* origin_m, const Start& start, const float* direction,
                                 const double* grid_min, double voxel_size, double* d) {
  float along[3];
  for (int a = 0; a < 3; ++a) {
    const double end_m = origin_m[a] + static_cast<double>(direction[a]);
    along[a] = position_in_voxels(end_m, grid_min[a], voxel_size) - start.voxel[a];
  }
  const float length = sqrtf((along[0] * along[0] + along[1] * along[1]) + along[2] * along[2]);
  for (int a = 0; a < 3; ++a) d[a] = static_cast<double>(along[a] / length);
}

// Rays of N origins, D directions each, through the grids of their samples.
struct Rays {
  ray_cast::Masks layout;           // its `words` are not used
  const uint64_t *gt_words, *pred_words;
  const uint8_t *gt, *pred;         // labels [B, X, Y, Z]
  const double* origins_m;          // [N, 3]
  const int64_t* sample_of_origin;  // [N]; an origin outside 0 ... B - 1 sees nothing
  const float* directions;          // [D, 3]
  int64_t num_samples, num_origins, num_directions;
  double grid_min[3];
  double voxel_size;                // of a cube, rounded to single precision as in the definition
  float depth_scale;                // the same, for depths
  uint8_t empty;
  bool cast_gt, cast_pred;          // what is not cast is not touched
  uint8_t* gt_label;                // [N, D]; written if cast_gt, read if not
  float* gt_depth_m;

  OPUS_HD RayEnd end_of(const uint8_t* labels, int64_t sample, const ray_cast::Hit& hit) const {
    const int* size = layout.size;
    const int* v = hit.voxel;
    const int64_t row = (sample * size[0] + v[0]) * size[1] + v[1];
    return {hit.hit ? labels[row * size[2] + v[2]] : empty, depth_m(hit.t_exit)};
  }

  // Adding zero takes the sign off one: a ray may be walked mirrored.
  OPUS_HD float depth_m(double t_exit) const {
    return static_cast<float>(t_exit) * depth_scale + 0.f;
  }

  OPUS_HD bool is_occupied(const uint64_t* words, const ray_cast::Ray& ray) const {
    const int* v = ray.v;
    return words[layout.offset[0] + ray_cast::block_index(layout, 0, v)] >>
               ray_cast::bit_of(v[0], v[1], v[2]) & 1;
  }

  // Ends of ray `column` of an origin. One walk serves both grids up to the first voxel that either
  // occupies, and goes on for the other. `pred` is set where the ground truth is not free.
  OPUS_HD void cast(int64_t origin, int64_t column, RayEnd& gt_end, RayEnd& pred_end) const {
    ray_cast::Ray ray;
    unsigned wanted = set_up(origin, column, ray, gt_end, pred_end);
    const int64_t sample = sample_of_origin[origin];
    const int64_t first_word = wanted == 0 ? 0 : sample * layout.total;
    // A grid that is not cast is not read.
    GridPair grid{cast_gt ? gt_words + first_word : nullptr,
                  cast_pred ? pred_words + first_word : nullptr, wanted};
    while (wanted != 0) {
      ray_cast::Hit hit;
      ray_cast::finish(ray, ray_cast::walk_grid(layout, grid, ray, true), hit);
      unsigned met = 0;
      if (hit.hit && wanted & kGt && is_occupied(grid.gt, ray)) met |= kGt;
      if (hit.hit && wanted & kPred && is_occupied(grid.pred, ray)) met |= kPred;
      grid.wanted = wanted = settle(sample, hit, met, wanted, gt_end, pred_end);
    }
    keep(origin, column, gt_end);
  }

  OPUS_HD Start start_of(int64_t origin) const {
    return start_in_voxels(origins_m + 3 * origin, grid_min, voxel_size);
  }

  OPUS_HD unsigned to_cast() const { return (cast_gt ? kGt : 0) | (cast_pred ? kPred : 0); }

  // The end of a ray in the ground truth, as far as it is known before casting.
  OPUS_HD RayEnd known_gt(int64_t origin, int64_t column) const {
    if (cast_gt) return {empty, 0.f};
    const int64_t r = origin * num_directions + column;
    return {gt_label[r], gt_depth_m[r]};
  }

  // Sets up a ray in the first voxel of the grid; false where it misses.
  OPUS_HD bool start(int64_t origin, const Start& from, int64_t column, ray_cast::Ray& ray) const {
    double o[3], d[3];
    for (int a = 0; a < 3; ++a) o[a] = static_cast<double>(from.voxel[a]);
    direction_in_voxels(origins_m + 3 * origin, from, directions + 3 * column, grid_min, voxel_size,
                        d);
    return ray_cast::start_ray(layout, o, d, INFINITY, ray);
  }

  // The same, and says what the ray looks for; 0 if nothing.
  OPUS_HD unsigned set_up(int64_t origin, int64_t column, ray_cast::Ray& ray, RayEnd& gt_end,
                          RayEnd& pred_end) const {
    const int64_t sample = sample_of_origin[origin];
    gt_end = known_gt(origin, column);
    pred_end = {empty, 0.f};
    if (!cast_gt && gt_end.label == empty) return 0;
    if (sample < 0 || sample >= num_samples) return 0;
    return start(origin, start_of(origin), column, ray) ? to_cast() : 0;
  }

  // Notes the ends of a ray in its current voxel, which is the first one that the grids `met` occupy
  // or, if `met` is 0, its last one. Returns what the ray still looks for.
  OPUS_HD unsigned settle(int64_t sample, const ray_cast::Hit& hit, unsigned met, unsigned wanted,
                          RayEnd& gt_end, RayEnd& pred_end) const {
    const unsigned settled = hit.hit ? met : wanted;
    if (settled & kGt) gt_end = end_of(gt, sample, hit);
    if (settled & kPred) pred_end = end_of(pred, sample, hit);
    return wanted & ~settled;
  }

  // Writes the ground truth's end where it was cast.
  OPUS_HD void keep(int64_t origin, int64_t column, const RayEnd& gt_end) const {
    if (!cast_gt) return;
    const int64_t r = origin * num_directions + column;
    gt_label[r] = gt_end.label;
    gt_depth_m[r] = gt_end.depth_m;
  }

  // Of an origin without a sample.
  OPUS_HD void keep_nothing(int64_t origin) const {
    for (int64_t column = 0; column < num_directions; ++column) {
      keep(origin, column, {empty, 0.f});
    }
  }
};

// Counts of one sample: rows 0 ... H - 1 rays whose class agrees and whose depth differs by less than
// a threshold, by class; row H rays of the ground truth, row H + 1 of the prediction. Rays that are
// free in the ground truth do not count, nor do labels of num_classes and more.
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

// Casts all rays and adds up what they count; `counting.counts` is null where rays alone are wanted.
void launch_rays_cuda(const Rays& rays, const Counting& counting, CudaStream stream);

}  // namespace ray_iou
}  // namespace opus
