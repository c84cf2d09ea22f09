// Walking rays many abreast, in the lanes of AVX2 registers, through two grids at once, from one
// patch of empty voxels to the next.
//
// Every voxel knows the largest square of empty voxels that begins at it, within its layer and
// towards where the ray goes. A ray leaves this square in one step. The voxel in which it does is
// found by the crossings that ray_cast.h compares, ordered alike: the walk ends where single steps
// would, with the same bits.
//
// Rays are walked upwards on every axis. Where one goes down, the axis is mirrored: voxel v becomes
// -1 - v, boundary k becomes -k, and origin and direction change their sign. The time of a crossing,
// (k - o) * (1 / d), keeps every bit.
//
// A lane whose ray has ended soon takes the next one, so that none waits for another.
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

// What a ray looks for: the first occupied voxel of either grid, or of both.
constexpr unsigned kFirst = 1, kSecond = 2;

// Signs of a ray's direction: bit a is set where it goes down axis a. `mirrored`: as above.
struct Octant {
  double end[3];            // the first voxel behind the grid, mirrored
  double offset, z_stride;  // of a voxel's byte in the maps
  int64_t label_offset, label_stride[3];  // of its label in a grid [X, Y, Z]
};

// Sides of empty squares in two grids of one size. There are four maps, for the signs of x and y,
// each with x and y mirrored. A byte holds the side in the first grid (low half) and in the second;
// an occupied voxel has side 0, and so has the edge behind the last x and y.
class EmptySquares {
 public:
  static constexpr int kMaxSide = 15;
  static constexpr int kQuadrants = 4, kOctants = 8;

  // Whether positions in the maps of a grid are numbers of 32 bits.
  static bool fits(const int* size) {
    const double columns = (size[0] + 1.) * (size[1] + 1.);
    return kQuadrants * columns * (size[2] + kRow) < (1u << 31) - 4 * kRow;
  }

  explicit EmptySquares(const int* size)
      : size_{size[0], size[1], size[2]},
        y_stride_(num_blocks(size[2], kRow) * kRow),
        x_stride_((size[1] + 1) * y_stride_),
        map_bytes_((size[0] + 1) * x_stride_),
        memory_(new uint8_t[kQuadrants * map_bytes_ + 2 * kRow]) {
    // A ray that has left through top or bottom reads the byte next to its column.
    std::memset(memory_.get(), 0, kRow);
    std::memset(memory_.get() + kRow + kQuadrants * map_bytes_, 0, kRow);
    for (int signs = 0; signs < kOctants; ++signs) octant_[signs] = make_octant(signs);
  }

  // Takes two grids [X, Y, Z] of labels over. They may be the same.
  void fill(const uint8_t* first, const uint8_t* second, uint8_t empty) {
    const int64_t chunks = y_stride_ / kRow;
    parallel_tasks(kQuadrants * chunks, [&](int64_t task) {
      const int quadrant = static_cast<int>(task % kQuadrants);
      fill_map(first, second, empty, quadrant, task / kQuadrants * kRow);
    });
  }

  const uint8_t* bytes() const { return memory_.get() + kRow; }
  double x_stride() const { return static_cast<double>(x_stride_); }
  double y_stride() const { return static_cast<double>(y_stride_); }
  const Octant& octant(int signs) const { return octant_[signs]; }

 private:
  static constexpr int kRow = 16;  // voxels along z in a register

  Octant make_octant(int signs) const {
    Octant octant;
    const int64_t stride[3] = {static_cast<int64_t>(size_[1]) * size_[2], size_[2], 1};
    int64_t offset = (signs & 3) * map_bytes_;
    octant.label_offset = 0;
    for (int a = 0; a < 3; ++a) {
      const bool mirrored = signs >> a & 1;
      octant.end[a] = mirrored ? 0 : size_[a];
      octant.label_offset -= mirrored ? stride[a] : 0;
      octant.label_stride[a] = mirrored ? -stride[a] : stride[a];
    }
    if (signs & 1) offset += size_[0] * x_stride_;
    if (signs & 2) offset += size_[1] * y_stride_;
    if (signs & 4) offset -= 1;
    octant.offset = static_cast<double>(offset);
    octant.z_stride = signs & 4 ? -1 : 1;
    return octant;
  }

