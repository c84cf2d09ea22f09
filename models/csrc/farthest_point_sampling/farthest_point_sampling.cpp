#include "farthest_point_sampling/farthest_point_sampling.h"

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "common/curve_order.h"
#include "common/launch.h"

namespace opus {
namespace {

using farthest_point_sampling::Batch;
using farthest_point_sampling::Bucket;
using farthest_point_sampling::Cloud;
using farthest_point_sampling::Farthest;
using farthest_point_sampling::kBucket;
using farthest_point_sampling::no_point;

constexpr int kLanes = 16;   // points compared in parallel
constexpr int kCodeBits = 10;  // per axis; buckets need no finer order
constexpr int64_t kBucketsPerTask = 16;

template <typename T>
inline __attribute__((always_inline)) Farthest<T> refresh_bucket(const Cloud<T>& cloud, int64_t b,
                                                                 const T* chosen) {
  const T* __restrict x = cloud.x + b * kBucket;
  const T* __restrict y = cloud.y + b * kBucket;
  const T* __restrict z = cloud.z + b * kBucket;
  const int32_t* __restrict index = cloud.index + b * kBucket;
  T* __restrict squared = cloud.squared + b * kBucket;
  const T px = chosen[0], py = chosen[1], pz = chosen[2];
  T best[kLanes];
  std::fill_n(best, kLanes, no_point<T>().squared);
  for (int i = 0; i < kBucket; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const T dx = x[i + lane] - px, dy = y[i + lane] - py, dz = z[i + lane] - pz;
      const T distance = nearest_neighbor::squared_norm(dx, dy, dz);
      const T before = squared[i + lane];
      const T after = distance < before ? distance : before;
      squared[i + lane] = after;
      best[lane] = after > best[lane] ? after : best[lane];
    }
  }
  Farthest<T> farthest{*std::max_element(best, best + kLanes), no_point<T>().index};
  int32_t lowest[kLanes];
  std::fill_n(lowest, kLanes, farthest.index);
  for (int i = 0; i < kBucket; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int32_t own = squared[i + lane] == farthest.squared ? index[i + lane] : lowest[lane];
      lowest[lane] = own < lowest[lane] ? own : lowest[lane];
    }
  }
  farthest.index = *std::min_element(lowest, lowest + kLanes);
  return farthest;
}

// The same code compiled with and without AVX2, selected at run time.
#if defined(__x86_64__) && defined(__GNUC__)
template <typename T>
__attribute__((target("avx2"))) Farthest<T> refresh_bucket_avx2(const Cloud<T>& cloud, int64_t b,
                                                                const T* chosen) {
  return refresh_bucket(cloud, b, chosen);
}

template <typename T>
auto choose_refresh() {
  return __builtin_cpu_supports("avx2") ? refresh_bucket_avx2<T> : refresh_bucket<T>;
}
#else
template <typename T>
auto choose_refresh() {
  return refresh_bucket<T>;
}
#endif

// Team of one CPU thread.
template <typename T>
struct SerialTeam {
  Farthest<T> (*refresh_one)(const Cloud<T>&, int64_t, const T*);

  int64_t member() const { return 0; }
  int64_t size() const { return 1; }
  bool leads() const { return true; }
  Farthest<T> farthest(const Farthest<T>& own) const { return own; }

  Farthest<T> refresh(const Cloud<T>& cloud, int64_t b, const T* chosen) const {
    return cloud.buckets[b].farthest = refresh_one(cloud, b, chosen);
  }
};

template <typename T>
void sample_on_cpu(const Batch<T>& batch) {
  const SerialTeam<T> team{choose_refresh<T>()};
  parallel_tasks(batch.num_clouds, [&](int64_t i) {
    farthest_point_sampling::sample(batch.clouds[i], batch.num_samples,
                                    batch.out + i * batch.num_samples, team);
  });
}

