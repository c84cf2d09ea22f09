// Sets up the rays of one origin for packet_avx2.h, four at once: the arithmetic of
// direction_in_voxels() in ray_iou.h, with the same operations in the same order.
#pragma once

#include "common/avx2.h"

#if defined(OPUS_HAS_AVX2_KERNELS)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "ray_cast/packet_avx2.h"
#include "ray_iou/ray_iou.h"

namespace opus {
namespace ray_iou {

#define OPUS_AVX2 __attribute__((target("avx2,fma")))

class PacketStarts {
 public:
  PacketStarts(const Rays& rays, int64_t origin)
      : rays_(rays), origin_m_(rays.origins_m + 3 * origin), from_(rays.start_of(origin)) {
    for (int a = 0; a < 3; ++a) {
      const double o = from_.voxel[a];
      starts_inside_ &= o >= 0 && o < rays.layout.size[a];
      const int v = starts_inside_ ? static_cast<int>(o) : 0;
      v_[a][0] = v;
      v_[a][1] = -1 - v;
      base_[a][0] = o;
      base_[a][1] = -o;
    }
  }

  const Start& from() const { return from_; }

  // Sets up a ray, and others up to `end` with it. False for those that start_ray() has to look
  // at: from outside, parallel to a plane of the grid, or not finite.
  bool start(int64_t column, int64_t end, ray_cast::packet::Start& out) {
    if (!starts_inside_) return false;
    if (column >= ready_) prepare(column, std::min(end, column + kAhead));
    const int64_t i = column - first_;
    if (unusual_[i]) return false;
    out.signs = signs_[i];
    for (int a = 0; a < 3; ++a) {
      const int mirrored = out.signs >> a & 1;
      out.v[a] = v_[a][mirrored];
      out.base[a] = base_[a][mirrored];
      out.d[a] = d_[a][i];
      out.inv[a] = inv_[a][i];
    }
    return true;
  }

 private:
  static constexpr int kAhead = 64;

  // Columns behind the last are computed as the last one.
  OPUS_AVX2 void prepare(int64_t begin, int64_t end) {
    first_ = begin;
    ready_ = end;
    for (int64_t i = 0; i < end - begin; i += 4) {
      const float* row[4];
      for (int k = 0; k < 4; ++k) row[k] = rays_.directions + 3 * std::min(begin + i + k, end - 1);
      prepare_four(i, row);
    }
  }

  OPUS_AVX2 inline __attribute__((always_inline)) void prepare_four(int64_t i,
                                                                    const float* const* row) {
    __m128 along[3];
    for (int a = 0; a < 3; ++a) {
      const __m128 direction = _mm_set_ps(row[3][a], row[2][a], row[1][a], row[0][a]);
      const __m256d end_m = _mm256_add_pd(_mm256_set1_pd(origin_m_[a]), _mm256_cvtps_pd(direction));
      const __m256d voxel = _mm256_div_pd(_mm256_sub_pd(end_m, _mm256_set1_pd(rays_.grid_min[a])),
                                          _mm256_set1_pd(rays_.voxel_size));
      along[a] = _mm_sub_ps(_mm256_cvtpd_ps(voxel), _mm_set1_ps(from_.voxel[a]));
    }
    const __m128 plane =
        _mm_add_ps(_mm_mul_ps(along[0], along[0]), _mm_mul_ps(along[1], along[1]));
    const __m128 length = _mm_sqrt_ps(_mm_add_ps(plane, _mm_mul_ps(along[2], along[2])));
    int negative[3], usual = 15;
    for (int a = 0; a < 3; ++a) {
      const __m256d signed_d = _mm256_cvtps_pd(_mm_div_ps(along[a], length));
      const __m256d d = _mm256_andnot_pd(_mm256_set1_pd(-0.), signed_d);
      _mm256_storeu_pd(d_[a] + i, d);
      _mm256_storeu_pd(inv_[a] + i, _mm256_div_pd(_mm256_set1_pd(1.), d));
      negative[a] = _mm256_movemask_pd(signed_d);
      usual &= _mm256_movemask_pd(_mm256_cmp_pd(d, _mm256_setzero_pd(), _CMP_GT_OQ)) &
               _mm256_movemask_pd(_mm256_cmp_pd(d, _mm256_set1_pd(1.5), _CMP_LT_OQ));
    }
    for (int k = 0; k < 4; ++k) {
      signs_[i + k] = static_cast<uint8_t>((negative[0] >> k & 1) | (negative[1] >> k & 1) << 1 |
                                           (negative[2] >> k & 1) << 2);
      unusual_[i + k] = (usual >> k & 1) == 0;
    }
  }

  const Rays& rays_;
  const double* origin_m_;
  Start from_;
  bool starts_inside_ = true;
  double v_[3][2], base_[3][2];  // as they are, and mirrored
  int64_t first_ = 0, ready_ = -1;
  double d_[3][kAhead], inv_[3][kAhead];  // without signs
  uint8_t signs_[kAhead], unusual_[kAhead];
};

#undef OPUS_AVX2

}  // namespace ray_iou
}  // namespace opus

#endif  // OPUS_HAS_AVX2_KERNELS
