// Walking rays eight abreast, in the lanes of two sets of AVX2 registers, through grids that lie in
// bits.
//
// Every lane takes the single steps of ray_cast.h's walk, the same operations in the same order,
// therefore the same bits. A lane whose ray has ended soon takes the next one, so that none waits
// for another. Grids have a shell of occupied voxels around them: leaving one is meeting its shell.
#pragma once

#include "common/avx2.h"

#if defined(OPUS_HAS_AVX2_KERNELS)

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "common/parallel.h"
#include "ray_cast/ray_cast.h"

namespace opus {
namespace ray_cast {
namespace packet {

#define OPUS_AVX2 __attribute__((target("avx2")))
#define OPUS_AVX2_INLINE inline __attribute__((always_inline, target("avx2")))

// Two grids of one size: bit k of a word is a voxel of the first, bit 32 + k the same voxel of the
// second. A row along z takes as many words as its voxels and the shell need, and no others.
class RowBits {
 public:
  static constexpr uint64_t kFirst = 1, kSecond = 1ull << 32;

  // Without any grid: all is shell. `size` voxels along x, y, z.
  explicit RowBits(const int* size)
      : size_{size[0], size[1], size[2]},
        row_words_((size[2] + 2 + 31) / 32),
        words_((size[0] + 2) * (size[1] + 2) * row_words_, ~0ull) {
    stride_[1] = 32 * row_words_;
    stride_[0] = (size[1] + 2) * stride_[1];
    stride_[2] = 1;
  }

  // Lays the occupied voxels of labels [X, Y, Z] into `which` of the two grids.
  void fill(const uint8_t* labels, uint8_t empty, uint64_t which) {
    const int half = which == kFirst ? 0 : 1;
    parallel_tasks(num_blocks(size_[0], 25), [&](int64_t task) {
      const int end = least_of<int>(size_[0], 25 * (task + 1));
      for (int x = 25 * task; x < end; ++x) {
        for (int y = 0; y < size_[1]; ++y) {
          const uint8_t* row = labels + (static_cast<int64_t>(x) * size_[1] + y) * size_[2];
          fill_row(row, empty, words_.data() + (position(x, y, -1) >> 5), half);
        }
      }
    });
  }

  // Of a voxel: the number of its bit, counted as if there were one grid of 32-bit words.
  int64_t position(int x, int y, int z) const {
    return (x + 1) * stride_[0] + (y + 1) * stride_[1] + (z + 1);
  }
  int64_t stride(int axis) const { return stride_[axis]; }
  const uint64_t* words() const { return words_.data(); }
  bool is_outside(int axis, int v) const { return v < 0 || v >= size_[axis]; }

 private:
  void fill_row(const uint8_t* row, uint8_t empty, uint64_t* words, int half) const {
    for (int z = -1; z < size_[2];) {  // bit 0 of the first word is shell
      const int first = z < 0 ? 0 : z, shift = z < 0 ? 1 : 0;
      const int count = least_of(32 - shift, size_[2] - first);
      const uint32_t above = count + shift < 32 ? ~0u << (count + shift) : 0;
      const uint32_t bits = above | occupied(row + first, count, empty) << shift | (z < 0);
      uint32_t halves[2];
      std::memcpy(halves, words, sizeof(halves));
      halves[half] = bits;
      std::memcpy(words++, halves, sizeof(halves));
      z = first + count;
    }
  }

  static uint32_t occupied(const uint8_t* labels, int count, uint8_t empty) {
    uint32_t bits = 0;
    int i = 0;
    for (; i + 16 <= count; i += 16) {
      const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(labels + i));
      const __m128i free = _mm_cmpeq_epi8(sixteen, _mm_set1_epi8(static_cast<char>(empty)));
      bits |= (~static_cast<uint32_t>(_mm_movemask_epi8(free)) & 0xFFFFu) << i;
    }
    for (; i < count; ++i) bits |= static_cast<uint32_t>(labels[i] != empty) << i;
    return bits;
  }

