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
      : rays_(rays), number_(origin), origin_m_(rays.origins_m + 3 * origin),
        from_(rays.start_of(origin)) {
    for (int a = 0; a < 3; ++a) {
      o_[a] = from_.voxel[a];
      starts_inside_ &= o_[a] >= 0 && o_[a] < rays.layout.size[a];
      v_[a] = starts_inside_ ? static_cast<int>(o_[a]) : 0;
    }
  }

  // Puts rays `columns`, four at most, into a set; those that miss the grid stay at rest.
  OPUS_AVX2 void start(const int32_t* columns, int count, const ray_cast::packet::EmptySquares& maps,
                       ray_cast::packet::Set& set) const {
    int usual = 0;
    if (starts_inside_) usual = start_four(columns, count, maps, set);
    for (int lane = 0; lane < ray_cast::packet::kLanes; ++lane) {
      set.item[lane] = lane < count ? columns[lane] : -1;
      if ((usual >> lane & 1) != 0 && lane < count) continue;
      ray_cast::Ray ray;
      if (lane < count && rays_.start(number_, from_, columns[lane], ray)) {
        place(maps, ray, rays_.to_cast(), lane, set);
      } else {
        rest(set, lane);
      }
    }
  }

 private:
  // All from the origin's voxel. Returns, as bits, the rays that are neither parallel to a plane of
  // the grid nor anything but finite; start_ray() has to look at the others.
  OPUS_AVX2 int start_four(const int32_t* columns, int count,
                           const ray_cast::packet::EmptySquares& maps,
                           ray_cast::packet::Set& set) const {
    const float* row[4];
    for (int k = 0; k < 4; ++k) row[k] = rays_.directions + 3 * columns[std::min(k, count - 1)];
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
    __m256d d[3], sign[3];
    __m256d usual = _mm256_castsi256_pd(_mm256_set1_epi64x(-1));
    for (int a = 0; a < 3; ++a) {
      const __m256d signed_d = _mm256_cvtps_pd(_mm_div_ps(along[a], length));
      sign[a] = _mm256_and_pd(_mm256_set1_pd(-0.), signed_d);
      d[a] = _mm256_xor_pd(signed_d, sign[a]);
      const __m256d above = _mm256_cmp_pd(d[a], _mm256_setzero_pd(), _CMP_GT_OQ);
      const __m256d below = _mm256_cmp_pd(d[a], _mm256_set1_pd(2), _CMP_LT_OQ);
      usual = _mm256_and_pd(usual, _mm256_and_pd(above, below));
    }
    place(maps, o_, v_, d, sign, rays_.to_cast(), set);
    return _mm256_movemask_pd(usual);
  }

  const Rays& rays_;
  int64_t number_;
  const double* origin_m_;
  Start from_;
  double o_[3];
  int v_[3];
  bool starts_inside_ = true;
};

#undef OPUS_AVX2

}  // namespace ray_iou
}  // namespace opus

#endif  // OPUS_HAS_AVX2_KERNELS
