// Farthest-point sampling: every chosen point updates the distance of all points to the chosen set.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace opus {
namespace {

constexpr int64_t kLanes = 16;   // points compared side by side
constexpr int64_t kBlock = 512;  // points with a maximum of their own, a multiple of kLanes

// Coordinates by axis and the squared distance of every point to the chosen ones. Points that fill
// the last block have the distance -infinity, as have those that are not finite: they are never
// the farthest.
template <typename T>
struct Cloud {
  std::vector<T> x, y, z, nearest;

  Cloud(const T* points, int64_t count) {
    const int64_t padded = (count + kBlock - 1) / kBlock * kBlock;
    for (auto* axis : {&x, &y, &z}) axis->assign(padded, T(0));
    nearest.assign(padded, -std::numeric_limits<T>::infinity());
    for (int64_t i = 0; i < count; ++i) {
      x[i] = points[3 * i];
      y[i] = points[3 * i + 1];
      z[i] = points[3 * i + 2];
      if (std::isfinite(x[i]) && std::isfinite(y[i]) && std::isfinite(z[i])) {
        nearest[i] = std::numeric_limits<T>::infinity();
      }
    }
  }
};

// Updates the distances of one block by a chosen point and returns the largest of them. A distance
// that is not a number compares false and changes nothing.
template <typename T>
inline __attribute__((always_inline)) T update_block(const T* __restrict x, const T* __restrict y,
                                                     const T* __restrict z,
                                                     T* __restrict nearest, T px, T py, T pz) {
  T best[kLanes];
  std::fill_n(best, kLanes, -std::numeric_limits<T>::infinity());
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T dx = x[i + lane] - px, dy = y[i + lane] - py, dz = z[i + lane] - pz;
      const T distance = (dx * dx + dy * dy) + dz * dz;
      const T before = nearest[i + lane];
      const T after = distance < before ? distance : before;
      nearest[i + lane] = after;
      best[lane] = after > best[lane] ? after : best[lane];
    }
  }
  return *std::max_element(best, best + kLanes);
}

template <typename T>
inline __attribute__((always_inline)) int64_t next_farthest(Cloud<T>& cloud, int64_t chosen) {
  const T px = cloud.x[chosen], py = cloud.y[chosen], pz = cloud.z[chosen];
  const int64_t padded = static_cast<int64_t>(cloud.nearest.size());
  T best = -std::numeric_limits<T>::infinity();
  int64_t block = 0;
  for (int64_t i = 0; i < padded; i += kBlock) {
    const T largest = update_block(&cloud.x[i], &cloud.y[i], &cloud.z[i], &cloud.nearest[i], px,
                                   py, pz);
    if (largest > best) {
      best = largest;
      block = i;
    }
  }
  const T* begin = &cloud.nearest[block];
  return block + (std::find(begin, begin + kBlock, best) - begin);
}

// The same code for processors with and without AVX2; which one runs is decided at the first call.
#if defined(__x86_64__) && defined(__GNUC__)
template <typename T>
__attribute__((target("avx2"))) int64_t next_farthest_avx2(Cloud<T>& cloud, int64_t chosen) {
  return next_farthest(cloud, chosen);
}

template <typename T>
auto choose_step() {
  return __builtin_cpu_supports("avx2") ? next_farthest_avx2<T> : next_farthest<T>;
}
#else
template <typename T>
auto choose_step() {
  return next_farthest<T>;
}
#endif

at::Tensor farthest_point_sampling_cpu(const at::Tensor& points, int64_t num_samples) {
  const at::Tensor rows = points.contiguous();
  at::Tensor index = at::empty({num_samples}, rows.options().dtype(at::kLong));
  int64_t* out = index.mutable_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "farthest_point_sampling", [&] {
    Cloud<scalar_t> cloud(rows.const_data_ptr<scalar_t>(), rows.size(0));
    const auto step = choose_step<scalar_t>();
    for (int64_t i = 0, chosen = 0; i < num_samples; ++i) {
      if (i > 0) chosen = step(cloud, chosen);
      out[i] = chosen;
    }
  });
  return index;
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) {
  m.impl("farthest_point_sampling", &farthest_point_sampling_cpu);
}

}  // namespace opus