  int size_[3];
  int64_t row_words_, stride_[3];
  std::vector<uint64_t> words_;
};

// A step waits for the one before it; two independent ones at once hide that.
constexpr int kLanes = 4, kSets = 2, kWidth = kLanes * kSets;

// Eight rays. A lane at rest has `wanted` 0 and no step: it stays where it is, at t = 0.
struct alignas(32) Packet {
  double base[3][kWidth], inv[3][kWidth], step[3][kWidth];
  double boundary[3][kWidth];  // the next one on each axis
  int64_t bit_step[3][kWidth];
  int64_t bit[kWidth];         // of the current voxel
  uint64_t wanted[kWidth];     // what ends the walk: RowBits::kFirst, kSecond, or both
  double max_t[kWidth];
};

inline void rest(Packet& packet, int lane) {
  for (int a = 0; a < 3; ++a) {
    packet.base[a][lane] = packet.inv[a][lane] = packet.step[a][lane] = 0;
    packet.boundary[a][lane] = 0;
    packet.bit_step[a][lane] = 0;
  }
  packet.bit[lane] = 0;
  packet.wanted[lane] = 0;
  packet.max_t[lane] = 0;
}

inline void set(Packet& packet, int lane, const RowBits& rows, const Ray& ray, uint64_t wanted) {
  for (int a = 0; a < 3; ++a) {
    packet.base[a][lane] = ray.base[a];
    packet.inv[a][lane] = ray.inv[a];
    packet.step[a][lane] = ray.step[a];
    packet.boundary[a][lane] = ray.v[a] + (ray.step[a] > 0);
    packet.bit_step[a][lane] = ray.step[a] * rows.stride(a);
  }
  packet.bit[lane] = rows.position(ray.v[0], ray.v[1], ray.v[2]);
  packet.wanted[lane] = wanted;
  packet.max_t[lane] = ray.max_t;
}

// What the steps of four lanes need of a packet.
struct Set {
  __m256d boundary[3], base[3], inv[3], step[3], max_t;
  __m256i bit_step[3], bit, wanted;
};

OPUS_AVX2_INLINE __m256i load(const void* p) {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}

OPUS_AVX2_INLINE void load(const Packet& packet, int first, Set& set) {
  for (int a = 0; a < 3; ++a) {
    set.boundary[a] = _mm256_load_pd(packet.boundary[a] + first);
    set.base[a] = _mm256_load_pd(packet.base[a] + first);
    set.inv[a] = _mm256_load_pd(packet.inv[a] + first);
    set.step[a] = _mm256_load_pd(packet.step[a] + first);
    set.bit_step[a] = load(packet.bit_step[a] + first);
  }
  set.bit = load(packet.bit + first);
  set.wanted = load(packet.wanted + first);
  set.max_t = _mm256_load_pd(packet.max_t + first);
}

// One step of four lanes. Returns, as bits, those that stay where they are: they meet in their voxel
// what they want, or the next one is beyond their max_t.
OPUS_AVX2_INLINE int advance(Set& set, const uint64_t* words) {
  const __m256i word = _mm256_i64gather_epi64(reinterpret_cast<const long long*>(words),
                                              _mm256_srli_epi64(set.bit, 5), 8);
  const __m256i shift = _mm256_and_si256(set.bit, _mm256_set1_epi64x(31));
  const __m256i met = _mm256_and_si256(_mm256_srlv_epi64(word, shift), set.wanted);
  __m256d t[3];
  for (int a = 0; a < 3; ++a) {
    t[a] = _mm256_mul_pd(_mm256_sub_pd(set.boundary[a], set.base[a]), set.inv[a]);
  }
  const __m256d y_first = _mm256_cmp_pd(t[1], t[0], _CMP_LT_OQ);
  const __m256d least = _mm256_blendv_pd(t[0], t[1], y_first);
  const __m256d z_first = _mm256_cmp_pd(t[2], least, _CMP_LT_OQ);
  const __m256d t_event = _mm256_blendv_pd(least, t[2], z_first);
  const __m256i none = _mm256_cmpeq_epi64(met, _mm256_setzero_si256());
  const __m256d goes_on = _mm256_and_pd(_mm256_cmp_pd(t_event, set.max_t, _CMP_LE_OQ),
                                        _mm256_castsi256_pd(none));
  const __m256d moves[3] = {_mm256_andnot_pd(_mm256_or_pd(y_first, z_first), goes_on),
                            _mm256_and_pd(_mm256_andnot_pd(z_first, y_first), goes_on),
                            _mm256_and_pd(z_first, goes_on)};
  for (int a = 0; a < 3; ++a) {
    set.boundary[a] = _mm256_add_pd(set.boundary[a], _mm256_and_pd(moves[a], set.step[a]));
    const __m256i moved = _mm256_and_si256(_mm256_castpd_si256(moves[a]), set.bit_step[a]);
    set.bit = _mm256_add_epi64(set.bit, moved);
  }
  return ~_mm256_movemask_pd(goes_on) & 15;
}

// Steps all lanes until two of them, or all that are walking, have ended. Returns those as bits.
OPUS_AVX2_INLINE int advance(Packet& packet, int walking, const uint64_t* words) {
  Set set[kSets];
  for (int i = 0; i < kSets; ++i) load(packet, i * kLanes, set[i]);
  int ended = 0;
  while ((ended & (ended - 1)) == 0 && ended != walking) {
    ended = 0;
    for (int i = 0; i < kSets; ++i) ended |= advance(set[i], words) << (i * kLanes);
  }
  for (int i = 0; i < kSets; ++i) {
    for (int a = 0; a < 3; ++a) {
      _mm256_store_pd(packet.boundary[a] + i * kLanes, set[i].boundary[a]);
    }
    _mm256_store_si256(reinterpret_cast<__m256i*>(packet.bit + i * kLanes), set[i].bit);
  }
  return ended;
}

// Walks rays begin ... end - 1. `start(i, slot, ray)` sets up ray i in its slot, 0 ... kWidth - 1,
// and says what it looks for (0: nothing, the ray is done). `meet(i, slot, ray, met)` is told that
// the ray stands in a voxel that the grids `met` occupy, or with `met` 0 in its last one; it returns
// what the ray still looks for.
template <typename Start, typename Meet>
OPUS_AVX2 void walk(const RowBits& rows, int64_t begin, int64_t end, const Start& start,
                    const Meet& meet) {
  Packet packet;
  Ray ray[kWidth];
  int64_t item[kWidth];
  int walking = 0;
  const auto fill_lane = [&](int lane) {
    for (; begin < end; ++begin) {
      const uint64_t wanted = start(begin, lane, ray[lane]);
      if (wanted == 0) continue;
      set(packet, lane, rows, ray[lane], wanted);
      item[lane] = begin++;
      walking |= 1 << lane;
      return;
    }
    rest(packet, lane);
    walking &= ~(1 << lane);
  };
  for (int lane = 0; lane < kWidth; ++lane) fill_lane(lane);
  while (walking != 0) {
    for (int ended = advance(packet, walking, rows.words()); ended != 0; ended &= ended - 1) {
      const int lane = __builtin_ctz(ended);
      Ray& own = ray[lane];
      for (int a = 0; a < 3; ++a) {
        own.v[a] = static_cast<int>(packet.boundary[a][lane]) - (own.step[a] > 0);
      }
      const int64_t bit = packet.bit[lane];
      uint64_t met = rows.words()[bit >> 5] >> (bit & 31) & packet.wanted[lane];
      for (int a = 0; a < 3; ++a) {
        if (!rows.is_outside(a, own.v[a])) continue;
        own.v[a] -= own.step[a];  // back from the shell
        met = 0;
      }
      packet.wanted[lane] = meet(item[lane], lane, own, met);
      if (packet.wanted[lane] == 0) fill_lane(lane);
    }
  }
}

#undef OPUS_AVX2
#undef OPUS_AVX2_INLINE

}  // namespace packet
}  // namespace ray_cast
}  // namespace opus

#endif  // OPUS_HAS_AVX2_KERNELS
