// row_gemm.h for AVX2 and for AVX-512, which of them is chosen at run time.
#pragma once

#include "common/avx2.h"

#if defined(OPUS_HAS_AVX2_KERNELS)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#define OPUS_AVX2_INLINE inline __attribute__((always_inline, target("avx2,fma")))
#define OPUS_AVX512_INLINE inline __attribute__((always_inline, target("avx512f")))

namespace opus {
namespace avx2 {

// Rows by two vectors of columns: twelve sums, two columns and a value for all lanes fill 15 of the
// 16 registers.
constexpr int kRows = 6;

template <typename T>
struct Lanes;

template <>
struct Lanes<float> {
  using Vector = __m256;
  static constexpr int kWidth = 8;
  OPUS_AVX2_INLINE static Vector zero() { return _mm256_setzero_ps(); }
  OPUS_AVX2_INLINE static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  OPUS_AVX2_INLINE static Vector broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  OPUS_AVX2_INLINE static void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
  OPUS_AVX2_INLINE static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  OPUS_AVX2_INLINE static Vector fma(Vector a, Vector b, Vector c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  OPUS_AVX2_INLINE static float sum(Vector v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
};

template <>
struct Lanes<double> {
  using Vector = __m256d;
  static constexpr int kWidth = 4;
  OPUS_AVX2_INLINE static Vector zero() { return _mm256_setzero_pd(); }
  OPUS_AVX2_INLINE static Vector load(const double* p) { return _mm256_loadu_pd(p); }
  OPUS_AVX2_INLINE static Vector broadcast(const double* p) { return _mm256_broadcast_sd(p); }
  OPUS_AVX2_INLINE static void store(double* p, Vector v) { _mm256_storeu_pd(p, v); }
  OPUS_AVX2_INLINE static Vector add(Vector a, Vector b) { return _mm256_add_pd(a, b); }
  OPUS_AVX2_INLINE static Vector fma(Vector a, Vector b, Vector c) {
    return _mm256_fmadd_pd(a, b, c);
  }
  OPUS_AVX2_INLINE static double sum(Vector v) {
    const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
  }
};

}  // namespace avx2

namespace avx512 {

// Of the lanes. (gcc 12 warns of its own header's reduction.)
template <typename T, typename Vector>
OPUS_AVX512_INLINE T sum_of(Vector v) {
  alignas(64) T lanes[sizeof(Vector) / sizeof(T)];
  std::memcpy(lanes, &v, sizeof(Vector));
  T total = 0;
  for (const T lane : lanes) total += lane;
  return total;
}

// No more rows than there are registers for their addresses: twelve, whose 24 sums would fill the
// registers, are not faster.
constexpr int kRows = 8;

template <typename T>
struct Lanes;

template <>
struct Lanes<float> {
  using Vector = __m512;
  static constexpr int kWidth = 16;
  OPUS_AVX512_INLINE static Vector zero() { return _mm512_setzero_ps(); }
  OPUS_AVX512_INLINE static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  OPUS_AVX512_INLINE static Vector broadcast(const float* p) { return _mm512_set1_ps(*p); }
  OPUS_AVX512_INLINE static void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
  OPUS_AVX512_INLINE static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  OPUS_AVX512_INLINE static Vector fma(Vector a, Vector b, Vector c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  OPUS_AVX512_INLINE static float sum(Vector v) { return sum_of<float>(v); }
};

template <>
struct Lanes<double> {
  using Vector = __m512d;
  static constexpr int kWidth = 8;
  OPUS_AVX512_INLINE static Vector zero() { return _mm512_setzero_pd(); }
  OPUS_AVX512_INLINE static Vector load(const double* p) { return _mm512_loadu_pd(p); }
  OPUS_AVX512_INLINE static Vector broadcast(const double* p) { return _mm512_set1_pd(*p); }
  OPUS_AVX512_INLINE static void store(double* p, Vector v) { _mm512_storeu_pd(p, v); }
  OPUS_AVX512_INLINE static Vector add(Vector a, Vector b) { return _mm512_add_pd(a, b); }
  OPUS_AVX512_INLINE static Vector fma(Vector a, Vector b, Vector c) {
    return _mm512_fmadd_pd(a, b, c);
  }
  OPUS_AVX512_INLINE static double sum(Vector v) { return sum_of<double>(v); }
};

}  // namespace avx512
}  // namespace opus

#define OPUS_ROWS_TARGET avx2
#define OPUS_ROWS_INSTRUCTIONS "avx2,fma"
#include "sparse_conv/row_gemm.h"
#undef OPUS_ROWS_TARGET
#undef OPUS_ROWS_INSTRUCTIONS

#define OPUS_ROWS_TARGET avx512
#define OPUS_ROWS_INSTRUCTIONS "avx512f"
#include "sparse_conv/row_gemm.h"
#undef OPUS_ROWS_TARGET
#undef OPUS_ROWS_INSTRUCTIONS

#endif  // x86-64 with GCC or Clang
