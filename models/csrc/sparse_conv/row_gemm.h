// Vectorised products of scattered matrix rows. No include guard: included once for every
// instruction set, after common/lanes.h.
//
// A sparse convolution multiplies scattered rows by a small dense matrix and adds the results to
// scattered rows. Gathering and scattering for a library GEMM would take about as long as the
// products, so these kernels use row addresses.

namespace opus {
namespace OPUS_TARGET {
namespace row_gemm {

// Number of rows per block of kVectors vectors of columns. With 16 vector registers, twelve sums,
// two columns and a broadcast value fill them. With 32 vector registers, the registers for row
// addresses limit the rows to eight; twelve rows are not faster.
constexpr int kRows = OPUS_PACK_BYTES == 64 ? 8 : 6;
constexpr int kVectors = 2;

template <typename T>
using L = Lanes<Pack<T>>;

// c[r][0 .. NV vectors) += sum over d of a[r][d] * b[d][0 .. NV vectors), for R rows.
template <typename T, int R, int NV>
OPUS_BODY void multiply_block(const T* const* a, int64_t depth, const T* b, T* const* c) {
  Pack<T> sum[R][NV];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < NV; ++j) sum[r][j] = L<T>::fill(T(0));
  }
  for (int64_t d = 0; d < depth; ++d, b += NV * L<T>::kWidth) {
    Pack<T> column[NV];
    for (int j = 0; j < NV; ++j) column[j] = L<T>::load(b + j * L<T>::kWidth);
    for (int r = 0; r < R; ++r) {
      const Pack<T> value = L<T>::fill(a[r][d]);
      for (int j = 0; j < NV; ++j) sum[r][j] = fmadd(value, column[j], sum[r][j]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < NV; ++j) {
      T* out = c[r] + j * L<T>::kWidth;
      L<T>::store(out, L<T>::load(out) + sum[r][j]);
    }
  }
}

// Dot products for a single column, where vectors of columns would be wasteful: the sum of the
// lanes of c[r], one vector, += dot product of a[r] and b, for R rows.
template <typename T, int R>
OPUS_BODY void dot_block(const T* const* a, int64_t depth, const T* b, T* const* c) {
  Pack<T> sum[R];
  for (int r = 0; r < R; ++r) sum[r] = L<T>::load(c[r]);
  int64_t d = 0;
  for (; d + L<T>::kWidth <= depth; d += L<T>::kWidth) {
    const Pack<T> factor = L<T>::load(b + d);
    for (int r = 0; r < R; ++r) sum[r] = fmadd(L<T>::load(a[r] + d), factor, sum[r]);
  }
  for (int r = 0; r < R; ++r) {
    L<T>::store(c[r], sum[r]);
    for (int64_t rest = d; rest < depth; ++rest) c[r][0] += a[r][rest] * b[rest];
  }
}

// Result rows of a task, from `first` on. A row has NV vectors of columns, followed by one vector
// for each of `dots` single columns, whose lanes are summed at the end. They are adjacent, because
// a load waits for an earlier store to an address with the same last 12 bits. `factor_stride` is
// the stride of the dots' `factors`.
template <typename T>
struct RowSums {
  T* data;
  int64_t first;
  int dots;
  const T* factors;
  int64_t factor_stride;
};

template <typename T, int R, int NV>
OPUS_BODY void add_block(const T* const* a, const int32_t* to, int64_t depth, const T* b,
                                const RowSums<T>& sums) {
  constexpr int kWidth = L<T>::kWidth;
  const int64_t stride = (NV + sums.dots) * kWidth;
  T* target[R];
  for (int r = 0; r < R; ++r) target[r] = sums.data + (to[r] - sums.first) * stride;
  multiply_block<T, R, NV>(a, depth, b, target);
  for (int r = 0; r < R; ++r) target[r] += NV * kWidth;
  for (int i = 0; i < sums.dots; ++i) {
    dot_block<T, R>(a, depth, sums.factors + i * sums.factor_stride, target);
    for (int r = 0; r < R; ++r) target[r] += kWidth;
  }
}

// The same for 1 <= rows <= R of them.
template <typename T, int NV, int R = kRows>
OPUS_BODY void add_rows(int rows, const T* const* a, const int32_t* to, int64_t depth,
                               const T* b, const RowSums<T>& sums) {
  if constexpr (R > 1) {
    if (rows < R) return add_rows<T, NV, R - 1>(rows, a, to, depth, b, sums);
  }
  add_block<T, R, NV>(a, to, depth, b, sums);
}

template <typename T>
inline void prefetch_row(const T* row, int64_t length) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < length; i += kLine) __builtin_prefetch(row + i);
}

