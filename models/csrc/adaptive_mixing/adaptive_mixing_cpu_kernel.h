// Adaptive mixing on the host: each thread processes one group of one query at a time. No include
// guard.

namespace opus {
namespace OPUS_TARGET {
namespace mixing_rows {

using namespace mixing_body;

// AVX-512 has twice the registers for sums.
constexpr int NR = OPUS_PACK_BYTES == 64 ? 8 : 4, NC = 2;

struct Alone {
  static constexpr bool kAlone = true;
  OPUS_BODY int rank() const { return 0; }
  OPUS_BODY int size() const { return 1; }
  OPUS_BODY void sync() const {}
  template <typename V>
  OPUS_BODY typename Lanes<V>::Scalar sum(const V& x) const {
    return sum_of_lanes(x);
  }
};

// Scratch matrices of one thread, initialised with zeros.
template <typename T>
class Workspace {
 public:
  explicit Workspace(const Sizes& n) : sizes_(n) {
    ld_ = padded(n.c);
    size_t next = 0;
    const auto take = [&](size_t rows, int ld) {
      const size_t at = next;
      next += rows * ld;
      return at;
    };
    const size_t x = take(n.s_in, ld_), m = take(n.c, ld_), u = take(n.s_in, ld_),
                 h = take(n.s_in, ld_), z = take(n.s_out, ld_), grad = take(n.s_out, ld_),
                 h_turned = take(n.c, padded(n.s_in)), m_turned = take(n.c, ld_);
    data_.resize(next + 16);
    T* base = data_.data();
    x_ = {base + x, ld_};
    m_ = {base + m, ld_};
    buffers = {{base + u, ld_},    {base + h, ld_},
               {base + z, ld_},    {base + grad, ld_},
               {base + h_turned, padded(n.s_in)}, {base + m_turned, ld_}};
  }
  Matrix<const T> x(const T* from) { return staged(from, sizes_.s_in, x_); }
  Matrix<const T> m(const T* from) { return staged(from, sizes_.c, m_); }
  void load_grad(const T* from) { copy(from, sizes_.s_out, buffers.grad); }

  Buffers<T> buffers;

 private:
  static int padded(int columns) {
    return vectors_for<Pack<T>>(columns) * Lanes<Pack<T>>::kWidth;
  }
  void copy(const T* from, int rows, const Matrix<T>& to) const {
    for (int row = 0; row < rows; ++row) {
      std::copy_n(from + row * sizes_.c, sizes_.c, to.data + row * to.ld);
    }
  }
  // Rows of whole vectors are read in place.
  Matrix<const T> staged(const T* from, int rows, const Matrix<T>& to) const {
    if (ld_ == sizes_.c) return {from, ld_};
    copy(from, rows, to);
    return {to.data, to.ld};
  }

  Sizes sizes_;
  int ld_;
  Matrix<T> x_, m_;
  std::vector<T> data_;
};

// Prefetches the next group's matrices during the computation of this one. They are read by columns
// first, with strides that the processor's prefetcher does not detect.
template <typename T>
OPUS_BODY void prefetch(const T* from, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(from + i, 0, 2);
}

// x_stride, p_stride and so on are the row strides of x, parameters and the output's gradient.
template <typename T>
void forward_rows(const Sizes& n, const T* x, int64_t x_stride, const T* parameters,
                  int64_t p_stride, int64_t begin, int64_t end, T* out) {
  Workspace<T> work(n);
  const int64_t size = int64_t(n.c) * n.c + int64_t(n.s_out) * n.s_in;
  for (int64_t i = begin; i < end; ++i) {
    const T* m = parameters + i * p_stride;
    if (i + 1 < end) {
      prefetch(m + p_stride, size);
      prefetch(x + (i + 1) * x_stride, int64_t(n.s_in) * n.c);
    }
    mix<NR, NC, Pack<T>>(Alone(), n, work.x(x + i * x_stride), work.m(m), m + n.c * n.c,
                         work.buffers.u, work.buffers.z, Rows<T>{out + i * n.s_out * n.c, n.c});
  }
}

template <typename T>
void backward_rows(const Sizes& n, const T* x, int64_t x_stride, const T* parameters,
                   int64_t p_stride, const T* grad, int64_t grad_stride, int64_t begin, int64_t end,
                   T* d_x, T* d_parameters) {
  Workspace<T> work(n);
  const int64_t size = int64_t(n.c) * n.c + int64_t(n.s_out) * n.s_in;
  for (int64_t i = begin; i < end; ++i) {
    const T* m = parameters + i * p_stride;
    T* d_m = d_parameters + i * size;
    if (i + 1 < end) {
      prefetch(m + p_stride, size);
      prefetch(x + (i + 1) * x_stride, int64_t(n.s_in) * n.c);
      prefetch(grad + (i + 1) * grad_stride, int64_t(n.s_out) * n.c);
    }
    work.load_grad(grad + i * grad_stride);
    mix_backward<NR, NC, Pack<T>>(Alone(), n, work.x(x + i * x_stride), work.m(m), m + n.c * n.c,
                                  work.buffers, Rows<T>{d_x + i * n.s_in * n.c, n.c},
                                  Rows<T>{d_m, n.c}, Rows<T>{d_m + n.c * n.c, n.s_in});
  }
}

}  // namespace mixing_rows
}  // namespace OPUS_TARGET
}  // namespace opus
