// Gather, multiply, scatter over the pairs of a kernel map. With AVX2 or AVX-512 the three are
// fused; without them torch's operations are used.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>
#include <vector>

#include "common/parallel.h"
#define OPUS_WITH_AVX512
#include "common/targets.h"
#include "sparse_conv/sparse_conv.h"

#define OPUS_KERNEL_HEADER "sparse_conv/row_gemm.h"
#include "common/for_each_target.h"

namespace opus {
namespace {

// Result rows per task: their sums, 16 KiB, stay in the first-level cache over all positions.
constexpr int64_t kRowsPerTask = 256;
// Smallest number of pairs per task of the weight gradient, and largest number of tasks.
constexpr int64_t kPairsPerTask = 2048;
constexpr int64_t kMaxWeightTasks = 512;
constexpr int64_t kPairsPerCheck = 65536;

// Pairs of a kernel map; `starts` has one entry more than the number of kernel positions.
struct Pairs {
  const int32_t *in, *out;
  const int64_t* starts;
  int64_t positions;
};

Pairs view_pairs(const at::Tensor& pairs, const at::Tensor& starts) {
  const int32_t* in = pairs.const_data_ptr<int32_t>();
  return {in, in + pairs.size(1), starts.const_data_ptr<int64_t>(), starts.size(0) - 1};
}

// Checks the assumptions of the kernels: all rows exist, and the row `ascending` of `list` (the
// rows written) ascends within each kernel position.
void check_pairs(const at::Tensor& list, const char* name, const int64_t* starts,
                 int64_t positions, int64_t num_in, int64_t num_out, int ascending) {
  const int64_t count = list.size(1), limit[2] = {num_in, num_out};
  const int32_t* rows[2] = {list.const_data_ptr<int32_t>(), list.const_data_ptr<int32_t>() + count};
  std::atomic<bool> exist{true}, ascend{true};
  parallel_tasks(num_blocks(count, kPairsPerCheck), [&](int64_t task) {
    const int64_t begin = task * kPairsPerCheck, end = std::min(count, begin + kPairsPerCheck);
    for (int row = 0; row < 2; ++row) {
      uint32_t most = 0;  // negative numbers become large
      for (int64_t i = begin; i < end; ++i) {
        most = std::max(most, static_cast<uint32_t>(rows[row][i]));
      }
      if (begin < end && static_cast<int64_t>(most) >= limit[row]) exist = false;
    }
  });
  TORCH_CHECK_VALUE(exist, name, " must have input indices below ", num_in,
                    " and output indices below ", num_out, ", got larger or negative ones");
  parallel_tasks(positions, [&](int64_t k) {
    const int32_t* row = rows[ascending];
    int descents = 0;
    for (int64_t i = starts[k] + 1; i < starts[k + 1]; ++i) descents += row[i] < row[i - 1];
    if (descents != 0) ascend = false;
  });
  TORCH_CHECK_VALUE(ascend, name, " must be sorted by ", ascending == 0 ? "input" : "output",
                    " index within each kernel position");
}

void check_arguments(const at::Tensor& features, const at::Tensor& weight, const at::Tensor& pairs,
                     const at::Tensor& pairs_by_in, const at::Tensor& starts, int64_t num_out) {
  TORCH_CHECK_VALUE(features.dim() == 2, "features must be [n, C_in], got ", features.sizes());
  TORCH_CHECK_VALUE(std::max(features.size(0), num_out) <= sparse_conv::kMaxActive,
                    "there may be up to ", sparse_conv::kMaxActive,
                    " input and output voxels, whose indices are int32, got ", features.size(0),
                    " and ", num_out);
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
  TORCH_CHECK_VALUE(num_out >= 0, "num_out must not be negative, got ", num_out);
  TORCH_CHECK_VALUE(start[0] == 0 && std::is_sorted(start, start + positions + 1),
                    "starts must begin with 0 and ascend");
  // Every output voxel has at least one pair; this also limits the memory of the result.
  TORCH_CHECK_VALUE(num_out <= start[positions], "num_out must not exceed the number of pairs, ",
                    start[positions], ", got ", num_out);
  for (const at::Tensor* list : {&pairs, &pairs_by_in}) {
    TORCH_CHECK_VALUE(list->dim() == 2 && list->size(0) == 2 &&
                          list->size(1) == start[positions] && list->scalar_type() == at::kInt &&
                          list->is_contiguous(),
                      "pairs must be contiguous int32 [2, ", start[positions], "], got ",
                      list->scalar_type(), " ", list->sizes());
  }
  check_pairs(pairs, "pairs", start, positions, features.size(0), num_out, 1);
  if (pairs_by_in.const_data_ptr() == pairs.const_data_ptr()) {
    check_pairs(pairs, "pairs", start, positions, features.size(0), num_out, 0);
  } else {
    check_pairs(pairs_by_in, "pairs_by_in", start, positions, features.size(0), num_out, 0);
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

#if defined(OPUS_HAS_AVX2_TARGET)

// Pads the last axis with zeros to a multiple of the vector width; the result is contiguous.
at::Tensor pad_columns(const at::Tensor& tensor, int64_t width) {
  const int64_t missing = (width - tensor.size(-1) % width) % width;
  return missing == 0 ? tensor.contiguous()
                      : at::constant_pad_nd(tensor, {0, missing}).contiguous();
}

// Largest number of remaining columns for which dot products are cheaper than one more vector.
constexpr int64_t kMaxDots = 2;

// Columns of a product: `whole` columns use vectors, two at a time (one at the end if sufficient);
// then `dots` columns use dot products.
struct Columns {
  int64_t all, whole, dots, pair;  // pair: size of two vectors

  Columns(int64_t columns, int64_t width) : all(columns), pair(2 * width) {
    const int64_t rest = columns % width;
    dots = columns > width && rest <= kMaxDots ? rest : 0;
    whole = columns - dots;
  }
  // Returns the width of the vectors for the columns from `first` on.
  int64_t width_at(int64_t first) const { return whole - first > pair / 2 ? pair : pair / 2; }
  int64_t padded() const { return (whole + pair / 2 - 1) / (pair / 2) * (pair / 2); }
};

// Packs b [K, depth, columns] for the kernels: [K, depth, width] for every block of columns, padded
// with zeros, then [dots, K, depth] for the dot products.
template <typename T>
at::Tensor pack_factors(const at::Tensor& b, const Columns& columns) {
  const int64_t positions = b.size(0), depth = b.size(1), rows = positions * depth;
  at::Tensor packed = at::empty({rows * (columns.padded() + columns.dots)}, b.options());
  const T* from = b.const_data_ptr<T>();
  T* to = packed.data_ptr<T>();
  const int64_t step_k = b.stride(0), step_d = b.stride(1), step = b.stride(2);
  parallel_tasks(positions, [&](int64_t k) {
    for (int64_t first = 0; first < columns.whole; first += columns.pair) {
      const int64_t width = columns.width_at(first);
      const int64_t real = std::min(width, columns.whole - first);
      for (int64_t d = 0; d < depth; ++d) {
        const T* source = from + k * step_k + d * step_d + first * step;
        T* target = to + rows * first + (k * depth + d) * width;
        for (int64_t j = 0; j < real; ++j) target[j] = source[j * step];
        std::fill(target + real, target + width, T(0));
      }
    }
    for (int64_t i = 0; i < columns.dots; ++i) {
      const T* source = from + k * step_k + (columns.whole + i) * step;
      T* target = to + rows * (columns.padded() + i) + k * depth;
      for (int64_t d = 0; d < depth; ++d) target[d] = source[d * step_d];
    }
  });
  return packed;
}

// Returns the start of every task's pairs within each kernel position, [positions, tasks + 1]; `to`
// ascends within a position.
std::vector<int64_t> task_starts(const int32_t* to, const Pairs& pairs, int64_t tasks) {
  std::vector<int64_t> starts(pairs.positions * (tasks + 1));
  parallel_tasks(pairs.positions, [&](int64_t k) {
    int64_t* of_task = starts.data() + k * (tasks + 1);
    const int32_t *pair = to + pairs.starts[k], *end = to + pairs.starts[k + 1];
    for (int64_t task = 0; task <= tasks; ++task) {
      pair = std::lower_bound(pair, end, task * kRowsPerTask);
      of_task[task] = pair - to;
    }
  });
  return starts;
}

// Computes rows of c: `bias` (null: zeros) plus the products of all positions; see pack_factors.
template <typename Gemm, typename T>
void multiply_by_vectors(const int32_t* from, const int32_t* to, const Pairs& pairs,
                         const at::Tensor& a, const T* factors, const Columns& columns,
                         const T* bias, at::Tensor& c) {
  constexpr int kWidth = Gemm::template kWidth<T>;
  const T* a_data = a.const_data_ptr<T>();
  T* c_data = c.data_ptr<T>();
  const int64_t rows = c.size(0), depth = a.size(1), size = pairs.positions * depth;
  const int64_t tasks = num_blocks(rows, kRowsPerTask);
  const std::vector<int64_t> starts = task_starts(to, pairs, tasks);
  parallel_tasks(tasks, [&](int64_t task) {
    const int64_t first_row = task * kRowsPerTask;
    const int64_t count = std::min(kRowsPerTask, rows - first_row);
    alignas(64) T data[kRowsPerTask * (2 + kMaxDots) * kWidth];
    typename Gemm::template Sums<T> sums{data, first_row, 0, nullptr, size};
    for (int64_t column = 0; column < columns.whole; column += columns.pair) {
      const int64_t width = columns.width_at(column);
      const int64_t real = std::min(width, columns.whole - column);
      // The first columns bring a into the cache, so the dot products are computed with them.
      const bool at_first = column == 0;
      sums.dots = at_first ? static_cast<int>(columns.dots) : 0;
      const int64_t stride = width + sums.dots * kWidth;
      for (int64_t row = 0; row < count; ++row) {
        T* sum = data + row * stride;
        std::fill_n(sum, stride, T(0));
        if (bias == nullptr) continue;
        std::copy_n(bias + column, real, sum);
        for (int i = 0; i < sums.dots; ++i) sum[width + i * kWidth] = bias[columns.whole + i];
      }
      for (int64_t k = 0; k < pairs.positions; ++k) {
        const int64_t* start = starts.data() + k * (tasks + 1) + task;
        const int32_t *source = from + start[0], *target = to + start[0];
        const T* b = factors + size * column + k * depth * width;
        sums.factors = factors + size * columns.padded() + k * depth;
        if (width == 2 * kWidth) {
          Gemm::template add<T, 2>(source, target, start[1] - start[0], a_data, depth, b, at_first,
                                   sums);
        } else {
          Gemm::template add<T, 1>(source, target, start[1] - start[0], a_data, depth, b, at_first,
                                   sums);
        }
      }
      for (int64_t row = 0; row < count; ++row) {
        const T* sum = data + row * stride;
        T* out = c_data + (first_row + row) * columns.all;
        std::copy_n(sum, real, out + column);
        for (int i = 0; i < sums.dots; ++i) {
          out[columns.whole + i] = Gemm::total(sum + width + i * kWidth);
        }
      }
    }
  });
}

// Gradient of the weights, [K, C_out, C_in padded], computed in segments of pairs. The segments are
// summed in order, so the result does not depend on the number of threads.
template <typename Gemm, typename T>
at::Tensor weight_gradient_by_vectors(const Pairs& pairs, const at::Tensor& grad,
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
    Gemm::template add_outer<T>(pairs.out + begin, pairs.in + begin, count, grad_data, c_out,
                                feature_data, c_in, sums + segment * size);
  });
  parallel_tasks(pairs.positions, [&](int64_t k) {
    for (int64_t segment = segment_of[k]; segment < segment_of[k + 1]; ++segment) {
      for (int64_t i = 0; i < size; ++i) out[k * size + i] += sums[segment * size + i];
    }
  });
  return result;
}

// Calls `function` with the kernels of this processor.
template <typename Function>
auto with_gemm(const Function& function) {
  return use_avx512() ? function(avx512::RowGemm()) : function(avx2::RowGemm());
}

#endif  // OPUS_HAS_AVX2_TARGET

// Returns [rows, columns]: `bias` (undefined: zeros) plus the products; b is [K, depth, columns].
at::Tensor multiply(const at::Tensor& list, const at::Tensor& starts, bool forward,
                    const at::Tensor& a, const at::Tensor& b, const at::Tensor& bias,
                    int64_t rows) {
  const Pairs pairs = view_pairs(list, starts);
#if defined(OPUS_HAS_AVX2_TARGET)
  if (use_avx2() && a.size(1) > 0 && b.size(2) > 0) {
    at::Tensor c = at::empty({rows, b.size(2)}, a.options());
    const at::Tensor source = a.contiguous(), start = bias.defined() ? bias.contiguous() : bias;
    AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "sparse_conv", [&] {
      with_gemm([&](auto gemm) {
        using Gemm = decltype(gemm);
        const Columns columns(b.size(2), Gemm::template kWidth<scalar_t>);
        const at::Tensor factors = pack_factors<scalar_t>(b, columns);
        multiply_by_vectors<Gemm, scalar_t>(
            forward ? pairs.in : pairs.out, forward ? pairs.out : pairs.in, pairs, source,
            factors.const_data_ptr<scalar_t>(), columns,
            start.defined() ? start.const_data_ptr<scalar_t>() : nullptr, c);
      });
    });
    return c;
  }
#endif
  at::Tensor c = at::zeros({rows, b.size(2)}, a.options());
  if (bias.defined()) c += bias;
  multiply_with_torch(pairs, forward, list, a, b, c);
  return c;
}

at::Tensor weight_gradient(const Pairs& pairs, const at::Tensor& list, const at::Tensor& grad,
                           const at::Tensor& features) {
#if defined(OPUS_HAS_AVX2_TARGET)
  if (use_avx2()) {
    const at::Tensor left = grad.contiguous();
    at::Tensor result;
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "sparse_conv_backward", [&] {
      result = with_gemm([&](auto gemm) {
        using Gemm = decltype(gemm);
        const at::Tensor right = pad_columns(features, Gemm::template kWidth<scalar_t>);
        return weight_gradient_by_vectors<Gemm, scalar_t>(pairs, left, right);
      });
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
  check_arguments(features, weight, pairs, pairs_by_in, starts, num_out);
  const at::Tensor start = bias.value_or(at::Tensor());
  TORCH_CHECK_VALUE(!start.defined() ||
                        (start.dim() == 1 && start.size(0) == weight.size(0) &&
                         start.scalar_type() == features.scalar_type()),
                    "bias must be ", features.scalar_type(), " [", weight.size(0), "], got ",
                    start.defined() ? start.scalar_type() : features.scalar_type(), " ",
                    start.defined() ? start.sizes() : at::IntArrayRef());
  return multiply(pairs, starts, true, features, matrices(weight, true), start, num_out);
}

std::tuple<at::Tensor, at::Tensor> sparse_conv_backward_cpu(
    const at::Tensor& grad, const at::Tensor& features, const at::Tensor& weight,
    const at::Tensor& pairs, const at::Tensor& pairs_by_in, const at::Tensor& starts,
    bool need_features, bool need_weight) {
  TORCH_CHECK_VALUE(grad.dim() == 2, "grad must be [m, C_out], got ", grad.sizes());
  check_arguments(features, weight, pairs, pairs_by_in, starts, grad.size(0));
  TORCH_CHECK_VALUE(grad.size(1) == weight.size(0) &&
                        grad.scalar_type() == features.scalar_type(),
                    "grad must be ", features.scalar_type(), " [m, ", weight.size(0), "], got ",
                    grad.scalar_type(), " ", grad.sizes());
  at::Tensor grad_features = at::empty({0}, features.options());
  at::Tensor grad_weight = at::empty({0}, weight.options());
  if (need_features) {
    grad_features = multiply(pairs_by_in, starts, false, grad, matrices(weight, false),
                             at::Tensor(), features.size(0));
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
