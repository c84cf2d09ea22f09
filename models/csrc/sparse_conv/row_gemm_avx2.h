// Products of scattered matrix rows with AVX2 and FMA, chosen at run time.
//
// A sparse convolution multiplies rows that lie anywhere by a small dense matrix and adds the
// results to rows that lie anywhere. Copying them together for a library GEMM and apart again costs
// about as much as the products, so these kernels take row addresses.
#pragma once

#include "common/avx2.h"

#if defined(OPUS_HAS_AVX2_KERNELS)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#define OPUS_AVX2 __attribute__((target("avx2,fma")))
#define OPUS_AVX2_INLINE inline __attribute__((always_inline, target("avx2,fma")))

namespace opus {
namespace avx2 {

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

// Six rows by two vectors of columns: twelve accumulators, two columns and a broadcast value fill
// 15 of the 16 registers.
constexpr int kRows = 6;
constexpr int kVectors = 2;

// c[r][0 .. NV vectors) += sum over d of a[r][d] * b[d][0 .. NV vectors), for R rows.
template <typename T, int R, int NV>
OPUS_AVX2_INLINE void multiply_block(const T* const* a, int64_t depth, const T* b, T* const* c) {
  using L = Lanes<T>;
  typename L::Vector sum[R][NV];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < NV; ++j) sum[r][j] = L::zero();
  }
  for (int64_t d = 0; d < depth; ++d, b += NV * L::kWidth) {
    typename L::Vector column[NV];
    for (int j = 0; j < NV; ++j) column[j] = L::load(b + j * L::kWidth);
    for (int r = 0; r < R; ++r) {
      const typename L::Vector value = L::broadcast(a[r] + d);
      for (int j = 0; j < NV; ++j) sum[r][j] = L::fma(value, column[j], sum[r][j]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < NV; ++j) {
      T* out = c[r] + j * L::kWidth;
      L::store(out, L::add(L::load(out), sum[r][j]));
    }
  }
}

// One column, for which whole vectors of columns would be a waste: the lanes of c[r], one vector,
// together += dot product of a[r] and b, for R rows.
template <typename T, int R>
OPUS_AVX2_INLINE void dot_block(const T* const* a, int64_t depth, const T* b, T* const* c) {
  using L = Lanes<T>;
  typename L::Vector sum[R];
  for (int r = 0; r < R; ++r) sum[r] = L::load(c[r]);
  int64_t d = 0;
  for (; d + L::kWidth <= depth; d += L::kWidth) {
    const typename L::Vector factor = L::load(b + d);
    for (int r = 0; r < R; ++r) sum[r] = L::fma(L::load(a[r] + d), factor, sum[r]);
  }
  for (int r = 0; r < R; ++r) {
    L::store(c[r], sum[r]);
    for (int64_t rest = d; rest < depth; ++rest) c[r][0] += a[r][rest] * b[rest];
  }
}

// The rows of a result that a task computes, `count` from `first` on: NV vectors of columns, and
// `dots` single ones, [dots, count, one vector] whose lanes are to be summed. `factors` of the dots
// lie `factor_stride` apart.
template <typename T>
struct RowSums {
  T* vectors;
  T* lanes;
  int64_t first, count;
  int dots;
  const T* factors;
  int64_t factor_stride;
};

template <typename T, int R, int NV>
OPUS_AVX2_INLINE void add_block(const T* const* a, const int32_t* to, int64_t depth, const T* b,
                                const RowSums<T>& sums) {
  constexpr int kWidth = Lanes<T>::kWidth;
  T* target[R];
  for (int r = 0; r < R; ++r) target[r] = sums.vectors + (to[r] - sums.first) * NV * kWidth;
  multiply_block<T, R, NV>(a, depth, b, target);
  for (int i = 0; i < sums.dots; ++i) {
    T* lanes = sums.lanes + i * sums.count * kWidth;
    for (int r = 0; r < R; ++r) target[r] = lanes + (to[r] - sums.first) * kWidth;
    dot_block<T, R>(a, depth, sums.factors + i * sums.factor_stride, target);
  }
}

template <typename T>
inline void prefetch_row(const T* row, int64_t length) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < length; i += kLine) __builtin_prefetch(row + i);
}

