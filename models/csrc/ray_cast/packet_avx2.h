// Packet traversal: rays in the lanes of AVX2 registers traverse two grids at once, with one step
// per empty square.
//
// For every voxel and quadrant of directions a map stores the largest square of empty voxels that
// starts there, within its layer. A ray leaves this square in one step; crossing times give the
// next voxel. The ray is marked as unsure if two crossings are nearly simultaneous, or if the exit
// time is close to a rounding boundary of single precision. Unsure rays must be traced again with
// single steps. All other rays end in the same voxel as with single steps.
//
// All rays move upwards on every axis. If a ray moves down, the axis is mirrored: voxel v becomes
// -1 - v, boundary k becomes -k, and origin and direction change their sign. The crossing time
// (k - o) * (1 / d) is bitwise unchanged.
//
// A set of four rays is advanced until all have ended; neighbouring rays are most efficient.
// Several sets are interleaved to hide the latency of a step.
#pragma once

#include "common/avx2.h"

#if defined(OPUS_HAS_AVX2_KERNELS)

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "common/parallel.h"
#include "ray_cast/ray_cast.h"

namespace opus {
namespace ray_cast {
namespace packet {

#define OPUS_AVX2 __attribute__((target("avx2,fma")))
#define OPUS_AVX2_INLINE inline __attribute__((always_inline, target("avx2,fma")))

// Targets of a ray, as bits: the first occupied voxel of the first and of the second grid.
constexpr unsigned kFirst = 1, kSecond = 2;

constexpr int kLanes = 4;

// Sides of empty squares in two grids of the same size. There are four maps, mirrored for the signs
// of x and y. A byte holds the side in the first grid (low half) and in the second (high half).
// Occupied voxels have side 0, as do the padding voxels behind the grid on every axis.
class EmptySquares {
 public:
  static constexpr int kMaxSide = 15;

  // Returns whether positions in the maps of a grid fit into 32 bits.
  static bool fits(const int* size) {
    const double columns = (size[0] + 1.) * (size[1] + 1.);
    return kQuadrants * columns * (size[2] + 1.) < (1u << 31) - 4 * kRow;
  }

  explicit EmptySquares(const int* size)
      : size_{size[0], size[1], size[2]},
        y_stride_(size[2] + 1),
        x_stride_((size[1] + 1) * y_stride_),
        map_bytes_((size[0] + 1) * x_stride_),
        memory_(new uint8_t[kQuadrants * map_bytes_ + 2 * kRow]) {
    std::memset(memory_.get(), 0, kRow);
    std::memset(memory_.get() + kRow + kQuadrants * map_bytes_, 0, kRow);
  }

  // Fills the maps from two grids [X, Y, Z] of labels, which may be the same grid.
  void fill(const uint8_t* first, const uint8_t* second, uint8_t empty) {
    parallel_tasks(kQuadrants, [&](int64_t quadrant) {
      for (int z = 0; z < size_[2]; z += kRow) {
        fill_map(first, second, empty, static_cast<int>(quadrant), z);
      }
    });
  }

  const uint8_t* bytes() const { return memory_.get() + kRow; }
  int size(int axis) const { return size_[axis]; }
  double x_stride() const { return static_cast<double>(x_stride_); }
  double y_stride() const { return static_cast<double>(y_stride_); }
  // Offset of the maps for rays that move down along x or y, relative to mirrored coordinates.
  double mirrored_x() const { return static_cast<double>(size_[0] * x_stride_ + map_bytes_); }
  double mirrored_y() const { return static_cast<double>(size_[1] * y_stride_ + 2 * map_bytes_); }

 private:
  static constexpr int kQuadrants = 4;
  static constexpr int kRow = 16;  // voxels along z in a register

  // Loads 16 voxels along z; the last ones may be outside the column.
  static __m128i load_row(const uint8_t* labels, int64_t at, int64_t total) {
    if (at + kRow <= total) return load_bytes(labels + at);
    uint8_t row[kRow] = {};
    std::memcpy(row, labels + at, total - at);
    return load_bytes(row);
  }

  static __m128i load_bytes(const uint8_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }
  static void store_bytes(uint8_t* to, __m128i row) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), row);
  }

