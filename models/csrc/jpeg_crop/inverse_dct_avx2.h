// Transforms of inverse_dct.h with AVX2: equal sums, so equal bytes.
#pragma once

#include "common/avx2.h"

#if defined(OPUS_HAS_AVX2_KERNELS)

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "jpeg_crop/inverse_dct.h"

namespace opus {
namespace jpeg_crop {
namespace avx2 {

#define OPUS_AVX2 __attribute__((target("avx2")))

// Weights in pairs of two frequencies, in the format of the multiplications.
struct PairedWeights {
  // Of output y, frequencies 0 and 2, 4 and 6, 1 and 3, 5 and 7: one pair for all columns.
  int32_t along_y[4][4];
  // Of frequencies 2k and 2k + 1, all eight outputs. Transforms to four points have them twice.
  alignas(32) int32_t along_x[4][8];

  explicit PairedWeights(int points) {
    const Weights& weights = weights_of(points);
    const auto pair = [](int16_t low, int16_t high) {
      return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(high)) << 16 |
                                  static_cast<uint16_t>(low));
    };
    constexpr int kFirst[] = {0, 4, 1, 5};
    for (int y = 0; y < 4; ++y) {
      for (int k = 0; k < 4; ++k) {
        along_y[y][k] = pair(weights[y][kFirst[k]], weights[y][kFirst[k] + 2]);
      }
    }
    for (int k = 0; k < 4; ++k) {
      for (int x = 0; x < 8; ++x) {
        const auto& row = weights[x % points];
        along_x[k][x] = pair(row[2 * k], row[2 * k + 1]);
      }
    }
  }
};

inline const PairedWeights& paired_weights(int points) {
  static const PairedWeights four(4), eight(8);
  return points == 4 ? four : eight;
}

OPUS_AVX2 inline __m256i product(__m256i pairs, int32_t weights) {
  return _mm256_madd_epi16(pairs, _mm256_set1_epi32(weights));
}

// Pairs of two rows: columns 0 to 3 in the lower half, 4 to 7 in the upper.
OPUS_AVX2 inline __m256i paired_rows(const int16_t* block, int first, int second) {
  const __m128i a = _mm_load_si128(reinterpret_cast<const __m128i*>(block + first * kStride));
  const __m128i b = _mm_load_si128(reinterpret_cast<const __m128i*>(block + second * kStride));
  return _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b));
}

OPUS_AVX2 inline __m256i inner(__m256i sum) {
  const __m256i half = _mm256_set1_epi32(1 << (kFirstShift - 1));
  return _mm256_srai_epi32(_mm256_add_epi32(sum, half), kFirstShift);
}

OPUS_AVX2 inline __m256i last(__m256i sum) {
  return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(kLastBias)), kLastShift);
}

// Transforms two adjacent blocks to 4 x 4 pixels each: the rows of `blocks` hold four coefficients
// of the first and four of the second.
OPUS_AVX2 inline void inverse_dct_4x4_twice(const int16_t* blocks, uint8_t* to, int64_t stride) {
  const PairedWeights& weights = paired_weights(4);
  const __m256i even = paired_rows(blocks, 0, 2), odd = paired_rows(blocks, 1, 3);
  const __m256i even0 = product(even, weights.along_y[0][0]);
  const __m256i even1 = product(even, weights.along_y[1][0]);
  const __m256i odd0 = product(odd, weights.along_y[0][2]);
  const __m256i odd1 = product(odd, weights.along_y[1][2]);
  // Rows 0 and 1, then 2 and 3; each half holds a block.
  const __m256i rows[2] = {
      _mm256_packs_epi32(inner(_mm256_add_epi32(even0, odd0)),
                         inner(_mm256_add_epi32(even1, odd1))),
      _mm256_packs_epi32(inner(_mm256_sub_epi32(even1, odd1)),
                         inner(_mm256_sub_epi32(even0, odd0)))};
  const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights.along_x[0]));
  const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights.along_x[1]));
  __m256i sums[4];
  for (int k = 0; k < 2; ++k) {
    sums[2 * k] = _mm256_add_epi32(
        _mm256_madd_epi16(_mm256_shuffle_epi32(rows[k], 0x00), low),
        _mm256_madd_epi16(_mm256_shuffle_epi32(rows[k], 0x55), high));
    sums[2 * k + 1] = _mm256_add_epi32(
        _mm256_madd_epi16(_mm256_shuffle_epi32(rows[k], 0xAA), low),
        _mm256_madd_epi16(_mm256_shuffle_epi32(rows[k], 0xFF), high));
  }
  const __m256i bytes =
      _mm256_packus_epi16(_mm256_packs_epi32(last(sums[0]), last(sums[1])),
                          _mm256_packs_epi32(last(sums[2]), last(sums[3])));
  const __m128i a = _mm256_castsi256_si128(bytes), b = _mm256_extracti128_si256(bytes, 1);
  const __m128i upper = _mm_unpacklo_epi32(a, b), lower = _mm_unpackhi_epi32(a, b);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), upper);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to + stride), _mm_unpackhi_epi64(upper, upper));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to + 2 * stride), lower);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to + 3 * stride), _mm_unpackhi_epi64(lower, lower));
}

