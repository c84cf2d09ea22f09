// Traversal of labels by eight rays in parallel, in the lanes of two sets of AVX2 registers.
//
// Every lane takes the single steps of ray_cast.h with the same operations in the same order. When
// a ray ends, its lane takes the next ray. Included only for the AVX2 target.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <limits>

#include "ray_cast/ray_cast.h"

namespace opus {
namespace voxel_shading {

// Two independent sets hide the latency of a step.
constexpr int kLanes = 4, kSets = 2, kRayLanes = kLanes * kSets;

// Eight rays in the grid. The limit of an idle lane is minus infinity, so it does not move.
struct alignas(32) RayLanes {
  double boundary[3][kRayLanes];  // next boundary on each axis
  double base[3][kRayLanes], inv[3][kRayLanes], step[3][kRayLanes];
  double limit[kRayLanes];  // time at which the ray leaves the grid
  int64_t stride[3][kRayLanes], voxel[kRayLanes];  // strides and index in the labels
};

inline void rest(RayLanes& rays, int lane) {
  for (int a = 0; a < 3; ++a) {
    rays.boundary[a][lane] = rays.base[a][lane] = rays.inv[a][lane] = rays.step[a][lane] = 0;
    rays.stride[a][lane] = 0;
  }
  rays.limit[lane] = -std::numeric_limits<double>::infinity();
  rays.voxel[lane] = 0;
}

inline void set(RayLanes& rays, int lane, const ray_cast::Ray& ray, const int* size) {
  const int64_t stride[3] = {static_cast<int64_t>(size[1]) * size[2], size[2], 1};
  double t_exit[3];
  int64_t voxel = 0;
  for (int a = 0; a < 3; ++a) {
    rays.boundary[a][lane] = ray.v[a] + (ray.step[a] > 0);
    rays.base[a][lane] = ray.base[a];
    rays.inv[a][lane] = ray.inv[a];
    rays.step[a][lane] = ray.step[a];
    rays.stride[a][lane] = ray.step[a] * stride[a];
    voxel += ray.v[a] * stride[a];
    t_exit[a] = crossing(ray, a, ray.step[a] > 0 ? size[a] : 0);
  }
  rays.limit[lane] = ray_cast::least(t_exit);
  rays.voxel[lane] = voxel;
}

// Copies the voxel of a lane back to its ray.
inline void get(const RayLanes& rays, int lane, ray_cast::Ray& ray) {
  for (int a = 0; a < 3; ++a) {
    ray.v[a] = static_cast<int>(rays.boundary[a][lane]) - (ray.step[a] > 0);
  }
}

// State of four lanes.
struct Set {
  __m256d boundary[3], base[3], inv[3], step[3], limit;
  __m256i stride[3], voxel;
};

inline __m256i load_whole(const int64_t* p) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}

inline Set load(const RayLanes& rays, int first) {
  Set set;
  for (int a = 0; a < 3; ++a) {
    set.boundary[a] = _mm256_load_pd(rays.boundary[a] + first);
    set.base[a] = _mm256_load_pd(rays.base[a] + first);
    set.inv[a] = _mm256_load_pd(rays.inv[a] + first);
    set.step[a] = _mm256_load_pd(rays.step[a] + first);
    set.stride[a] = load_whole(rays.stride[a] + first);
  }
  set.limit = _mm256_load_pd(rays.limit + first);
  set.voxel = load_whole(rays.voxel + first);
  return set;
}

// Advances four lanes by one step. Returns a mask of the lanes that did not move: they are in an
// occupied voxel or would leave the grid.
inline __attribute__((always_inline)) int advance(Set& set, const uint8_t* labels, __m256i empty) {
  // The gather reads four labels per lane; only one is used.
  const __m128i four = _mm256_i64gather_epi32(reinterpret_cast<const int*>(labels),
                                              _mm256_srli_epi64(set.voxel, 2), 4);
  const __m256i bits = _mm256_slli_epi64(_mm256_and_si256(set.voxel, _mm256_set1_epi64x(3)), 3);
  const __m256i label = _mm256_and_si256(_mm256_srlv_epi64(_mm256_cvtepu32_epi64(four), bits),
                                         _mm256_set1_epi64x(255));
  __m256d t[3];
  for (int a = 0; a < 3; ++a) {
    t[a] = _mm256_mul_pd(_mm256_sub_pd(set.boundary[a], set.base[a]), set.inv[a]);
  }
  const __m256d y_first = _mm256_cmp_pd(t[1], t[0], _CMP_LT_OQ);
  const __m256d nearer = _mm256_blendv_pd(t[0], t[1], y_first);
  const __m256d z_first = _mm256_cmp_pd(t[2], nearer, _CMP_LT_OQ);
  const __m256d t_event = _mm256_blendv_pd(nearer, t[2], z_first);
  const __m256d goes_on = _mm256_and_pd(_mm256_cmp_pd(t_event, set.limit, _CMP_LT_OQ),
                                        _mm256_castsi256_pd(_mm256_cmpeq_epi64(label, empty)));
  const __m256d moves[3] = {_mm256_andnot_pd(_mm256_or_pd(y_first, z_first), goes_on),
                            _mm256_and_pd(_mm256_andnot_pd(z_first, y_first), goes_on),
                            _mm256_and_pd(z_first, goes_on)};
  for (int a = 0; a < 3; ++a) {
    set.boundary[a] = _mm256_add_pd(set.boundary[a], _mm256_and_pd(moves[a], set.step[a]));
    const __m256i moved = _mm256_and_si256(_mm256_castpd_si256(moves[a]), set.stride[a]);
    set.voxel = _mm256_add_epi64(set.voxel, moved);
  }
  return ~_mm256_movemask_pd(goes_on) & 15;
}

// Advances all lanes until two rays, or all active ones, have ended. Returns a mask of them. Labels
// are read in groups of four, so their number must be a multiple of four.
inline int advance(RayLanes& rays, int walking, const uint8_t* labels, uint8_t empty_label) {
  const __m256i empty = _mm256_set1_epi64x(empty_label);
  Set set[kSets];
  for (int i = 0; i < kSets; ++i) set[i] = load(rays, i * kLanes);
  int ended = 0;
  while ((ended & (ended - 1)) == 0 && ended != walking) {
    ended = 0;
    for (int i = 0; i < kSets; ++i) ended |= advance(set[i], labels, empty) << (i * kLanes);
    ended &= walking;
  }
  for (int i = 0; i < kSets; ++i) {
    for (int a = 0; a < 3; ++a) {
      _mm256_store_pd(rays.boundary[a] + i * kLanes, set[i].boundary[a]);
    }
    _mm256_store_si256(reinterpret_cast<__m256i*>(rays.voxel + i * kLanes), set[i].voxel);
  }
  return ended;
}

}  // namespace voxel_shading
}  // namespace opus
