// Farthest-point sampling with buckets of nearby points, host and device.
//
// A newly chosen point changes only the distances of points that are closer to it than to all
// points chosen before. Each bucket stores the largest distance of its points. If its box is at
// least this far from the chosen point, no distance changes and the bucket is skipped. The bound of
// a box never exceeds the computed distance to a point in it (see nearest_neighbor.h), so the
// result is bitwise equal to that of the plain loop.
//
// One team samples one cloud: a single CPU thread, or the warps of a CUDA block. The result is the
// same for every team, because a maximum with ties to the lowest index is independent of order.
#pragma once

#include <math.h>

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/defs.h"
#include "nearest_neighbor/nearest_neighbor.h"

namespace opus {
namespace farthest_point_sampling {

constexpr int kBucket = 128;  // points
constexpr int64_t kMaxPoints = (int64_t(1) << 31) - 1 - kBucket;

// Farthest of a set of points: its squared distance to the chosen points and its index within the
// cloud (the largest integer for an empty set).
template <typename T>
struct Farthest {
  T squared;
  int32_t index;
};

template <typename T>
OPUS_HD Farthest<T> no_point() {
  return {-static_cast<T>(INFINITY), INT32_MAX};
}

template <typename T>
OPUS_HD Farthest<T> farther(const Farthest<T>& a, const Farthest<T>& b) {
  const bool first = a.squared > b.squared || (a.squared == b.squared && a.index < b.index);
  return first ? a : b;
}

template <typename T>
struct Bucket {
  T lo[3], hi[3];  // box of the finite points
  Farthest<T> farthest;
};

// Points by slot, in the order of a curve, padded to whole buckets. A distance is that to the
// nearest chosen point; -infinity for non-finite points and padding, which are never chosen.
template <typename T>
struct Cloud {
  const T* points;  // [n, 3], by index
  T *x, *y, *z, *squared;
  int32_t* index;
  Bucket<T>* buckets;
  int64_t count, num_buckets;
};

// Fills a bucket (the item) with its points by `order` (slot -> index) and computes its box.
template <typename T>
struct FillBuckets {
  Cloud<T> cloud;
  const int64_t* order;

  OPUS_HD void operator()(int64_t b) const {
    Bucket<T> bucket;
    bucket.farthest = no_point<T>();
    for (int a = 0; a < 3; ++a) {
      bucket.lo[a] = static_cast<T>(INFINITY);
      bucket.hi[a] = -static_cast<T>(INFINITY);
    }
    for (int64_t slot = b * kBucket; slot < (b + 1) * kBucket; ++slot) {
      const bool exists = slot < cloud.count;
      const int64_t i = exists ? order[slot] : INT32_MAX;
      T p[3] = {0, 0, 0};
      for (int a = 0; exists && a < 3; ++a) p[a] = cloud.points[3 * i + a];
      const bool finite = exists && nearest_neighbor::all_finite(p);
      for (int a = 0; finite && a < 3; ++a) {
        bucket.lo[a] = least_of(bucket.lo[a], p[a]);
        bucket.hi[a] = greatest_of(bucket.hi[a], p[a]);
      }
      cloud.x[slot] = p[0];
      cloud.y[slot] = p[1];
      cloud.z[slot] = p[2];
      const T squared = finite ? static_cast<T>(INFINITY) : -static_cast<T>(INFINITY);
      cloud.squared[slot] = squared;
      cloud.index[slot] = static_cast<int32_t>(i);
      bucket.farthest = farther(bucket.farthest, Farthest<T>{squared, cloud.index[slot]});
    }
    cloud.buckets[b] = bucket;
  }
};

// Updates the distance of a slot for a chosen point and returns the slot's new state. A NaN
// distance compares false and changes nothing.
template <typename T>
OPUS_HD T updated(const Cloud<T>& cloud, int64_t slot, const T* chosen) {
  const T dx = cloud.x[slot] - chosen[0], dy = cloud.y[slot] - chosen[1];
  const T dz = cloud.z[slot] - chosen[2];
  const T squared = nearest_neighbor::squared_norm(dx, dy, dz), before = cloud.squared[slot];
  return squared < before ? squared : before;
}

// Chooses `num_samples` points, beginning with point 0. Members of Team:
//   member(), size(): index of this worker and number of workers that share the buckets;
//   refresh(cloud, bucket, chosen): updates a bucket's distances and its farthest point;
//   farthest(own): returns the farthest point over all workers to every worker, after a barrier;
//   leads(): whether this worker writes the output.
template <typename T, typename Team>
OPUS_HD void sample(const Cloud<T>& cloud, int64_t num_samples, int64_t* out, const Team& team) {
  Farthest<T> chosen{0, 0};
  for (int64_t i = 0; i < num_samples; ++i) {
    if (team.leads()) out[i] = chosen.index;
    const T* point = cloud.points + 3 * static_cast<int64_t>(chosen.index);
    const T at[3] = {point[0], point[1], point[2]};
    Farthest<T> own = no_point<T>();
    for (int64_t b = team.member(); b < cloud.num_buckets; b += team.size()) {
      const Bucket<T>& bucket = cloud.buckets[b];
      if (nearest_neighbor::squared_bound(at, bucket) < bucket.farthest.squared) {
        own = farther(own, team.refresh(cloud, b, at));
      } else {
        own = farther(own, bucket.farthest);
      }
    }
    chosen = team.farthest(own);
  }
}

// Clouds of one launch, one block per cloud.
template <typename T>
struct Batch {
  static constexpr int kMaxClouds = 24;
  Cloud<T> clouds[kMaxClouds];
  int num_clouds;
  int64_t num_samples;
  int64_t* out;  // [num_clouds, num_samples]
};

template <typename T>
void launch_cuda(const Batch<T>& batch, CudaStream stream);

}  // namespace farthest_point_sampling
}  // namespace opus