// Adds a[from[p]] * b to the rows to[p] of the sums, for `count` pairs with distinct `to`; b is
// [depth, NV vectors].
template <typename T, int NV>
OPUS_AVX2 void add_products(const int32_t* from, const int32_t* to, int64_t count, const T* a,
                            int64_t depth, const T* b, bool prefetches, const RowSums<T>& sums) {
  if (count == 0) return;
  // Blocks of like size: the last one, if it took what is left, would have too few sums under way
  // to hide the latency of each.
  const int64_t blocks = (count + kRows - 1) / kRows, least = count / blocks;
  const int64_t larger = count - blocks * least;
  for (int64_t block = 0; block < blocks; ++block) {
    const int rows = static_cast<int>(least + (block < larger));
    const T* source[kRows];
    for (int r = 0; r < rows; ++r) source[r] = a + from[r] * depth;
    if (prefetches) {
      const int64_t end = std::min<int64_t>(count, rows + kRows);
      for (int64_t p = rows; p < end; ++p) prefetch_row(a + from[p] * depth, depth);
    }
    switch (rows) {
      case 6: add_block<T, 6, NV>(source, to, depth, b, sums); break;
      case 5: add_block<T, 5, NV>(source, to, depth, b, sums); break;
      case 4: add_block<T, 4, NV>(source, to, depth, b, sums); break;
      case 3: add_block<T, 3, NV>(source, to, depth, b, sums); break;
      case 2: add_block<T, 2, NV>(source, to, depth, b, sums); break;
      default: add_block<T, 1, NV>(source, to, depth, b, sums); break;
    }
    from += rows;
    to += rows;
    count -= rows;
  }
}

template <typename T>
OPUS_AVX2 T sum_of_lanes(const T* lanes) {
  return Lanes<T>::sum(Lanes<T>::load(lanes));
}

// w[r][0 .. NV vectors) += sum over p of a[p][r] * b[p][0 .. NV vectors), for R rows of w.
template <typename T, int R, int NV>
OPUS_AVX2_INLINE void outer_block(const T* const* a, const T* const* b, int count, int64_t row,
                                  int64_t column, T* w, int64_t ldw) {
  using L = Lanes<T>;
  typename L::Vector sum[R][NV];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < NV; ++j) sum[r][j] = L::load(w + r * ldw + j * L::kWidth);
  }
  for (int p = 0; p < count; ++p) {
    typename L::Vector values[NV];
    for (int j = 0; j < NV; ++j) values[j] = L::load(b[p] + column + j * L::kWidth);
    for (int r = 0; r < R; ++r) {
      const typename L::Vector factor = L::broadcast(a[p] + row + r);
      for (int j = 0; j < NV; ++j) sum[r][j] = L::fma(factor, values[j], sum[r][j]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < NV; ++j) L::store(w + r * ldw + j * L::kWidth, sum[r][j]);
  }
}

template <typename T, int NV>
OPUS_AVX2_INLINE void outer_rows(int rows, const T* const* a, const T* const* b, int count,
                                 int64_t row, int64_t column, T* w, int64_t ldw) {
  switch (rows) {
    case 6: return outer_block<T, 6, NV>(a, b, count, row, column, w, ldw);
    case 5: return outer_block<T, 5, NV>(a, b, count, row, column, w, ldw);
    case 4: return outer_block<T, 4, NV>(a, b, count, row, column, w, ldw);
    case 3: return outer_block<T, 3, NV>(a, b, count, row, column, w, ldw);
    case 2: return outer_block<T, 2, NV>(a, b, count, row, column, w, ldw);
    case 1: return outer_block<T, 1, NV>(a, b, count, row, column, w, ldw);
    default: return;
  }
}

// w += sum over pairs of (row a_of[p] of a)^T * (row b_of[p] of b); w is [rows, columns], a has
// rows of `rows` and b of `columns` elements, columns a multiple of the vector width.
template <typename T>
OPUS_AVX2 void outer_scattered(const int32_t* a_of, const int32_t* b_of, int64_t count, const T* a,
                               int64_t rows, const T* b, int64_t columns, T* w) {
  constexpr int kWidth = Lanes<T>::kWidth;
  constexpr int kChunk = 32;  // pairs whose rows stay in the first-level cache
  const T* left[kChunk];
  const T* right[kChunk];
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int pairs = static_cast<int>(std::min<int64_t>(kChunk, count - begin));
    for (int p = 0; p < pairs; ++p) {
      left[p] = a + a_of[begin + p] * rows;
      right[p] = b + b_of[begin + p] * columns;
    }
    // The rows of a chunk lie anywhere: fetch the next while this one is multiplied.
    for (int64_t p = begin + kChunk; p < std::min(begin + 2 * kChunk, count); ++p) {
      prefetch_row(a + a_of[p] * rows, rows);
      prefetch_row(b + b_of[p] * columns, columns);
    }
    for (int64_t column = 0; column < columns;) {
      const bool wide = column + kVectors * kWidth <= columns;
      for (int64_t row = 0; row < rows; row += kRows) {
        const int block = static_cast<int>(std::min<int64_t>(kRows, rows - row));
        T* out = w + row * columns + column;
        if (wide) {
          outer_rows<T, kVectors>(block, left, right, pairs, row, column, out, columns);
        } else {
          outer_rows<T, 1>(block, left, right, pairs, row, column, out, columns);
        }
      }
      column += wide ? kVectors * kWidth : kWidth;
    }
  }
}

}  // namespace avx2
}  // namespace opus
#endif  // x86-64 with GCC or Clang