// Pair number `at` of two columns, in all lanes.
OPUS_AVX2 inline __m256i columns(__m256i rows, int at) {
  return _mm256_permutevar8x32_epi32(rows, _mm256_set1_epi32(at));
}

// Transforms a block to 8 x 8 pixels; with kFew, only its 4 x 4 lowest frequencies are not zero.
template <bool kFew>
OPUS_AVX2 inline void inverse_dct_8x8(const int16_t* block, uint8_t* to, int64_t stride) {
  const PairedWeights& weights = paired_weights(8);
  __m256i pairs[4];
  pairs[0] = paired_rows(block, 0, 2);
  pairs[2] = paired_rows(block, 1, 3);
  if constexpr (!kFew) {
    pairs[1] = paired_rows(block, 4, 6);
    pairs[3] = paired_rows(block, 5, 7);
  }
  __m256i upper[4], lower[4];  // rows y and 7 - y
  for (int y = 0; y < 4; ++y) {
    __m256i even = product(pairs[0], weights.along_y[y][0]);
    __m256i odd = product(pairs[2], weights.along_y[y][2]);
    if constexpr (!kFew) {
      even = _mm256_add_epi32(even, product(pairs[1], weights.along_y[y][1]));
      odd = _mm256_add_epi32(odd, product(pairs[3], weights.along_y[y][3]));
    }
    upper[y] = inner(_mm256_add_epi32(even, odd));
    lower[y] = inner(_mm256_sub_epi32(even, odd));
  }
  // Two rows each; of both, columns 0 to 3 in the lower half, 4 to 7 in the upper.
  const __m256i rows[4] = {
      _mm256_packs_epi32(upper[0], upper[1]), _mm256_packs_epi32(upper[2], upper[3]),
      _mm256_packs_epi32(lower[3], lower[2]), _mm256_packs_epi32(lower[1], lower[0])};
  __m256i factors[4];
  for (int k = 0; k < 4; ++k) {
    factors[k] = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights.along_x[k]));
  }
  for (int k = 0; k < 4; ++k) {
    __m256i sums[2];
    for (int r = 0; r < 2; ++r) {
      sums[r] = _mm256_add_epi32(_mm256_madd_epi16(columns(rows[k], 2 * r), factors[0]),
                                 _mm256_madd_epi16(columns(rows[k], 2 * r + 1), factors[1]));
      if constexpr (!kFew) {
        const __m256i a = _mm256_madd_epi16(columns(rows[k], 2 * r + 4), factors[2]);
        const __m256i b = _mm256_madd_epi16(columns(rows[k], 2 * r + 5), factors[3]);
        sums[r] = _mm256_add_epi32(sums[r], _mm256_add_epi32(a, b));
      }
    }
    __m256i words = _mm256_packs_epi32(last(sums[0]), last(sums[1]));
    words = _mm256_permute4x64_epi64(words, 0xD8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words),
                                           _mm256_extracti128_si256(words, 1));
    uint8_t* at = to + 2 * k * stride;
    _mm_storel_epi64(reinterpret_cast<__m128i*>(at), bytes);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(at + stride), _mm_unpackhi_epi64(bytes, bytes));
  }
}

#undef OPUS_AVX2

}  // namespace avx2
}  // namespace jpeg_crop
}  // namespace opus

#endif
