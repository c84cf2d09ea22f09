// Gather, multiply, scatter over the pairs of a kernel map. With AVX2 the three are one; without it
// they are torch's own operations.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "common/avx2.h"
#include "common/parallel.h"
#include "sparse_conv/row_gemm_avx2.h"

namespace opus {
namespace {

// Rows of the result that one task computes, small enough to stay in cache over all positions.
constexpr int64_t kRowsPerTask = 192;
// Pairs that one task of the weight gradient sums up: at least, and so many tasks at most.
constexpr int64_t kPairsPerTask = 2048;
constexpr int64_t kMaxWeightTasks = 512;

// The pairs of a kernel map; `starts` has one entry more than there are kernel positions.
struct Pairs {
  const int32_t *in, *out;
  const int64_t* starts;
  int64_t positions;
};

Pairs view_pairs(const at::Tensor& pairs, const at::Tensor& starts) {
  const int32_t* in = pairs.const_data_ptr<int32_t>();
  return {in, in + pairs.size(1), starts.const_data_ptr<int64_t>(), starts.size(0) - 1};
}

void check_arguments(const at::Tensor& features, const at::Tensor& weight, const at::Tensor& pairs,
                     const at::Tensor& pairs_by_in, const at::Tensor& starts) {
  TORCH_CHECK_VALUE(features.dim() == 2, "features must be [n, C_in], got ", features.sizes());
  TORCH_CHECK_VALUE(weight.dim() == 5 && weight.size(4) == features.size(1),
                    "weight must be [C_out, k0, k1, k2, ", features.size(1), "], got ",
                    weight.sizes());
  TORCH_CHECK_VALUE(weight.scalar_type() == features.scalar_type(),
                    "features and weight must have one dtype, got ", features.scalar_type(),
                    " and ", weight.scalar_type());
  const int64_t positions = weight.size(1) * weight.size(2) * weight.size(3);
  TORCH_CHECK_VALUE(starts.dim() == 1 && starts.size(0) == positions + 1 &&
                        starts.scalar_type() == at::kLong && starts.is_contiguous(),
                    "starts must be contiguous int64 [", positions + 1, "], got ",
                    starts.scalar_type(), " ", starts.sizes());
  const int64_t* start = starts.const_data_ptr<int64_t>();
  for (const at::Tensor* list : {&pairs, &pairs_by_in}) {
    TORCH_CHECK_VALUE(list->dim() == 2 && list->size(0) == 2 &&
                          list->size(1) == start[positions] && list->scalar_type() == at::kInt &&
                          list->is_contiguous(),
                      "pairs must be contiguous int32 [2, ", start[positions], "], got ",
                      list->scalar_type(), " ", list->sizes());
  }
}

// [C_out, k0, k1, k2, C_in] -> [K, C_in, C_out] or [K, C_out, C_in].
at::Tensor matrices(const at::Tensor& weight, bool in_first) {
  const at::Tensor flat = weight.flatten(1, 3);
  return flat.permute(in_first ? at::IntArrayRef{1, 2, 0} : at::IntArrayRef{1, 0, 2});
}

// Adds a[from] * b[k] to the rows `to` of c, over all positions; `to` ascends within a position.
void multiply_with_torch(const Pairs& pairs, bool forward, const at::Tensor& list,
                         const at::Tensor& a, const at::Tensor& b, at::Tensor& c) {
  for (int64_t k = 0; k < pairs.positions; ++k) {
    const int64_t count = pairs.starts[k + 1] - pairs.starts[k];
    if (count == 0) continue;
    const at::Tensor part = list.narrow(1, pairs.starts[k], count);
    c.index_add_(0, part.select(0, forward ? 1 : 0),
                 at::mm(a.index_select(0, part.select(0, forward ? 0 : 1)), b.select(0, k)));
  }
}

#if defined(OPUS_HAS_AVX2_KERNELS)

int64_t vector_width(at::ScalarType type) {
  return type == at::kFloat ? avx2::Lanes<float>::kWidth : avx2::Lanes<double>::kWidth;
}

// Zeros appended to the last axis up to a multiple of the vector width; always contiguous.
at::Tensor pad_columns(const at::Tensor& tensor) {
  const int64_t width = vector_width(tensor.scalar_type());
  const int64_t missing = (width - tensor.size(-1) % width) % width;
  return missing == 0 ? tensor.contiguous()
                      : at::constant_pad_nd(tensor, {0, missing}).contiguous();
}

// Columns that a product by vectors leaves over, if they are so few that dot products are cheaper.
constexpr int64_t kMaxDots = 2;

// As multiply_with_torch. b is [K, depth, columns], columns a multiple of the vector width; the
// columns of c after them are those of b's continuation `dots`, [further columns, K, depth].
template <typename T>
void multiply_with_avx2(const int32_t* from, const int32_t* to, const Pairs& pairs,
                        const at::Tensor& a, const at::Tensor& b, const at::Tensor& dots,
                        at::Tensor& c) {
  const T* a_data = a.const_data_ptr<T>();
  const T* b_data = b.const_data_ptr<T>();
  const T* dot_data = dots.const_data_ptr<T>();
  T* c_data = c.data_ptr<T>();
  const int64_t rows = c.size(0), ldc = c.size(1), depth = a.size(1), columns = b.size(2);
  parallel_tasks(num_blocks(rows, kRowsPerTask), [&](int64_t task) {
    const int64_t first_row = task * kRowsPerTask, end_row = first_row + kRowsPerTask;
    for (int64_t k = 0; k < pairs.positions; ++k) {
      const int32_t* end_k = to + pairs.starts[k + 1];
      const int32_t* first = std::lower_bound(to + pairs.starts[k], end_k, first_row);
      const int32_t* last = std::lower_bound(first, end_k, end_row);
      const int32_t* source = from + (first - to);
      avx2::multiply_scattered<T>(source, first, last - first, a_data, depth,
                                  b_data + k * depth * columns, columns, c_data, ldc);
      for (int64_t column = columns; column < ldc; ++column) {
        const T* factors = dot_data + ((column - columns) * pairs.positions + k) * depth;
        avx2::dot_scattered<T>(source, first, last - first, a_data, depth, factors,
                               c_data + column, ldc);
      }
    }
  });
}

// Gradient of the weights, [K, C_out, C_in padded], in segments of pairs that are then summed in
// order: the same sums whatever the number of threads.
template <typename T>
at::Tensor weight_gradient_with_avx2(const Pairs& pairs, const at::Tensor& grad,
                                     const at::Tensor& features) {
  const int64_t c_out = grad.size(1), c_in = features.size(1), size = c_out * c_in;
  const int64_t total = pairs.starts[pairs.positions];
  const int64_t length = std::max(kPairsPerTask, num_blocks(total, kMaxWeightTasks));
  std::vector<int64_t> segment_of(pairs.positions + 1, 0);  // first segment of a position
  for (int64_t k = 0; k < pairs.positions; ++k) {
    const int64_t count = pairs.starts[k + 1] - pairs.starts[k];
    segment_of[k + 1] = segment_of[k] + num_blocks(count, length);
  }
  at::Tensor partial = at::empty({segment_of.back(), size}, grad.options());
  at::Tensor result = at::zeros({pairs.positions, c_out, c_in}, grad.options());
  T* sums = partial.data_ptr<T>();
  T* out = result.data_ptr<T>();
  const T* grad_data = grad.const_data_ptr<T>();
  const T* feature_data = features.const_data_ptr<T>();
  parallel_tasks(segment_of.back(), [&](int64_t segment) {
    const int64_t k =
        std::upper_bound(segment_of.begin(), segment_of.end(), segment) - segment_of.begin() - 1;
    const int64_t begin = pairs.starts[k] + (segment - segment_of[k]) * length;
    const int64_t count = std::min(length, pairs.starts[k + 1] - begin);
    std::fill_n(sums + segment * size, size, T(0));
    avx2::outer_scattered<T>(pairs.out + begin, pairs.in + begin, count, grad_data, c_out,
                             feature_data, c_in, sums + segment * size);
  });
  parallel_tasks(pairs.positions, [&](int64_t k) {
    for (int64_t segment = segment_of[k]; segment < segment_of[k + 1]; ++segment) {
      for (int64_t i = 0; i < size; ++i) out[k * size + i] += sums[segment * size + i];
    }
  });
  return result;
}

#endif  // OPUS_HAS_AVX2_KERNELS

// Fills c (zeros, or the bias in every row) with the products; b is [K, depth, columns].
at::Tensor multiply(const at::Tensor& list, const at::Tensor& starts, bool forward,
                    const at::Tensor& a, const at::Tensor& b, at::Tensor c) {
  const Pairs pairs = view_pairs(list, starts);
#if defined(OPUS_HAS_AVX2_KERNELS)
  if (use_avx2()) {
    const int64_t columns = c.size(1), rest = columns % vector_width(a.scalar_type());
    const bool by_dots = rest != 0 && rest <= kMaxDots;
    const int64_t whole = by_dots ? columns - rest : columns;
    at::Tensor sums = by_dots ? c.contiguous() : pad_columns(c);
    const at::Tensor rows = a.contiguous(), factors = pad_columns(b.narrow(2, 0, whole));
    const at::Tensor dots = b.narrow(2, whole, columns - whole).permute({2, 0, 1}).contiguous();
    AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "sparse_conv", [&] {
      multiply_with_avx2<scalar_t>(forward ? pairs.in : pairs.out,
                                   forward ? pairs.out : pairs.in, pairs, rows, factors, dots,
                                   sums);
    });
    return sums.narrow(1, 0, columns).contiguous();
  }
#endif
  multiply_with_torch(pairs, forward, list, a, b, c);
  return c;
}

at::Tensor weight_gradient(const Pairs& pairs, const at::Tensor& list, const at::Tensor& grad,
                           const at::Tensor& features) {
#if defined(OPUS_HAS_AVX2_KERNELS)
  if (use_avx2()) {
    const at::Tensor left = grad.contiguous(), right = pad_columns(features);
    at::Tensor result;
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "sparse_conv_backward", [&] {
      result = weight_gradient_with_avx2<scalar_t>(pairs, left, right);
    });
    return result.narrow(2, 0, features.size(1));
  }
#endif
  at::Tensor result =
      at::zeros({pairs.positions, grad.size(1), features.size(1)}, grad.options());
  for (int64_t k = 0; k < pairs.positions; ++k) {
    const int64_t count = pairs.starts[k + 1] - pairs.starts[k];
    if (count == 0) continue;
    const at::Tensor part = list.narrow(1, pairs.starts[k], count);
    at::Tensor out = result.select(0, k);
    at::mm_out(out, grad.index_select(0, part.select(0, 1)).t(),
               features.index_select(0, part.select(0, 0)));
  }
  return result;
}