  // Of 16 voxels along z, of which the last may lie behind the grid: their side does not matter.
  static __m128i load_row(const uint8_t* labels, int64_t at, int64_t total) {
    if (at + kRow <= total) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(labels + at));
    }
    uint8_t row[kRow] = {};
    std::memcpy(row, labels + at, total - at);
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
  }

  // A square that begins at a voxel is as large as the least of those that begin at the next voxels
  // along x, along y and along both, and one more.
  OPUS_AVX2 void fill_map(const uint8_t* first, const uint8_t* second, uint8_t empty, int quadrant,
                          int64_t z) {
    uint8_t* map = memory_.get() + kRow + quadrant * map_bytes_ + z;
    const int64_t total = static_cast<int64_t>(size_[0]) * size_[1] * size_[2];
    const __m128i zero = _mm_setzero_si128();
    const __m256i free_label = _mm256_set1_epi8(static_cast<char>(empty));
    const __m256i one = _mm256_set1_epi8(1), most = _mm256_set1_epi8(kMaxSide);
    for (int y = 0; y <= size_[1]; ++y) store_row(map + size_[0] * x_stride_ + y * y_stride_, zero);
    std::vector<uint8_t> before(2 * kRow * size_[1], 0);  // sides at the next x
    for (int x = size_[0] - 1; x >= 0; --x) {
      const int64_t from_x = static_cast<int64_t>(quadrant & 1 ? size_[0] - 1 - x : x) * size_[1];
      uint8_t* column = map + x * x_stride_ + size_[1] * y_stride_;
      store_row(column, zero);
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
        store_row(column, _mm_or_si128(_mm256_castsi256_si128(side),
                                       _mm_slli_epi16(_mm256_extracti128_si256(side, 1), 4)));
      }
    }
  }

  static void store_row(uint8_t* to, __m128i row) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), row);
  }

  int size_[3];
  int64_t y_stride_, x_stride_, map_bytes_;
  std::unique_ptr<uint8_t[]> memory_;
  Octant octant_[kOctants];
};

// A ray at its first voxel, mirrored.
struct Start {
  double v[3], base[3], inv[3], d[3];
  int signs;
};

inline Start start_of(const Ray& ray) {
  Start start;
  start.signs = 0;
  for (int a = 0; a < 3; ++a) {
    const bool mirrored = ray.step[a] < 0;
    start.signs |= mirrored << a;
    start.v[a] = mirrored ? -1 - ray.v[a] : ray.v[a];
    start.base[a] = mirrored ? -ray.base[a] : ray.base[a];
    start.inv[a] = mirrored ? -ray.inv[a] : ray.inv[a];
    start.d[a] = mirrored ? -ray.d[a] : ray.d[a];
  }
  return start;
}

// Where the walk of a ray has come to: a voxel that the grids `met` occupy or, with `met` 0, its
// last one. `label` is the voxel's place in a grid of labels, t_exit when the ray leaves it.
struct End {
  unsigned met;
  int64_t label;
  double t_exit;
};

// A step waits for the one before it; other sets of lanes fill the time.
constexpr int kLanes = 4, kSets = 4, kWidth = kLanes * kSets;

// The rays of all lanes. One at rest looks for nothing and stays where it is.
struct alignas(32) Packet {
  double v[3][kWidth], base[3][kWidth], inv[3][kWidth], d[2][kWidth];
  double end_z[kWidth], offset[kWidth], z_stride[kWidth];
  int32_t ignored[2][kWidth];  // all bits of a side set where the ray does not look for its grid
  unsigned wanted[kWidth];
  const Octant* octant[kWidth];
};

inline void look_for(Packet& packet, int lane, unsigned wanted) {
  packet.wanted[lane] = wanted;
  packet.ignored[0][lane] = wanted == kSecond ? EmptySquares::kMaxSide : 0;
  packet.ignored[1][lane] = wanted == kFirst ? EmptySquares::kMaxSide : 0;
}

inline void set(Packet& packet, int lane, const EmptySquares& maps, const Start& start,
                unsigned wanted) {
  const Octant& octant = maps.octant(start.signs);
  for (int a = 0; a < 3; ++a) {
    packet.v[a][lane] = start.v[a];
    packet.base[a][lane] = start.base[a];
    packet.inv[a][lane] = start.inv[a];
  }
  packet.d[0][lane] = start.d[0];
  packet.d[1][lane] = start.d[1];
  packet.end_z[lane] = octant.end[2];
  packet.offset[lane] = octant.offset;
  packet.z_stride[lane] = octant.z_stride;
  packet.octant[lane] = &octant;
  look_for(packet, lane, wanted);
}