  // The side of a voxel's square is one more than the smallest side at the next voxels along x,
  // along y and along both.
  OPUS_AVX2 void fill_map(const uint8_t* first, const uint8_t* second, uint8_t empty, int quadrant,
                          int z) {
    uint8_t* map = memory_.get() + kRow + quadrant * map_bytes_;
    const int64_t total = static_cast<int64_t>(size_[0]) * size_[1] * size_[2];
    const __m256i free_label = _mm256_set1_epi8(static_cast<char>(empty));
    const __m256i one = _mm256_set1_epi8(1), most = _mm256_set1_epi8(kMaxSide);
    const int count = least_of(kRow, size_[2] - z);
    std::memset(map + size_[0] * x_stride_, 0, x_stride_);
    std::vector<uint8_t> before(2 * kRow * size_[1], 0);  // sides at the next x
    for (int x = size_[0] - 1; x >= 0; --x) {
      const int64_t from_x = static_cast<int64_t>(quadrant & 1 ? size_[0] - 1 - x : x) * size_[1];
      uint8_t* column = map + x * x_stride_ + size_[1] * y_stride_;
      std::memset(column, 0, y_stride_);
      __m256i next_y = _mm256_setzero_si256(), next_both = next_y;
      for (int y = size_[1] - 1; y >= 0; --y) {
        const int64_t at = (from_x + (quadrant & 2 ? size_[1] - 1 - y : y)) * size_[2] + z;
        const __m256i labels = _mm256_set_m128i(load_row(second, at, total),
                                                load_row(first, at, total));
        auto* kept = reinterpret_cast<__m256i*>(before.data() + 2 * kRow * y);
        const __m256i next_x = _mm256_loadu_si256(kept);
        const __m256i least = _mm256_min_epu8(_mm256_min_epu8(next_x, next_both), next_y);
        const __m256i grown = _mm256_min_epu8(_mm256_add_epi8(least, one), most);
        const __m256i side = _mm256_and_si256(grown, _mm256_cmpeq_epi8(labels, free_label));
        _mm256_storeu_si256(kept, side);
        next_both = next_x;
        next_y = side;
        column -= y_stride_;
        const __m128i both =
            _mm_or_si128(_mm256_castsi256_si128(side),
                         _mm_slli_epi16(_mm256_extracti128_si256(side, 1), 4));
        store_row(column + z, both, count);
        column[size_[2]] = 0;
      }
    }
  }

  // Writes only `count` bytes, because the bytes behind the column belong to the next one.
  static void store_row(uint8_t* to, __m128i row, int count) {
    if (count == kRow) return store_bytes(to, row);
    uint8_t bytes[kRow];
    store_bytes(bytes, row);
    std::memcpy(to, bytes, count);
  }

  int size_[3];
  int64_t y_stride_, x_stride_, map_bytes_;
  std::unique_ptr<uint8_t[]> memory_;
};

// Four mirrored rays. An idle lane reads a byte that is always 0.
struct alignas(32) Set {
  double v[3][kLanes], base[3][kLanes], inv[3][kLanes], d[3][kLanes];
  double end[3][kLanes];                  // first voxel behind the grid
  double offset[kLanes], z_stride[kLanes];  // address of a voxel's byte; see x_stride(), y_stride()
  double label_offset[kLanes], label_stride[3][kLanes];  // address of its label in a grid [X, Y, Z]
  double met_at[3][kLanes];               // voxel of the hit in the first of two grids
  double unsure[kLanes];                  // all bits set: two crossings were nearly simultaneous
  int32_t ignored[kLanes];                // all bits of a half set: not, or no longer, a target
  int64_t item[kLanes];                   // -1 for an idle lane
};

constexpr int32_t kIgnoreFirst = 15, kIgnoreSecond = 240, kIgnoreBoth = 255;

inline int32_t ignored_by(unsigned wanted) {
  return (wanted & kFirst ? 0 : kIgnoreFirst) | (wanted & kSecond ? 0 : kIgnoreSecond);
}