// Buckets of a cloud, with their tensors.
template <typename T>
Cloud<T> make_cloud(const at::Tensor& points, std::vector<at::Tensor>& held) {
  Cloud<T> cloud{};
  cloud.points = points.const_data_ptr<T>();
  cloud.count = points.size(0);
  cloud.num_buckets = num_blocks(cloud.count, kBucket);
  const int64_t slots = cloud.num_buckets * kBucket;
  const at::Tensor order = order_along_curve<T>(points, kCodeBits);
  const at::Tensor values = at::empty({4, slots}, points.options());
  const at::Tensor index = at::empty({slots}, points.options().dtype(at::kInt));
  const at::Tensor buckets =
      at::empty({cloud.num_buckets * static_cast<int64_t>(sizeof(Bucket<T>))},
                points.options().dtype(at::kByte));
  cloud.x = values.mutable_data_ptr<T>();
  cloud.y = cloud.x + slots;
  cloud.z = cloud.y + slots;
  cloud.squared = cloud.z + slots;
  cloud.index = index.mutable_data_ptr<int32_t>();
  cloud.buckets = reinterpret_cast<Bucket<T>*>(buckets.mutable_data_ptr<uint8_t>());
  const farthest_point_sampling::FillBuckets<T> fill{cloud, order.const_data_ptr<int64_t>()};
  run(points.device(), fill, cloud.num_buckets, kBucketsPerTask);
  held.insert(held.end(), {order, values, index, buckets});
  return cloud;
}

void check_arguments(const at::Tensor& points, at::IntArrayRef lengths, int64_t num_samples) {
  TORCH_CHECK_VALUE(points.dim() == 2 && points.size(1) == 3, "points must be [n, 3], got ",
                    points.sizes());
  TORCH_CHECK_VALUE(num_samples >= 0, "num_samples must be at least 0, got ", num_samples);
  int64_t total = 0;
  for (const int64_t length : lengths) {
    TORCH_CHECK_VALUE(length >= 1 && length <= farthest_point_sampling::kMaxPoints,
                      "every cloud must have 1 to ", farthest_point_sampling::kMaxPoints,
                      " points, got ", lengths);
    total += length;
  }
  TORCH_CHECK_VALUE(total == points.size(0), "lengths must add up to ", points.size(0),
                    " points, got ", lengths);
}

at::Tensor farthest_points(const at::Tensor& points, at::IntArrayRef lengths,
                           int64_t num_samples) {
  check_arguments(points, lengths, num_samples);
  const c10::DeviceGuard guard(points.device());
  const at::Tensor rows = points.contiguous();
  const auto num_clouds = static_cast<int64_t>(lengths.size());
  at::Tensor index = at::empty({num_clouds, num_samples}, rows.options().dtype(at::kLong));
  if (index.numel() == 0) return index;
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "farthest_point_sampling", [&] {
    std::vector<at::Tensor> held;
    int64_t first = 0;
    for (int64_t begin = 0; begin < num_clouds; begin += Batch<scalar_t>::kMaxClouds) {
      Batch<scalar_t> batch{};
      batch.num_samples = num_samples;
      batch.out = index.mutable_data_ptr<int64_t>() + begin * num_samples;
      const int64_t end = std::min<int64_t>(num_clouds, begin + Batch<scalar_t>::kMaxClouds);
      for (int64_t i = begin; i < end; first += lengths[i++]) {
        const at::Tensor cloud = rows.narrow(0, first, lengths[i]);
        batch.clouds[batch.num_clouds++] = make_cloud<scalar_t>(cloud, held);
      }
      if (!runs_on_gpu(rows.device())) {
        sample_on_cpu(batch);
      } else if constexpr (kWithCuda) {
        farthest_point_sampling::launch_cuda(batch, current_stream(rows.device()));
      }
    }
  });
  return index;
}

}  // namespace

OPUS_REGISTER(m) { m.impl("farthest_point_sampling", &farthest_points); }

}  // namespace opus