at::Tensor sparse_conv_cpu(const at::Tensor& features, const at::Tensor& weight,
                           const std::optional<at::Tensor>& bias, const at::Tensor& pairs,
                           const at::Tensor& pairs_by_in, const at::Tensor& starts,
                           int64_t num_out) {
  check_arguments(features, weight, pairs, pairs_by_in, starts);
  const int64_t c_out = weight.size(0);
  at::Tensor out = at::zeros({num_out, c_out}, features.options());
  if (bias.has_value() && bias->defined()) {
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == c_out, "bias must be [", c_out,
                      "], got ", bias->sizes());
    out += *bias;
  }
  return multiply(pairs, starts, true, features, matrices(weight, true), out);
}

std::tuple<at::Tensor, at::Tensor> sparse_conv_backward_cpu(
    const at::Tensor& grad, const at::Tensor& features, const at::Tensor& weight,
    const at::Tensor& pairs, const at::Tensor& pairs_by_in, const at::Tensor& starts,
    bool need_features, bool need_weight) {
  check_arguments(features, weight, pairs, pairs_by_in, starts);
  TORCH_CHECK_VALUE(grad.dim() == 2 && grad.size(1) == weight.size(0), "grad must be [m, ",
                    weight.size(0), "], got ", grad.sizes());
  at::Tensor grad_features = at::empty({0}, features.options());
  at::Tensor grad_weight = at::empty({0}, weight.options());
  if (need_features) {
    grad_features = multiply(pairs_by_in, starts, false, grad, matrices(weight, false),
                             at::zeros(features.sizes(), features.options()));
  }
  if (need_weight) {
    grad_weight = weight_gradient(view_pairs(pairs, starts), pairs, grad, features)
                      .transpose(0, 1)
                      .contiguous()
                      .view(weight.sizes());
  }
  return {grad_features, grad_weight};
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) {
  m.impl("sparse_conv", &sparse_conv_cpu);
  m.impl("sparse_conv_backward", &sparse_conv_backward_cpu);
}

}  // namespace opus