inline void rest(Set& set, int lane) {
  for (int a = 0; a < 3; ++a) {
    set.v[a][lane] = set.base[a][lane] = set.inv[a][lane] = set.d[a][lane] = 0;
    set.end[a][lane] = set.label_stride[a][lane] = set.met_at[a][lane] = 0;
  }
  set.offset[lane] = -1;
  set.z_stride[lane] = set.label_offset[lane] = 0;
  set.ignored[lane] = 0;
  set.unsure[lane] = 0;
  set.item[lane] = -1;
}

// Fills a set with four rays from one voxel. No ray may be parallel to a plane of the grid. `d` are
// the absolute directions, `sign` their signs. The caller sets `set.item`.
OPUS_AVX2_INLINE void place(const EmptySquares& maps, const double* origin, const int* voxel,
                            const __m256d* d, const __m256d* sign, unsigned wanted, Set& set) {
  const double label_stride[3] = {static_cast<double>(maps.size(1)) * maps.size(2),
                                  static_cast<double>(maps.size(2)), 1};
  const __m256d zero = _mm256_setzero_pd();
  __m256d label_offset = zero;
  for (int a = 0; a < 3; ++a) {  // blendv selects by the sign bit
    const __m256d v = _mm256_blendv_pd(_mm256_set1_pd(voxel[a]), _mm256_set1_pd(-1. - voxel[a]),
                                       sign[a]);
    const __m256d stride = _mm256_set1_pd(label_stride[a]);
    _mm256_store_pd(set.v[a], v);
    _mm256_store_pd(set.met_at[a], v);
    _mm256_store_pd(set.base[a], _mm256_xor_pd(_mm256_set1_pd(origin[a]), sign[a]));
    _mm256_store_pd(set.inv[a], _mm256_div_pd(_mm256_set1_pd(1), d[a]));
    _mm256_store_pd(set.d[a], d[a]);
    _mm256_store_pd(set.end[a], _mm256_blendv_pd(_mm256_set1_pd(maps.size(a)), zero, sign[a]));
    _mm256_store_pd(set.label_stride[a], _mm256_xor_pd(stride, sign[a]));
    label_offset = _mm256_sub_pd(label_offset, _mm256_blendv_pd(zero, stride, sign[a]));
  }
  const __m256d x = _mm256_blendv_pd(zero, _mm256_set1_pd(maps.mirrored_x()), sign[0]);
  const __m256d y = _mm256_blendv_pd(zero, _mm256_set1_pd(maps.mirrored_y()), sign[1]);
  const __m256d z = _mm256_blendv_pd(zero, _mm256_set1_pd(-1), sign[2]);
  _mm256_store_pd(set.offset, _mm256_add_pd(_mm256_add_pd(x, y), z));
  _mm256_store_pd(set.z_stride, _mm256_xor_pd(_mm256_set1_pd(1), sign[2]));
  _mm256_store_pd(set.label_offset, label_offset);
  _mm256_store_pd(set.unsure, zero);
  _mm_store_si128(reinterpret_cast<__m128i*>(set.ignored), _mm_set1_epi32(ignored_by(wanted)));
}

struct Strides {
  __m256d x, y;
};

// Positions have errors below 1e-9 voxels, as do the summed crossing times in ray_iou.h. If a
// position is closer than this to boundaries of two axes, their order is unsure.
constexpr double kClose = 1e-8;
constexpr double kRelativeError = 1e-12;
// The error of a sum grows with the number of its terms. Up to this many steps it is within the
// bounds above.
constexpr double kSureSteps = 1000;

