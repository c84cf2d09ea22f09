// The loops of planes.h with AVX2: equal sums, so equal bytes.
#pragma once

#include "common/avx2.h"

#if defined(OPUS_HAS_AVX2_KERNELS)

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "jpeg_crop/planes.h"

namespace opus {
namespace jpeg_crop {
namespace avx2 {

#define OPUS_AVX2 __attribute__((target("avx2")))

constexpr int kRows = 4;

OPUS_AVX2 inline __m128i load_half(const uint8_t* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

// Four rows of one plane; `to` may be written up to a multiple of eight pixels.
OPUS_AVX2 inline void resize_plane_rows(const ColumnTable& table, int shift_by, int64_t skipped,
                                        const uint8_t* const* from, uint8_t* const* to) {
  const __m256i half = _mm256_set1_epi32(1 << shift_by >> 1);
  const __m128i shift = _mm_cvtsi32_si128(shift_by);
  const int64_t groups = static_cast<int64_t>(table.begin.size()) / 2;
  const uint8_t* picks = table.picks.data();
  const int16_t* weights = table.weights.data();
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t low = table.begin[2 * group] - skipped;
    const int64_t high = table.begin[2 * group + 1] - skipped;
    __m256i pixels[kRows], sums[kRows];
    for (int r = 0; r < kRows; ++r) {
      pixels[r] = _mm256_set_m128i(load_half(from[r] + high), load_half(from[r] + low));
      sums[r] = half;
    }
    for (int pair = 0; pair < table.pairs; ++pair, picks += 2 * kSpan, weights += kSpan) {
      const __m256i pick = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(picks));
      const __m256i weight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
      for (int r = 0; r < kRows; ++r) {
        const __m256i taken = _mm256_shuffle_epi8(pixels[r], pick);
        sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(taken, weight));
      }
    }
    for (int r = 0; r < kRows; ++r) sums[r] = _mm256_sra_epi32(sums[r], shift);
    const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]),
                                              _mm256_packs_epi32(sums[2], sums[3]));
    const __m128i a = _mm256_castsi256_si128(bytes), b = _mm256_extracti128_si256(bytes, 1);
    const __m128i first = _mm_unpacklo_epi32(a, b), second = _mm_unpackhi_epi32(a, b);
    const int64_t at = group * kOutputs;
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to[0] + at), first);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to[1] + at), _mm_unpackhi_epi64(first, first));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to[2] + at), second);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to[3] + at), _mm_unpackhi_epi64(second, second));
  }
}

// Byte b of part p of 48 is channel (16 p + b) % 3 of pixel (16 p + b) / 3.
struct Interleave {
  alignas(16) int8_t order[3][3][16];

  constexpr Interleave() : order() {
    for (int at = 0; at < 48; ++at) {
      for (int channel = 0; channel < 3; ++channel) {
        order[at / 16][channel][at % 16] = static_cast<int8_t>(at % 3 == channel ? at / 3 : -1);
      }
    }
  }
};
inline constexpr Interleave kInterleave;

OPUS_AVX2 inline __m256i words_of(const uint8_t* from) {
  return _mm256_cvtepu8_epi16(load_half(from));
}

OPUS_AVX2 inline __m256i chroma_of(const uint8_t* from) {
  return _mm256_slli_epi16(_mm256_sub_epi16(words_of(from), _mm256_set1_epi16(128)), kChromaDigits);
}

OPUS_AVX2 inline __m128i colour_bytes(__m256i values) {
  const __m256i half = _mm256_set1_epi16(1 << (kColourShift - 1));
  values = _mm256_srai_epi16(_mm256_add_epi16(values, half), kColourShift);
  return _mm_packus_epi16(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
}

OPUS_AVX2 inline __m256i times(__m256i chroma, int16_t factor) {
  return _mm256_mulhrs_epi16(chroma, _mm256_set1_epi16(factor));
}

OPUS_AVX2 inline __m128i interleaved(__m128i bytes, int part, int channel) {
  const int8_t* order = kInterleave.order[part][channel];
  return _mm_shuffle_epi8(bytes, _mm_load_si128(reinterpret_cast<const __m128i*>(order)));
}

// Converts whole groups of sixteen pixels; returns the first remaining pixel.
OPUS_AVX2 inline int64_t convert_row(const uint8_t* luma, const uint8_t* blue, const uint8_t* red,
                                     int64_t number, uint8_t* to) {
  int64_t i = 0;
  for (; i + 16 <= number; i += 16) {
    const __m256i y = _mm256_slli_epi16(words_of(luma + i), kColourShift);
    const __m256i u = chroma_of(blue + i), v = chroma_of(red + i);
    const __m128i b = colour_bytes(_mm256_add_epi16(y, times(u, kBlueOfBlue)));
    const __m128i g = colour_bytes(_mm256_sub_epi16(_mm256_sub_epi16(y, times(u, kGreenOfBlue)),
                                                    times(v, kGreenOfRed)));
    const __m128i r = colour_bytes(_mm256_add_epi16(y, times(v, kRedOfRed)));
    for (int part = 0; part < 3; ++part) {
      const __m128i bytes =
          _mm_or_si128(_mm_or_si128(interleaved(b, part, 0), interleaved(g, part, 1)),
                       interleaved(r, part, 2));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 3 * i + 16 * part), bytes);
    }
  }
  return i;
}

#undef OPUS_AVX2

}  // namespace avx2
}  // namespace jpeg_crop
}  // namespace opus

#endif
