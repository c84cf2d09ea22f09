// Arithmetic of adaptive mixing, for any lane vector and any team (no include guard: included
// after common/lanes.h for every instruction set).
//
// A team mixes one group of one query. On the host a team is one thread whose vectors hold several
// channels; on the device it is a block of threads with one channel each. Members of Team:
//     rank(), size()  index of this member, number of members
//     kAlone          whether the team has only one member
//     sync()          barrier: makes previous writes visible to all members
//     sum(V)          sum over all lanes of all members, returned to every member
// Matrices are row-major with a leading dimension. Scratch matrices are padded with zero columns to
// whole vectors.

namespace opus {
namespace OPUS_TARGET {
namespace mixing_body {

template <typename T>
struct Matrix {
  T* data;
  int ld;
};

// One group: x [s_in, c], M [c, c], S [s_out, s_in].
struct Sizes {
  int s_in, s_out, c;
};

template <typename V>
OPUS_BODY int vectors_for(int columns) {
  return (columns + Lanes<V>::kWidth - 1) / Lanes<V>::kWidth;
}

// 1 in real columns, 0 in padding.
template <typename V>
OPUS_BODY V real_columns(int first, int columns) {
  using T = typename Lanes<V>::Scalar;
  if (first + Lanes<V>::kWidth <= columns) return Lanes<V>::fill(T(1));
  T mask[Lanes<V>::kWidth];
  for (int i = 0; i < Lanes<V>::kWidth; ++i) mask[i] = first + i < columns ? T(1) : T(0);
  return Lanes<V>::load(mask);
}

// Output of a product: rows of `columns` elements. The last vector of a row writes no padding.
template <typename S>
struct Rows {
  S* data;
  int columns;

