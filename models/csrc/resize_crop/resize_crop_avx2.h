// The loops of resize_crop.h with AVX2: equal sums, so equal bytes.
#pragma once

#include "common/avx2.h"

#if defined(OPUS_HAS_AVX2_KERNELS)

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "resize_crop/resize_crop.h"

namespace opus {
namespace resize_crop {
namespace avx2 {

#define OPUS_AVX2 __attribute__((target("avx2")))

// (sum + carry) >> shift, where the carry comes from the second part of exact sums.
OPUS_AVX2 inline __m128i carried(__m128i sum, __m128i low) {
  low = _mm_add_epi32(low, _mm_set1_epi32(1 << (kDigits - 1)));
  return _mm_add_epi32(sum, _mm_srai_epi32(low, kLowDigits));
}
OPUS_AVX2 inline __m256i carried(__m256i sum, __m256i low) {
  low = _mm256_add_epi32(low, _mm256_set1_epi32(1 << (kDigits - 1)));
  return _mm256_add_epi32(sum, _mm256_srai_epi32(low, kLowDigits));
}

OPUS_AVX2 inline __m128i halves_sum(__m256i sums) {
  return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}

// kRows rows at once share the weights. Each group of four taps is one load of 16 bytes, whose
// pixels 0 and 1 go to the lower half, 2 and 3 to the upper, as pairs of one channel.
template <int kRows, bool kExact>
OPUS_AVX2 void resize_rows(const Axis& axis, int64_t skipped, const uint8_t* const* from,
                           int64_t outputs, uint8_t* const* to) {
  const __m256i pairs = _mm256_setr_epi8(
      0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
      6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const __m256i spread = _mm256_setr_epi8(
      0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3,  //
      4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
  const __m128i half = _mm_set1_epi32(1 << axis.shift >> 1);
  const __m128i shift = _mm_cvtsi32_si128(axis.shift);
  for (int64_t i = 0; i < outputs; ++i) {
    __m256i sums[kRows], lows[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = lows[r] = _mm256_setzero_si256();
    if (axis.first[i] >= 0) {
      const int64_t at = (axis.first[i] - skipped) * kChannels;
      for (int t = 0; t < axis.taps; t += kGroup) {
        int64_t four;
        std::memcpy(&four, axis.of(i) + t, sizeof(four));
        const __m256i weight = _mm256_shuffle_epi8(_mm256_set1_epi64x(four), spread);
        __m256i low_weight = weight;
        if constexpr (kExact) {
          std::memcpy(&four, axis.low_of(i) + t, sizeof(four));
          low_weight = _mm256_shuffle_epi8(_mm256_set1_epi64x(four), spread);
        }
        for (int r = 0; r < kRows; ++r) {
          const __m128i bytes =
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[r] + at + t * kChannels));
          const __m256i pixels = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), pairs);
          sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(pixels, weight));
          if constexpr (kExact) {
            lows[r] = _mm256_add_epi32(lows[r], _mm256_madd_epi16(pixels, low_weight));
          }
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      __m128i sum = halves_sum(sums[r]);
      sum = kExact ? carried(sum, halves_sum(lows[r])) : _mm_add_epi32(sum, half);
      sum = _mm_sra_epi32(sum, shift);
      sum = _mm_packs_epi32(sum, sum);
      const int32_t pixel = _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
      // The fourth byte is the next pixel's, which is written next, or slack.
      std::memcpy(to[r] + i * kChannels, &pixel, sizeof(pixel));
    }
  }
}

// Processes 32 bytes of a row at a time; `to` may be written up to a multiple of 32 bytes.
template <bool kExact>
OPUS_AVX2 void mix_rows(const Axis& axis, int64_t output, const uint8_t* from, int64_t stride,
                        int64_t bytes, uint8_t* to) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i half = kExact ? zero : _mm256_set1_epi32(1 << axis.shift >> 1);
  const __m128i shift = _mm_cvtsi32_si128(axis.shift);
  const int16_t* weights = axis.of(output);
  const int16_t* low_weights = kExact ? axis.low_of(output) : weights;
  for (int64_t x = 0; x < bytes; x += 32) {
    __m256i sums[4] = {half, half, half, half}, lows[4] = {zero, zero, zero, zero};
    for (int t = 0; t < axis.taps; t += 2) {
      const __m256i a =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + t * stride + x));
      const __m256i b =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + (t + 1) * stride + x));
      int32_t two, low_two;
      std::memcpy(&two, weights + t, sizeof(two));
      std::memcpy(&low_two, low_weights + t, sizeof(low_two));
      const __m256i weight = _mm256_set1_epi32(two), low_weight = _mm256_set1_epi32(low_two);
      const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
      const __m256i pairs[4] = {
          _mm256_unpacklo_epi8(low, zero), _mm256_unpackhi_epi8(low, zero),
          _mm256_unpacklo_epi8(high, zero), _mm256_unpackhi_epi8(high, zero)};
      for (int k = 0; k < 4; ++k) {
        sums[k] = _mm256_add_epi32(sums[k], _mm256_madd_epi16(pairs[k], weight));
        if constexpr (kExact) {
          lows[k] = _mm256_add_epi32(lows[k], _mm256_madd_epi16(pairs[k], low_weight));
        }
      }
    }
    for (int k = 0; k < 4; ++k) {
      if constexpr (kExact) sums[k] = carried(sums[k], lows[k]);
      sums[k] = _mm256_sra_epi32(sums[k], shift);
    }
    const __m256i packed = _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]),
                                               _mm256_packs_epi32(sums[2], sums[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + x), packed);
  }
}

#undef OPUS_AVX2

}  // namespace avx2
}  // namespace resize_crop
}  // namespace opus

#endif