OPUS_AVX2_INLINE __m256d nearest(__m256d position) {
  return _mm256_round_pd(position, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

OPUS_AVX2_INLINE __m256d is_close(__m256d position, __m256d boundary) {
  const __m256d distance =
      _mm256_andnot_pd(_mm256_set1_pd(-0.), _mm256_sub_pd(position, boundary));
  return _mm256_cmp_pd(distance, _mm256_set1_pd(kClose), _CMP_LT_OQ);
}

// Advances a set by one step. Returns a mask of the rays that have ended: they have hit all their
// targets or left the grid.
OPUS_AVX2_INLINE int advance(Set& set, const uint8_t* map, const Strides& strides) {
  const __m256d x = _mm256_load_pd(set.v[0]), y = _mm256_load_pd(set.v[1]);
  const __m256d z = _mm256_load_pd(set.v[2]);
  const __m256d base_x = _mm256_load_pd(set.base[0]), base_y = _mm256_load_pd(set.base[1]);
  const __m256d inv_x = _mm256_load_pd(set.inv[0]), inv_y = _mm256_load_pd(set.inv[1]);
  const __m256d one = _mm256_set1_pd(1);
  // These are integers, so there is no rounding.
  const __m256d in_column =
      _mm256_fmadd_pd(z, _mm256_load_pd(set.z_stride), _mm256_load_pd(set.offset));
  const __m256d place = _mm256_fmadd_pd(x, strides.x, _mm256_fmadd_pd(y, strides.y, in_column));
  const __m128i byte = _mm_i32gather_epi32(reinterpret_cast<const int*>(map),
                                           _mm256_cvttpd_epi32(place), 1);
  auto* ignored_at = reinterpret_cast<__m128i*>(set.ignored);
  const __m128i ignored = _mm_load_si128(ignored_at), none = _mm_setzero_si128();
  const __m128i half = _mm_set1_epi32(EmptySquares::kMaxSide);
  const __m128i sides = _mm_or_si128(byte, ignored);
  const __m128i first = _mm_and_si128(sides, half);
  const __m128i second = _mm_and_si128(_mm_srli_epi32(sides, 4), half);
  const __m128i side = _mm_min_epi32(first, second);
  // If a ray hits one grid and still has the other as target, store the voxel.
  const __m128i met = _mm_cmpeq_epi32(side, none);
  const __m128i met_first =
      _mm_and_si128(_mm_cmpeq_epi32(first, none), _mm_set1_epi32(kIgnoreFirst));
  const __m128i met_second =
      _mm_and_si128(_mm_cmpeq_epi32(second, none), _mm_set1_epi32(kIgnoreSecond));
  const __m128i settled = _mm_or_si128(ignored, _mm_or_si128(met_first, met_second));
  const __m128i ended = _mm_and_si128(met, _mm_cmpeq_epi32(settled, _mm_set1_epi32(kIgnoreBoth)));
  const __m128i noted = _mm_andnot_si128(ended, met);
  _mm_store_si128(ignored_at, _mm_blendv_epi8(ignored, settled, noted));
  const __m256d notes = _mm256_castsi256_pd(_mm256_cvtepi32_epi64(noted));
  _mm256_store_pd(set.met_at[0], _mm256_blendv_pd(_mm256_load_pd(set.met_at[0]), x, notes));
  _mm256_store_pd(set.met_at[1], _mm256_blendv_pd(_mm256_load_pd(set.met_at[1]), y, notes));
  _mm256_store_pd(set.met_at[2], _mm256_blendv_pd(_mm256_load_pd(set.met_at[2]), z, notes));
  // First crossing out of the square, ordered by (t, axis).
  const __m256d reach = _mm256_cvtepi32_pd(side);
  const __m256d to_x = _mm256_add_pd(x, reach), to_y = _mm256_add_pd(y, reach);
  const __m256d t_x = _mm256_mul_pd(_mm256_sub_pd(to_x, base_x), inv_x);
  const __m256d t_y = _mm256_mul_pd(_mm256_sub_pd(to_y, base_y), inv_y);
  const __m256d t_z = _mm256_mul_pd(
      _mm256_sub_pd(_mm256_add_pd(z, one), _mm256_load_pd(set.base[2])),
      _mm256_load_pd(set.inv[2]));
  const __m256d y_first = _mm256_cmp_pd(t_y, t_x, _CMP_LT_OQ);
  const __m256d least = _mm256_min_pd(t_y, t_x);
  const __m256d z_first = _mm256_cmp_pd(t_z, least, _CMP_LT_OQ);
  const __m256d t = _mm256_min_pd(t_z, least);
  // In x and y only the crossing of the nearest boundary must be checked.
  const __m256d at_x = _mm256_fmadd_pd(_mm256_load_pd(set.d[0]), t, base_x);
  const __m256d at_y = _mm256_fmadd_pd(_mm256_load_pd(set.d[1]), t, base_y);
  const __m256d at_z = _mm256_fmadd_pd(_mm256_load_pd(set.d[2]), t, _mm256_load_pd(set.base[2]));
  const __m256d near_x = nearest(at_x), near_y = nearest(at_y);
  const __m256d close_x = is_close(at_x, near_x), close_y = is_close(at_y, near_y);
  const __m256d close_z = is_close(at_z, nearest(at_z));
  const __m256d close = _mm256_or_pd(_mm256_and_pd(close_x, close_y),
                                     _mm256_and_pd(close_z, _mm256_or_pd(close_x, close_y)));
  const __m256d t_near_x = _mm256_mul_pd(_mm256_sub_pd(near_x, base_x), inv_x);
  const __m256d t_near_y = _mm256_mul_pd(_mm256_sub_pd(near_y, base_y), inv_y);
  // Crossings at the same t come first on the same or an earlier axis.
  const __m256d crossed_x = _mm256_cmp_pd(t_near_x, t, _CMP_LE_OQ);
  const __m256d crossed_y = _mm256_blendv_pd(_mm256_cmp_pd(t_near_y, t, _CMP_LT_OQ),
                                             _mm256_cmp_pd(t_near_y, t, _CMP_LE_OQ),
                                             _mm256_or_pd(y_first, z_first));
  const __m256d next_x = _mm256_max_pd(_mm256_sub_pd(near_x, _mm256_andnot_pd(crossed_x, one)), x);
  const __m256d next_y = _mm256_max_pd(_mm256_sub_pd(near_y, _mm256_andnot_pd(crossed_y, one)), y);
  const __m256d next_z = _mm256_add_pd(z, _mm256_and_pd(z_first, one));
  const __m256d stays = _mm256_castsi256_pd(_mm256_cvtepi32_epi64(met));
  const __m256d unsure = _mm256_or_pd(_mm256_load_pd(set.unsure), _mm256_andnot_pd(stays, close));
  _mm256_store_pd(set.unsure, unsure);
  _mm256_store_pd(set.v[0], _mm256_blendv_pd(next_x, x, stays));
  _mm256_store_pd(set.v[1], _mm256_blendv_pd(next_y, y, stays));
  _mm256_store_pd(set.v[2], _mm256_blendv_pd(next_z, z, stays));
  return _mm_movemask_ps(_mm_castsi128_ps(ended));
}

// End points of a set's rays in the first and second grid: index of the voxel's label, exit time,
// and whether the voxel is occupied (else it is the last one in the grid). Unsure rays must be
// traced again with single steps.
struct alignas(32) Ends {
  double t_exit[2][kLanes];
  int32_t label[2][kLanes];
  int occupied[2], unsure[2];  // one bit per lane
};

struct Exit {
  __m256d t, label;
};

OPUS_AVX2_INLINE Exit exit_of(const Set& set, const __m256d* v) {
  __m256d t[3], label = _mm256_load_pd(set.label_offset);
  for (int a = 0; a < 3; ++a) {
    const __m256d boundary = _mm256_add_pd(v[a], _mm256_set1_pd(1));
    t[a] = _mm256_mul_pd(_mm256_sub_pd(boundary, _mm256_load_pd(set.base[a])),
                         _mm256_load_pd(set.inv[a]));
    label = _mm256_fmadd_pd(v[a], _mm256_load_pd(set.label_stride[a]), label);
  }
  return {_mm256_min_pd(_mm256_min_pd(t[0], t[1]), t[2]), label};
}

// Returns a mask of the rays with uncertain results: the exit time `t`, computed as a sum, may
// round to another number in single precision, or the ray has taken many steps.
OPUS_AVX2_INLINE int doubts(const Set& set, __m256d t) {
  const __m256d error = _mm256_mul_pd(t, _mm256_set1_pd(kRelativeError));
  const __m128 low = _mm256_cvtpd_ps(_mm256_sub_pd(t, error));
  const __m128 high = _mm256_cvtpd_ps(_mm256_add_pd(t, error));
  const __m256d speed = _mm256_add_pd(_mm256_add_pd(_mm256_load_pd(set.d[0]),
                                                    _mm256_load_pd(set.d[1])),
                                      _mm256_load_pd(set.d[2]));
  const __m256d is_long =
      _mm256_cmp_pd(_mm256_mul_pd(t, speed), _mm256_set1_pd(kSureSteps), _CMP_GT_OQ);
  return _mm_movemask_ps(_mm_cmpneq_ps(low, high)) | _mm256_movemask_pd(is_long);
}

OPUS_AVX2_INLINE void finish(const Set& set, unsigned wanted, Ends& ends) {
  __m256d last[3], noted[3], inside = _mm256_castsi256_pd(_mm256_set1_epi64x(-1));
  for (int a = 0; a < 3; ++a) {
    const __m256d v = _mm256_load_pd(set.v[a]);
    const __m256d own = _mm256_cmp_pd(v, _mm256_load_pd(set.end[a]), _CMP_LT_OQ);
    inside = _mm256_and_pd(inside, own);
    last[a] = _mm256_sub_pd(v, _mm256_andnot_pd(own, _mm256_set1_pd(1)));
    noted[a] = _mm256_load_pd(set.met_at[a]);
  }
  const Exit at_last = exit_of(set, last), at_noted = exit_of(set, noted);
  const __m128i ignored = _mm_load_si128(reinterpret_cast<const __m128i*>(set.ignored));
  const __m128i notes = _mm_andnot_si128(_mm_set1_epi32(ignored_by(wanted)), ignored);
  for (int which = 0; which < 2; ++which) {
    const __m128i bits = _mm_set1_epi32(which == 0 ? kIgnoreFirst : kIgnoreSecond);
    const __m256d is_noted = _mm256_castsi256_pd(
        _mm256_cvtepi32_epi64(_mm_cmpeq_epi32(_mm_and_si128(notes, bits), bits)));
    const __m256d t = _mm256_blendv_pd(at_last.t, at_noted.t, is_noted);
    _mm256_store_pd(ends.t_exit[which], t);
    ends.unsure[which] = _mm256_movemask_pd(_mm256_load_pd(set.unsure)) | doubts(set, t);
    const __m256d label = _mm256_blendv_pd(at_last.label, at_noted.label, is_noted);
    _mm_store_si128(reinterpret_cast<__m128i*>(ends.label[which]), _mm256_cvttpd_epi32(label));
    ends.occupied[which] = _mm256_movemask_pd(_mm256_or_pd(inside, is_noted));
  }
}

// Number of interleaved sets.
constexpr int kSets = 4;

// Traces rays 0 ... count - 1 with the targets `wanted`. `begin(i, end, set)` fills a set with rays
// i ... end - 1, at most four; other lanes are idle. `meet(set, ends)` receives their end points.
template <typename Begin, typename Meet>
OPUS_AVX2 void walk(const EmptySquares& maps, int64_t count, unsigned wanted, const Begin& begin,
                    const Meet& meet) {
  const Strides strides{_mm256_set1_pd(maps.x_stride()), _mm256_set1_pd(maps.y_stride())};
  const uint8_t* bytes = maps.bytes();
  Set sets[kSets];
  int64_t next = 0;
  int walking = 0;
  const auto start = [&](Set& set) {
    begin(next, least_of(count, next + kLanes), set);
    next += kLanes;
  };
  while (walking < kSets && next < count) start(sets[walking++]);
  while (walking > 0) {
    for (int i = 0; i < walking; ++i) {
      if (__builtin_expect(advance(sets[i], bytes, strides) != (1 << kLanes) - 1, 1)) continue;
      Ends ends;
      finish(sets[i], wanted, ends);
      meet(sets[i], ends);
      if (next < count) {
        start(sets[i]);
      } else {
        sets[i--] = sets[--walking];
      }
    }
  }
}

#undef OPUS_AVX2
#undef OPUS_AVX2_INLINE

}  // namespace packet
}  // namespace ray_cast
}  // namespace opus

#endif  // OPUS_HAS_AVX2_KERNELS
