// The traversal of ray_cast.h with the three axes of a ray in the lanes of AVX2 registers. The
// operations and their order are the same, so results are bitwise equal.
#pragma once

#include "common/avx2.h"

#if defined(OPUS_HAS_AVX2_KERNELS)

#include <immintrin.h>

#include <array>
#include <cstdint>

#include "ray_cast/ray_cast.h"

namespace opus {
namespace ray_cast {
namespace avx2 {

#define OPUS_AVX2 __attribute__((target("avx2")))
#define OPUS_AVX2_INLINE inline __attribute__((always_inline, target("avx2")))

// Bits of the children first..last along one axis, at [axis][first + 4 * last].
using BoxTable = std::array<std::array<uint64_t, 16>, 3>;

inline BoxTable make_box_table() {
  BoxTable table{};
  for (int axis = 0; axis < 3; ++axis) {
    for (int first = 0; first < 4; ++first) {
      for (int last = first; last < 4; ++last) {
        int lo[3] = {0, 0, 0}, hi[3] = {3, 3, 3};
        lo[axis] = first;
        hi[axis] = last;
        table[axis][first + 4 * last] = box_bits(lo, hi);
      }
    }
  }
  return table;
}

inline const BoxTable kBox = make_box_table();

// A ray with its axes in lanes 0 to 2. Lane 3 represents the end of the ray, a crossing at max_t.
struct Lanes {
  __m256d o, d, inv, base, max_t;
  __m128i step, forward, size;  // forward: all bits set where step > 0
  __m128i v;
};

OPUS_AVX2_INLINE Lanes load(const Masks& masks, const Ray& ray) {
  Lanes out;
  out.o = _mm256_set_pd(0, ray.o[2], ray.o[1], ray.o[0]);
  out.d = _mm256_set_pd(0, ray.d[2], ray.d[1], ray.d[0]);
  out.inv = _mm256_set_pd(0, ray.inv[2], ray.inv[1], ray.inv[0]);
  out.base = _mm256_set_pd(0, ray.base[2], ray.base[1], ray.base[0]);
  out.max_t = _mm256_set1_pd(ray.max_t);
  out.step = _mm_set_epi32(0, ray.step[2], ray.step[1], ray.step[0]);
  out.forward = _mm_cmpgt_epi32(out.step, _mm_setzero_si128());
  out.size = _mm_set_epi32(1, masks.size[2], masks.size[1], masks.size[0]);
  out.v = _mm_set_epi32(0, ray.v[2], ray.v[1], ray.v[0]);
  return out;
}

OPUS_AVX2_INLINE void store(__m128i v, int* out) {
  out[0] = _mm_cvtsi128_si32(v);
  out[1] = _mm_extract_epi32(v, 1);
  out[2] = _mm_extract_epi32(v, 2);
}

// See index_before; slow path for the few rays that pass close to an edge of a voxel.
OPUS_AVX2 __attribute__((noinline)) inline __m128i last_before(Ray& ray, __m128i v, __m128i last,
                                                               double t_event, int axis,
                                                               __m128i lo, __m128i hi) {
  int low[3], high[3], at[3];
  store(v, ray.v);
  store(lo, low);
  store(hi, high);
  store(last, at);
  for (int a = 0; a < 3; ++a) {
    if (a != axis) at[a] = index_before(ray, a, t_event, axis, low[a], high[a]);
  }
  return _mm_set_epi32(0, at[2], at[1], at[0]);
}

// See skip_block. `ray` is only used in the slow path above; the current voxel is lanes.v.
OPUS_AVX2_INLINE bool skip_block(Lanes& lanes, Ray& ray, int level, uint64_t bits, Walk& walk) {
  const __m128i ones = _mm_set1_epi32(-1);
  const __m128i shift = _mm_cvtsi32_si128(2 * (level + 1));
  const __m128i child_shift = _mm_cvtsi32_si128(2 * level);
  const __m128i lo = _mm_sll_epi32(_mm_srl_epi32(lanes.v, shift), shift);
  const __m128i width = _mm_sll_epi32(_mm_set1_epi32(1), shift);
  const __m128i end = _mm_min_epi32(_mm_add_epi32(lo, width), lanes.size);
  const __m128i hi = _mm_add_epi32(end, ones);
  const __m256d boundary = _mm256_cvtepi32_pd(_mm_blendv_epi8(lo, end, lanes.forward));
  const __m256d crossings = _mm256_mul_pd(_mm256_sub_pd(boundary, lanes.base), lanes.inv);
  const __m256d t = _mm256_blend_pd(crossings, lanes.max_t, 8);
  const __m256d pairs = _mm256_min_pd(t, _mm256_permute2f128_pd(t, t, 1));
  const __m256d t_event = _mm256_min_pd(pairs, _mm256_permute_pd(pairs, 5));
  const int axis = __builtin_ctz(_mm256_movemask_pd(_mm256_cmp_pd(t, t_event, _CMP_EQ_OQ)));
  const __m256d position = _mm256_add_pd(lanes.o, _mm256_mul_pd(lanes.d, t_event));
  const __m256d within = _mm256_min_pd(_mm256_max_pd(position, _mm256_cvtepi32_pd(lo)),
                                       _mm256_cvtepi32_pd(hi));
  __m128i last = _mm256_cvttpd_epi32(within);
  const __m256d inset = _mm256_sub_pd(position, _mm256_cvtepi32_pd(last));
  const int unsure = _mm256_movemask_pd(
      _mm256_or_pd(_mm256_cmp_pd(inset, _mm256_set1_pd(kUnsure), _CMP_LT_OQ),
                   _mm256_cmp_pd(inset, _mm256_set1_pd(1 - kUnsure), _CMP_GT_OQ)));
  if (__builtin_expect(unsure & 7 & ~(1 << axis), 0)) {
    last = last_before(ray, lanes.v, last, _mm256_cvtsd_f64(t_event), axis, lo, hi);
  }
  const __m128i from = _mm_srl_epi32(_mm_sub_epi32(lanes.v, lo), child_shift);
  const __m128i to = _mm_srl_epi32(_mm_sub_epi32(last, lo), child_shift);
  const __m128i box = _mm_add_epi32(_mm_min_epi32(from, to),
                                    _mm_slli_epi32(_mm_max_epi32(from, to), 2));
  const uint64_t on_way = kBox[0][_mm_cvtsi128_si32(box)] & kBox[1][_mm_extract_epi32(box, 1)] &
                          kBox[2][_mm_extract_epi32(box, 2)];
  if (bits & on_way) return false;
  const __m128i lane = _mm_set_epi32(3, 2, 1, 0);
  const __m128i moves = _mm_and_si128(_mm_cmpeq_epi32(lane, _mm_set1_epi32(axis)), lanes.step);
  const __m128i next = _mm_add_epi32(last, moves);
  const __m128i inside = _mm_andnot_si128(_mm_cmpgt_epi32(_mm_setzero_si128(), next),
                                          _mm_cmpgt_epi32(lanes.size, next));
  const bool goes_on = axis < 3 && (_mm_movemask_epi8(inside) & 0xFFF) == 0xFFF;
  lanes.v = goes_on ? next : last;
  walk = goes_on ? Walk::kOn : Walk::kEnd;
  return true;
}

OPUS_AVX2_INLINE int64_t block_index(const Masks& masks, int level, __m128i v) {
  const __m128i block = _mm_srl_epi32(v, _mm_cvtsi32_si128(2 * (level + 1)));
  const int* n = masks.blocks[level];
  const int64_t x = _mm_cvtsi128_si32(block);
  const int64_t row = x * n[1] + _mm_extract_epi32(block, 1);
  return row * n[2] + _mm_extract_epi32(block, 2);
}

// See walk_grid with skip_empty.
template <typename Grid>
OPUS_AVX2 bool walk_grid(const Masks& masks, const Grid& grid, Ray& ray) {
  Lanes lanes = load(masks, ray);
  int level = kLevels - 2;
  Walk walk = Walk::kOn;
  while (walk == Walk::kOn) {
    const uint64_t bits = grid(masks.offset[level] + block_index(masks, level, lanes.v));
    const __m128i before = lanes.v;
    if (!skip_block(lanes, ray, level, bits, walk)) {
      if (level > 0) {
        --level;
        continue;
      }
      store(lanes.v, ray.v);
      walk = walk_block(masks, ray, bits);
      lanes.v = _mm_set_epi32(0, ray.v[2], ray.v[1], ray.v[0]);
    }
    const __m128i changed = _mm_xor_si128(before, lanes.v);
    while (level < kLevels - 1) {
      const __m128i above = _mm_srl_epi32(changed, _mm_cvtsi32_si128(2 * (level + 2)));
      if (_mm_testz_si128(above, above)) break;
      ++level;
    }
  }
  store(lanes.v, ray.v);
  return walk == Walk::kHit;
}

// See PlainWalk.
struct FastWalk {
  template <typename Grid>
  bool operator()(const Masks& masks, const Grid& grid, Ray& ray) const {
    return walk_grid(masks, grid, ray);
  }
};

#undef OPUS_AVX2
#undef OPUS_AVX2_INLINE

}  // namespace avx2
}  // namespace ray_cast
}  // namespace opus

#endif  // OPUS_HAS_AVX2_KERNELS