// Adds a[from[p]] * b to the rows to[p] of the sums, for `count` pairs with distinct `to`; b is
// [depth, NV vectors].
template <typename T, int NV>
inline void add_products(const int32_t* from, const int32_t* to, int64_t count, const T* a,
                            int64_t depth, const T* b, bool prefetches, const RowSums<T>& sums) {
  if (count == 0) return;
  // Blocks of similar size: a small last block would have too few sums to hide their latency.
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
    add_rows<T, NV>(rows, source, to, depth, b, sums);
    from += rows;
    to += rows;
    count -= rows;
  }
}

// w[r][0 .. NV vectors) += sum over p of a[p][r] * b[p][0 .. NV vectors), for R rows of w.
template <typename T, int R, int NV>
OPUS_BODY void outer_block(const T* const* a, const T* const* b, int count, int64_t row,
                                  int64_t column, T* w, int64_t ldw) {
  Pack<T> sum[R][NV];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < NV; ++j) sum[r][j] = L<T>::load(w + r * ldw + j * L<T>::kWidth);
  }
  for (int p = 0; p < count; ++p) {
    Pack<T> values[NV];
    for (int j = 0; j < NV; ++j) values[j] = L<T>::load(b[p] + column + j * L<T>::kWidth);
    for (int r = 0; r < R; ++r) {
      const Pack<T> factor = L<T>::fill(a[p][row + r]);
      for (int j = 0; j < NV; ++j) sum[r][j] = fmadd(factor, values[j], sum[r][j]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < NV; ++j) L<T>::store(w + r * ldw + j * L<T>::kWidth, sum[r][j]);
  }
}

// The same for 1 <= rows <= R of them.
template <typename T, int NV, int R = kRows>
OPUS_BODY void outer_rows(int rows, const T* const* a, const T* const* b, int count,
                                 int64_t row, int64_t column, T* w, int64_t ldw) {
  if constexpr (R > 1) {
    if (rows < R) return outer_rows<T, NV, R - 1>(rows, a, b, count, row, column, w, ldw);
  }
  outer_block<T, R, NV>(a, b, count, row, column, w, ldw);
}

// w += sum over pairs of (row a_of[p] of a)^T * (row b_of[p] of b); w is [rows, columns], a has
// rows of `rows` and b of `columns` elements, columns a multiple of the vector width.
template <typename T>
inline void outer_scattered(const int32_t* a_of, const int32_t* b_of, int64_t count, const T* a,
                               int64_t rows, const T* b, int64_t columns, T* w) {
  constexpr int kWidth = L<T>::kWidth;
  constexpr int kChunk = 32;  // number of pairs whose rows fit into the first-level cache
  const T* left[kChunk];
  const T* right[kChunk];
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int pairs = static_cast<int>(std::min<int64_t>(kChunk, count - begin));
    for (int p = 0; p < pairs; ++p) {
      left[p] = a + a_of[begin + p] * rows;
      right[p] = b + b_of[begin + p] * columns;
    }
    // The rows of a chunk are scattered: prefetch the next chunk during this one's product.
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

}  // namespace row_gemm

// The kernels as a template argument.
struct RowGemm {
  template <typename T>
  static constexpr int kWidth = row_gemm::L<T>::kWidth;
  template <typename T>
  using Sums = row_gemm::RowSums<T>;

  template <typename T, int NV>
  static void add(const int32_t* from, const int32_t* to, int64_t count, const T* a, int64_t depth,
                  const T* b, bool prefetches, const Sums<T>& sums) {
    row_gemm::add_products<T, NV>(from, to, count, a, depth, b, prefetches, sums);
  }
  template <typename T>
  static T total(const T* lanes) {
    return sum_of_lanes(Lanes<Pack<T>>::load(lanes));
  }
  template <typename T>
  static void add_outer(const int32_t* a_of, const int32_t* b_of, int64_t count, const T* a,
                        int64_t rows, const T* b, int64_t columns, T* w) {
    row_gemm::outer_scattered<T>(a_of, b_of, count, a, rows, b, columns, w);
  }
};

}  // namespace OPUS_TARGET
}  // namespace opus
