// Setup of the rays of one origin for packet_avx2.h, four at a time. The operations and their order
// are those of direction_in_voxels() in ray_iou.h.
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
      o_[a] = from_.voxel[a];
      starts_inside_ &= o_[a] >= 0 && o_[a] < rays.size[a];
      v_[a] = starts_inside_ ? static_cast<int>(o_[a]) : 0;
    }
  }

  // Fills a set with the rays `columns`, at most four. Returns a mask of the accepted rays: their
  // origin is in the grid, they are finite and not parallel to a plane of the grid.
  OPUS_AVX2 int start(const int32_t* columns, int count, const ray_cast::packet::EmptySquares& maps,
                      ray_cast::packet::Set& set) const {
    const int started = starts_inside_ ? start_four(columns, count, maps, set) : 0;
    for (int lane = 0; lane < ray_cast::packet::kLanes; ++lane) {
      if (lane < count && (started >> lane & 1) != 0) {
        set.item[lane] = columns[lane];
      } else {
        rest(set, lane);
      }
    }
    return started;
  }

 private:
  // All rays start in the origin's voxel.
  OPUS_AVX2 int start_four(const int32_t* columns, int count,
                           const ray_cast::packet::EmptySquares& maps,
                           ray_cast::packet::Set& set) const {
    const float* row[4];
    for (int k = 0; k < 4; ++k) row[k] = rays_.directions + 3 * columns[std::min(k, count - 1)];
    __m256d along[3];
    for (int a = 0; a < 3; ++a) {
      const __m128 direction = _mm_set_ps(row[3][a], row[2][a], row[1][a], row[0][a]);
      const __m256d end_m = _mm256_add_pd(_mm256_set1_pd(origin_m_[a]), _mm256_cvtps_pd(direction));
      const __m256d voxel = _mm256_div_pd(_mm256_sub_pd(end_m, _mm256_set1_pd(rays_.grid_min[a])),
                                          _mm256_set1_pd(rays_.voxel_size));
      const __m256d end = _mm256_cvtps_pd(_mm256_cvtpd_ps(voxel));
      along[a] = _mm256_sub_pd(end, _mm256_set1_pd(o_[a]));
    }
    const __m256d plane =
        _mm256_add_pd(_mm256_mul_pd(along[0], along[0]), _mm256_mul_pd(along[1], along[1]));
    const __m256d length =
        _mm256_sqrt_pd(_mm256_add_pd(plane, _mm256_mul_pd(along[2], along[2])));
    __m256d d[3], sign[3];
    __m256d usual = _mm256_castsi256_pd(_mm256_set1_epi64x(-1));
    for (int a = 0; a < 3; ++a) {
      const __m256d signed_d = _mm256_div_pd(along[a], length);
      sign[a] = _mm256_and_pd(_mm256_set1_pd(-0.), signed_d);
      d[a] = _mm256_xor_pd(signed_d, sign[a]);
      const __m256d above = _mm256_cmp_pd(d[a], _mm256_setzero_pd(), _CMP_GT_OQ);
      const __m256d below = _mm256_cmp_pd(d[a], _mm256_set1_pd(2), _CMP_LT_OQ);
      usual = _mm256_and_pd(usual, _mm256_and_pd(above, below));
    }
    const unsigned wanted = (rays_.cast_gt ? ray_cast::packet::kFirst : 0) |
                            (rays_.cast_pred ? ray_cast::packet::kSecond : 0);
    place(maps, o_, v_, d, sign, wanted, set);
    return _mm256_movemask_pd(usual);
  }

  const Rays& rays_;
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