// Behind its grid already.
inline void rest(Packet& packet, int lane, const EmptySquares& maps) {
  set(packet, lane, maps, Start{}, 0);
  packet.end_z[lane] = 0;
}

struct Strides {
  __m256d x, y;
};

// One step of four lanes. Returns, as bits, those that stay where they are: they meet in their voxel
// what they look for, or are behind the grid.
OPUS_AVX2_INLINE int advance(Packet& packet, int first, const uint8_t* map,
                             const Strides& strides) {
  const __m256d x = _mm256_load_pd(packet.v[0] + first), y = _mm256_load_pd(packet.v[1] + first);
  const __m256d z = _mm256_load_pd(packet.v[2] + first);
  const __m256d base_x = _mm256_load_pd(packet.base[0] + first);
  const __m256d base_y = _mm256_load_pd(packet.base[1] + first);
  const __m256d inv_x = _mm256_load_pd(packet.inv[0] + first);
  const __m256d inv_y = _mm256_load_pd(packet.inv[1] + first);
  const __m256d one = _mm256_set1_pd(1);
  // Whole numbers: nothing is rounded.
  const __m256d in_column = _mm256_fmadd_pd(z, _mm256_load_pd(packet.z_stride + first),
                                            _mm256_load_pd(packet.offset + first));
  const __m256d place = _mm256_fmadd_pd(x, strides.x, _mm256_fmadd_pd(y, strides.y, in_column));
  const __m128i byte = _mm_i32gather_epi32(reinterpret_cast<const int*>(map),
                                           _mm256_cvttpd_epi32(place), 1);
  const __m128i half = _mm_set1_epi32(EmptySquares::kMaxSide);
  const __m128i ignored[2] = {
      _mm_load_si128(reinterpret_cast<const __m128i*>(packet.ignored[0] + first)),
      _mm_load_si128(reinterpret_cast<const __m128i*>(packet.ignored[1] + first))};
  const __m128i side = _mm_min_epi32(
      _mm_or_si128(_mm_and_si128(byte, half), ignored[0]),
      _mm_or_si128(_mm_and_si128(_mm_srli_epi32(byte, 4), half), ignored[1]));
  const __m256d reach = _mm256_cvtepi32_pd(side);
  // The first crossing out of the square, by (t, axis).
  const __m256d to_x = _mm256_add_pd(x, reach), to_y = _mm256_add_pd(y, reach);
  const __m256d t_x = _mm256_mul_pd(_mm256_sub_pd(to_x, base_x), inv_x);
  const __m256d t_y = _mm256_mul_pd(_mm256_sub_pd(to_y, base_y), inv_y);
  const __m256d t_z = _mm256_mul_pd(
      _mm256_sub_pd(_mm256_add_pd(z, one), _mm256_load_pd(packet.base[2] + first)),
      _mm256_load_pd(packet.inv[2] + first));
  const __m256d y_first = _mm256_cmp_pd(t_y, t_x, _CMP_LT_OQ);
  const __m256d least = _mm256_min_pd(t_y, t_x);
  const __m256d z_first = _mm256_cmp_pd(t_z, least, _CMP_LT_OQ);
  const __m256d t = _mm256_min_pd(t_z, least);
  // Of the boundaries in x and y the position leaves only the nearest one open.
  const __m256d near_x = _mm256_round_pd(
      _mm256_fmadd_pd(_mm256_load_pd(packet.d[0] + first), t, base_x), _MM_FROUND_TO_NEAREST_INT);
  const __m256d near_y = _mm256_round_pd(
      _mm256_fmadd_pd(_mm256_load_pd(packet.d[1] + first), t, base_y), _MM_FROUND_TO_NEAREST_INT);
  const __m256d t_near_x = _mm256_mul_pd(_mm256_sub_pd(near_x, base_x), inv_x);
  const __m256d t_near_y = _mm256_mul_pd(_mm256_sub_pd(near_y, base_y), inv_y);
  // Crossings at t come before this one on the same or an earlier axis.
  const __m256d crossed_x = _mm256_cmp_pd(t_near_x, t, _CMP_LE_OQ);
  const __m256d crossed_y = _mm256_blendv_pd(_mm256_cmp_pd(t_near_y, t, _CMP_LT_OQ),
                                             _mm256_cmp_pd(t_near_y, t, _CMP_LE_OQ),
                                             _mm256_or_pd(y_first, z_first));
  const __m256d next_x = _mm256_max_pd(_mm256_sub_pd(near_x, _mm256_andnot_pd(crossed_x, one)), x);
  const __m256d next_y = _mm256_max_pd(_mm256_sub_pd(near_y, _mm256_andnot_pd(crossed_y, one)), y);
  const __m256d next_z = _mm256_add_pd(z, _mm256_and_pd(z_first, one));
  const __m256d inside = _mm256_cmp_pd(z, _mm256_load_pd(packet.end_z + first), _CMP_LT_OQ);
  const __m256d goes_on = _mm256_and_pd(
      _mm256_cmp_pd(reach, _mm256_setzero_pd(), _CMP_GT_OQ), inside);
  _mm256_store_pd(packet.v[0] + first, _mm256_blendv_pd(x, next_x, goes_on));
  _mm256_store_pd(packet.v[1] + first, _mm256_blendv_pd(y, next_y, goes_on));
  _mm256_store_pd(packet.v[2] + first, _mm256_blendv_pd(z, next_z, goes_on));
  return ~_mm256_movemask_pd(goes_on) & 15;
}

