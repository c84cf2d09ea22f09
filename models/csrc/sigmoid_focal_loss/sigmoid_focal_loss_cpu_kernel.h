// Sigmoid focal loss of rows on the host. No include guard: included once for every instruction
// set, after common/lanes.h and sigmoid_focal_loss_body.h.

namespace opus {
namespace OPUS_TARGET {
namespace focal_rows {

using namespace focal_body;
using sigmoid_focal_loss::Problem;

// Calls visit(row, first class, plus, minus, class weights) for all vectors of rows begin .. end.
template <typename T, typename Visit>
OPUS_BODY void for_each_vector(const Problem<T>& in, int64_t begin, int64_t end,
                               const Visit& visit) {
  using V = Pack<T>;
  constexpr int kWidth = Lanes<V>::kWidth;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t k = 0; k < in.classes; k += kWidth) {
      const T* from = in.logits + row * in.classes + k;
      T part[kWidth] = {};
      if (k + kWidth > in.classes) {
        std::copy_n(from, in.classes - k, part);
        from = part;
      }
      const V x = Lanes<V>::load(from);
      const SoftPlus<V> both = soft_plus(x);
      visit(row, k, both.plus, both.minus, Lanes<V>::load(in.class_weights + k));
    }
  }
}

// Returns the sum of the loss over rows begin .. end.
template <typename T>
double forward_rows(const Problem<T>& in, int64_t begin, int64_t end) {
  using V = Pack<T>;
  constexpr int kWidth = Lanes<V>::kWidth;
  double total = 0;
  V sum = Lanes<V>::fill(T(0));
  int64_t current = begin;
  const auto close_row = [&](int64_t row) {
    const T weight = in.row_weights == nullptr ? T(1) : in.row_weights[row];
    total += static_cast<double>(sum_of_lanes(sum)) * static_cast<double>(weight);
    sum = Lanes<V>::fill(T(0));
  };
  for_each_vector(in, begin, end, [&](int64_t row, int64_t k, const V& plus, const V& minus,
                                      const V& weights) {
    if (row != current) {
      close_row(current);
      current = row;
    }
    V loss = focal_term(plus, minus, in.gamma, T(1) - in.alpha);
    const int64_t at = in.labels[row] - k;
    if (at >= 0 && at < kWidth && in.labels[row] < in.classes) {
      loss.raw[at] = focal_term(minus, plus, in.gamma, in.alpha).raw[at];
    }
    sum = fmadd(loss, weights, sum);
  });
  if (begin < end) close_row(current);
  return total;
}

// d_logits = factor times the derivative of the sum.
template <typename T>
void backward_rows(const Problem<T>& in, int64_t begin, int64_t end, T factor, T* d_logits) {
  using V = Pack<T>;
  constexpr int kWidth = Lanes<V>::kWidth;
  for_each_vector(in, begin, end, [&](int64_t row, int64_t k, const V& plus, const V& minus,
                                      const V& weights) {
    V slope = focal_slope(plus, minus, in.gamma, T(1) - in.alpha);
    const int64_t at = in.labels[row] - k;
    if (at >= 0 && at < kWidth && in.labels[row] < in.classes) {
      slope.raw[at] = -focal_slope(minus, plus, in.gamma, in.alpha).raw[at];
    }
    const T weight = in.row_weights == nullptr ? factor : factor * in.row_weights[row];
    slope = slope * weights * Lanes<V>::fill(weight);
    T* to = d_logits + row * in.classes + k;
    if (k + kWidth <= in.classes) {
      Lanes<V>::store(to, slope);
    } else {
      for (int64_t i = 0; k + i < in.classes; ++i) to[i] = slope.raw[i];
    }
  });
}

}  // namespace focal_rows
}  // namespace OPUS_TARGET
}  // namespace opus