  template <typename V>
  OPUS_BODY void operator()(int row, int first, const V& x) const {
    if constexpr (Lanes<V>::kWidth == 1) {
      data[row * columns + first] = static_cast<S>(x);
    } else if (first + Lanes<V>::kWidth <= columns) {
      Lanes<V>::store(data + row * columns + first, x);
    } else {
      S lanes[Lanes<V>::kWidth];
      Lanes<V>::store(lanes, x);
      for (int i = 0; first + i < columns; ++i) data[row * columns + first + i] = lanes[i];
    }
  }
};

template <typename T>
struct Scratch {
  Matrix<T> to;
  template <typename V>
  OPUS_BODY void operator()(int row, int first, const V& x) const {
    Lanes<V>::store(to.data + row * to.ld + first, x);
  }
};

// Calls store(row, first column, values) for a * b; a is [rows, depth] with strides a_row and
// a_step, b is [depth, columns].
template <int NR, int NC, typename V, typename Team, typename T, typename Store>
OPUS_BODY void multiply(const Team& team, const T* a, int a_row, int a_step, const T* b, int ldb,
                        int rows, int depth, int columns, const Store& store) {
  constexpr int kWidth = Lanes<V>::kWidth;
  const int vectors = vectors_for<V>(columns);
  const int across = (vectors + NC - 1) / NC, tiles = across * ((rows + NR - 1) / NR);
  for (int tile = team.rank(); tile < tiles; tile += team.size()) {
    const int row = tile / across * NR, first = tile % across * NC;
    const int rest = rows - row, across_rest = vectors - first;
    const T* left[NR];
    const T* right[NC];
    V sum[NR][NC];
    // Rows and vectors past the end repeat the last ones and are not stored.
    OPUS_UNROLL_ALWAYS
    for (int j = 0; j < NC; ++j) right[j] = b + (first + (j < across_rest ? j : 0)) * kWidth;
    OPUS_UNROLL_ALWAYS
    for (int r = 0; r < NR; ++r) {
      left[r] = a + (row + (r < rest ? r : 0)) * a_row;
      OPUS_UNROLL_ALWAYS
      for (int j = 0; j < NC; ++j) sum[r][j] = Lanes<V>::fill(T(0));
    }
    for (int d = 0; d < depth; ++d) {
      V column[NC];
      OPUS_UNROLL_ALWAYS
      for (int j = 0; j < NC; ++j) column[j] = Lanes<V>::load(right[j] + d * ldb);
      OPUS_UNROLL_ALWAYS
      for (int r = 0; r < NR; ++r) {
        const V value = Lanes<V>::fill(left[r][d * a_step]);
        OPUS_UNROLL_ALWAYS
        for (int j = 0; j < NC; ++j) sum[r][j] = fmadd(value, column[j], sum[r][j]);
      }
    }
    OPUS_UNROLL_ALWAYS
    for (int r = 0; r < NR; ++r) {
      OPUS_UNROLL_ALWAYS
      for (int j = 0; j < NC; ++j) {
        if (r < rest && j < across_rest) store(row + r, (first + j) * kWidth, sum[r][j]);
      }
    }
  }
}

// Calls visit(row, first column) for all vectors of a matrix.
template <typename V, typename Team, typename Visit>
OPUS_BODY void for_each_vector(const Team& team, int rows, int columns, const Visit& visit) {
  const int vectors = vectors_for<V>(columns);
  if constexpr (Team::kAlone) {  // avoids the divisions, which take longer than most visits
    for (int row = 0; row < rows; ++row) {
      for (int vector = 0; vector < vectors; ++vector) visit(row, vector * Lanes<V>::kWidth);
    }
  } else {
    for (int i = team.rank(); i < rows * vectors; i += team.size()) {
      visit(i / vectors, i % vectors * Lanes<V>::kWidth);
    }
  }
}

// Returns the sums that visit(row, first column, sums) accumulates over all vectors of a matrix. A
// team of one uses four accumulators in turn to hide the latency of additions.
template <int N, typename V, typename Team, typename Visit>
OPUS_BODY void add_up(const Team& team, int rows, int columns, V (&sums)[N], const Visit& visit) {
  constexpr int kWidth = Lanes<V>::kWidth, kTurns = Team::kAlone ? 4 : 1;
  V partial[kTurns][N];
  OPUS_UNROLL_ALWAYS
  for (int turn = 0; turn < kTurns; ++turn) {
    OPUS_UNROLL_ALWAYS
    for (int i = 0; i < N; ++i) partial[turn][i] = Lanes<V>::fill(typename Lanes<V>::Scalar(0));
  }
  if constexpr (Team::kAlone) {
    const int vectors = vectors_for<V>(columns);
    for (int row = 0; row < rows; ++row) {
      int vector = 0;
      for (; vector + kTurns <= vectors; vector += kTurns) {
        OPUS_UNROLL_ALWAYS
        for (int turn = 0; turn < kTurns; ++turn) {
          visit(row, (vector + turn) * kWidth, partial[turn]);
        }
      }
      for (; vector < vectors; ++vector) visit(row, vector * kWidth, partial[0]);
    }
  } else {
    for_each_vector<V>(team, rows, columns,
                       [&](int row, int first) { visit(row, first, partial[0]); });
  }
  for (int i = 0; i < N; ++i) {
    sums[i] = partial[0][i];
    for (int turn = 1; turn < kTurns; ++turn) sums[i] += partial[turn][i];
  }
}

// Layer norm over all elements without affine part: calls store(row, first column, normalised) for
// all vectors, with zeros as padding. Returns 1 / deviation, or NaN if the variance is not finite,
// because 0 would hide an overflow.
template <typename V, typename Team, typename T, typename Store>
OPUS_BODY T normalise(const Team& team, const Matrix<T>& x, int rows, int columns,
                      const Store& store) {
  const T count = static_cast<T>(rows * columns), epsilon = static_cast<T>(1e-5);
  const auto at = [&](int row, int first) {
    return Lanes<V>::load(x.data + row * x.ld + first);
  };
  V total[1], squares[1];
  add_up(team, rows, columns, total, [&](int row, int first, V(&sum)[1]) {
    sum[0] += at(row, first);
  });
  const T mean = team.sum(total[0]) / count;
  const auto delta = [&](int row, int first) {
    return (at(row, first) - Lanes<V>::fill(mean)) * real_columns<V>(first, columns);
  };
  add_up(team, rows, columns, squares, [&](int row, int first, V(&sum)[1]) {
    const V d = delta(row, first);
    sum[0] = fmadd(d, d, sum[0]);
  });
  const T variance = team.sum(squares[0]) / count;
  const T zero = variance - variance;  // NaN if the variance overflows
  const T inverse = zero == T(0) ? T(1) / root(variance + epsilon) : zero;
  for_each_vector<V>(team, rows, columns, [&](int row, int first) {
    store(row, first, delta(row, first) * Lanes<V>::fill(inverse));
  });
  team.sync();
  return inverse;
}

// Converts in place the gradient of ReLU(y), y = norm(x), to the gradient of x.
template <typename V, typename Team, typename T>
OPUS_BODY void normalise_backward(const Team& team, const Matrix<T>& grad, const Matrix<T>& y,
                                  T inverse, int rows, int columns) {
  const T count = static_cast<T>(rows * columns);
  V sums[2];
  add_up(team, rows, columns, sums, [&](int row, int first, V(&sum)[2]) {
    const V value = Lanes<V>::load(y.data + row * y.ld + first);
    T* at = grad.data + row * grad.ld + first;
    const V g = above_zero(value, Lanes<V>::load(at));
    Lanes<V>::store(at, g);
    sum[0] += g;
    sum[1] = fmadd(g, value, sum[1]);
  });
  const T mean = team.sum(sums[0]) / count, slope = team.sum(sums[1]) / count;
  for_each_vector<V>(team, rows, columns, [&](int row, int first) {
    const V value = Lanes<V>::load(y.data + row * y.ld + first);
    T* at = grad.data + row * grad.ld + first;
    const V d = Lanes<V>::load(at) - Lanes<V>::fill(mean) - value * Lanes<V>::fill(slope);
    Lanes<V>::store(at, d * Lanes<V>::fill(inverse) * real_columns<V>(first, columns));
  });
  team.sync();
}

// to[j][i] = from[i][j], padded with zeros to whole vectors; `from` is padded too.
template <typename V, typename Team, typename T>
OPUS_BODY void transpose(const Team& team, const T* from, int ld, int rows, int columns,
                         const Matrix<T>& to) {
  constexpr int kWidth = Lanes<V>::kWidth;
  if constexpr (Team::kAlone) {  // transposes squares in registers, without a division per element
    for (int row = 0; row < rows; row += kWidth) {
      for (int first = 0; first < columns; first += kWidth) {
        V square[kWidth];
        for (int i = 0; i < kWidth; ++i) {
          square[i] = row + i < rows ? Lanes<V>::load(from + (row + i) * ld + first)
                                     : Lanes<V>::fill(T(0));
        }
        turn(square);
        for (int i = 0; i < kWidth && first + i < columns; ++i) {
          Lanes<V>::store(to.data + (first + i) * to.ld + row, square[i]);
        }
      }
    }
  } else {
    const int padded = vectors_for<V>(rows) * kWidth;
    for (int i = team.rank(); i < columns * padded; i += team.size()) {
      const int j = i / padded, k = i % padded;
      to.data[j * to.ld + k] = k < rows ? from[k * ld + j] : T(0);
    }
  }
}

// out [s_out, c] = ReLU(norm(S ReLU(norm(x M)))). u and z are scratch of [s_in, c] and [s_out, c].
template <int NR, int NC, typename V, typename Team, typename T, typename Store>
OPUS_BODY void mix(const Team& team, const Sizes& n, const Matrix<const T>& x,
                   const Matrix<const T>& m, const T* s, const Matrix<T>& u, const Matrix<T>& z,
                   const Store& store) {
  multiply<NR, NC, V>(team, x.data, x.ld, 1, m.data, m.ld, n.s_in, n.c, n.c, Scratch<T>{u});
  team.sync();
  normalise<V>(team, u, n.s_in, n.c, [&](int row, int first, const V& x) {
    Lanes<V>::store(u.data + row * u.ld + first, rectified(x));
  });
  multiply<NR, NC, V>(team, s, n.s_in, 1, u.data, u.ld, n.s_out, n.s_in, n.c, Scratch<T>{z});
  team.sync();
  normalise<V>(team, z, n.s_out, n.c,
               [&](int row, int first, const V& x) { store(row, first, rectified(x)); });
}

// Scratch matrices of the backward pass.
template <typename T>
struct Buffers {
  Matrix<T> u, h;       // [s_in, c]
  Matrix<T> z, grad;    // [s_out, c]; grad holds the output's gradient
  Matrix<T> h_turned;   // [c, s_in]
  Matrix<T> m_turned;   // [c, c]
};

// Computes the gradients of x, M and S. Intermediate results of the forward pass are recomputed.
template <int NR, int NC, typename V, typename Team, typename T, typename StoreX, typename StoreM,
          typename StoreS>
OPUS_BODY void mix_backward(const Team& team, const Sizes& n, const Matrix<const T>& x,
                            const Matrix<const T>& m, const T* s, const Buffers<T>& b,
                            const StoreX& store_x, const StoreM& store_m, const StoreS& store_s) {
  multiply<NR, NC, V>(team, x.data, x.ld, 1, m.data, m.ld, n.s_in, n.c, n.c, Scratch<T>{b.u});
  team.sync();
  const T inverse_u = normalise<V>(team, b.u, n.s_in, n.c, [&](int row, int first, const V& x) {
    Lanes<V>::store(b.u.data + row * b.u.ld + first, x);
    Lanes<V>::store(b.h.data + row * b.h.ld + first, rectified(x));
  });
  multiply<NR, NC, V>(team, s, n.s_in, 1, b.h.data, b.h.ld, n.s_out, n.s_in, n.c,
                      Scratch<T>{b.z});
  transpose<V>(team, b.h.data, b.h.ld, n.s_in, n.c, b.h_turned);
  team.sync();
  const T inverse_z = normalise<V>(team, b.z, n.s_out, n.c, Scratch<T>{b.z});
  normalise_backward<V>(team, b.grad, b.z, inverse_z, n.s_out, n.c);
  multiply<NR, NC, V>(team, b.grad.data, b.grad.ld, 1, b.h_turned.data, b.h_turned.ld, n.s_out,
                      n.c, n.s_in, store_s);
  // h is no longer needed: its memory holds the gradient of the first ReLU's output.
  multiply<NR, NC, V>(team, s, 1, n.s_in, b.grad.data, b.grad.ld, n.s_in, n.s_out, n.c,
                      Scratch<T>{b.h});
  team.sync();
  normalise_backward<V>(team, b.h, b.u, inverse_u, n.s_in, n.c);
  multiply<NR, NC, V>(team, x.data, 1, x.ld, b.h.data, b.h.ld, n.c, n.s_in, n.c, store_m);
  transpose<V>(team, m.data, m.ld, n.c, n.c, b.m_turned);
  team.sync();
  multiply<NR, NC, V>(team, b.h.data, b.h.ld, 1, b.m_turned.data, b.m_turned.ld, n.s_in, n.c, n.c,
                      store_x);
}

}  // namespace mixing_body
}  // namespace OPUS_TARGET
}  // namespace opus