// Steps all lanes until some that are walking have ended. Returns those as bits.
OPUS_AVX2_INLINE unsigned advance(Packet& packet, unsigned walking, const EmptySquares& maps) {
  const Strides strides{_mm256_set1_pd(maps.x_stride()), _mm256_set1_pd(maps.y_stride())};
  unsigned ended = 0;
  while (ended == 0) {
    for (int i = 0; i < kSets; ++i) {
      ended |= static_cast<unsigned>(advance(packet, i * kLanes, maps.bytes(), strides))
               << (i * kLanes);
    }
    ended &= walking;
  }
  return ended;
}

inline End end_of(const Packet& packet, int lane, const EmptySquares& maps) {
  const Octant& octant = *packet.octant[lane];
  double v[3];
  bool inside = true;
  for (int a = 0; a < 3; ++a) {
    const bool beyond = packet.v[a][lane] >= octant.end[a];
    v[a] = packet.v[a][lane] - beyond;
    inside &= !beyond;
  }
  End end{0, octant.label_offset, 0};
  double t[3];
  for (int a = 0; a < 3; ++a) {
    t[a] = (v[a] + 1 - packet.base[a][lane]) * packet.inv[a][lane];
    end.label += static_cast<int64_t>(v[a]) * octant.label_stride[a];
  }
  end.t_exit = least(t);
  if (!inside) return end;
  const double place = v[0] * maps.x_stride() + v[1] * maps.y_stride() +
                       v[2] * octant.z_stride + octant.offset;
  const uint8_t sides = maps.bytes()[static_cast<int64_t>(place)];
  end.met = ((sides & EmptySquares::kMaxSide) == 0 ? kFirst : 0) |
            (sides >> 4 == 0 ? kSecond : 0);
  end.met &= packet.wanted[lane];
  return end;
}

// Walks rays begin ... end - 1. `start(i, start)` sets up ray i and says what it looks for (0:
// nothing). `meet(i, settled, end)` is told where the ray finds what it looks for, `settled`, or
// that it does not find it (`end.met` is 0).
template <typename Begin, typename Meet>
OPUS_AVX2 void walk(const EmptySquares& maps, int64_t begin, int64_t end, const Begin& start,
                    const Meet& meet) {
  Packet packet;
  int64_t item[kWidth];
  unsigned walking = 0;
  const auto fill_lane = [&](int lane) {
    for (; begin < end; ++begin) {
      Start own;
      const unsigned wanted = start(begin, own);
      if (wanted == 0) continue;
      set(packet, lane, maps, own, wanted);
      item[lane] = begin++;
      walking |= 1u << lane;
      return;
    }
    rest(packet, lane, maps);
    walking &= ~(1u << lane);
  };
  for (int lane = 0; lane < kWidth; ++lane) fill_lane(lane);
  while (walking != 0) {
    for (unsigned ended = advance(packet, walking, maps); ended != 0; ended &= ended - 1) {
      const int lane = __builtin_ctz(ended);
      const End own = end_of(packet, lane, maps);
      const unsigned settled = own.met != 0 ? own.met : packet.wanted[lane];
      meet(item[lane], settled, own);
      const unsigned left = packet.wanted[lane] & ~settled;
      if (left != 0) {
        look_for(packet, lane, left);
      } else {
        fill_lane(lane);
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
