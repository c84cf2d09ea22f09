#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/parallel.h"
#define OPUS_WITH_AVX512
#include "common/targets.h"
#include "distance_attention/distance_attention_check.h"
#include "distance_attention/distance_attention_tiles.h"

#define OPUS_BODY_HEADER "distance_attention/distance_attention_body.h"
#define OPUS_KERNEL_HEADER "distance_attention/distance_attention_cpu_kernel.h"
#include "common/for_each_target.h"

namespace opus {
namespace {

using distance_attention::Box;
using distance_attention::Dropout;
using distance_attention::kTile;
using distance_attention::OptionalTensor;
using distance_attention::Rows;
using distance_attention::Shape;

// Dropout with its seeds, and the order of queries if given by the caller.
struct Drawn {
  Dropout dropout;
  at::Tensor seeds, order;

  Drawn(double dropout_p, const OptionalTensor& given_seeds, const OptionalTensor& order_given)
      : dropout(distance_attention::make_dropout(dropout_p)) {
    if (dropout_p > 0) seeds = given_seeds->contiguous();
    if (order_given) order = order_given->contiguous();
  }
  const int64_t* seed_data() const {
    return seeds.defined() ? seeds.const_data_ptr<int64_t>() : nullptr;
  }
};

std::vector<int64_t> given_order(const at::Tensor& order, int64_t b) {
  const int64_t count = order.size(1);
  const int64_t* from = order.const_data_ptr<int64_t>() + b * count;
  std::vector<bool> is_there(count, false);
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK_VALUE(from[i] >= 0 && from[i] < count && !is_there[from[i]],
                      "order must hold every query of a sample once, order[", b, ", ", i, "] is ",
                      from[i]);
    is_there[from[i]] = true;
  }
  return {from, from + count};
}

// Inputs in the order and layout of the tiles, with ownership of the memory of `rows`.
template <typename T>
struct Packed {
  Rows<T> rows{};
  std::vector<Box<T>> boxes;                // boxes of the blocks, [batch, blocks]
  std::vector<std::vector<int64_t>> order;  // one order per sample
  at::Tensor query, key, value, grad, tau, log_sum, delta, centre;
  std::vector<T> key_norm, query_norm;
  std::vector<uint32_t> row_hash, key_hash;

  // source [B, H, Q, d] with any strides -> [B, H, rows, depth]
  at::Tensor pack(const at::Tensor& source) const {
    const at::Tensor s = source.to(centre.scalar_type());
    at::Tensor result = at::zeros({rows.batch, rows.heads, rows.rows, rows.depth}, s.options());
    const int64_t d = s.size(3), step = s.stride(3);
    const T* from = s.const_data_ptr<T>();
    T* to = result.data_ptr<T>();
    parallel_tasks(rows.batch * rows.heads, [&](int64_t task) {
      const int64_t b = task / rows.heads, h = task % rows.heads;
      for (int64_t i = 0; i < rows.queries; ++i) {
        const T* row = from + b * s.stride(0) + h * s.stride(1) + order[b][i] * s.stride(2);
        T* out = to + rows.head_row(b, h, i) * rows.depth;
        for (int64_t j = 0; j < d; ++j) out[j] = row[j * step];
      }
    });
    return result;
  }
  // source [B, H, Q] -> [B, H, rows]
  at::Tensor pack_numbers(const at::Tensor& source) const {
    const at::Tensor s = source.to(centre.scalar_type()).contiguous();
    at::Tensor result = at::zeros({rows.batch, rows.heads, rows.rows}, s.options());
    const T* from = s.const_data_ptr<T>();
    T* to = result.data_ptr<T>();
    for (int64_t bh = 0; bh < rows.batch * rows.heads; ++bh) {
      for (int64_t i = 0; i < rows.queries; ++i) {
        to[bh * rows.rows + i] = from[bh * rows.queries + order[bh / rows.heads][i]];
      }
    }
    return result;
  }
  // packed [B, H, rows, depth] -> [B, H, Q, d] of the given type, in memory [B, Q, H, d]
  at::Tensor unpack(const at::Tensor& packed, int64_t d, at::ScalarType type) const {
    at::Tensor result = at::empty({rows.batch, rows.queries, rows.heads, d}, packed.options());
    const T* from = packed.const_data_ptr<T>();
    T* to = result.data_ptr<T>();
    parallel_tasks(rows.batch * rows.heads, [&](int64_t task) {
      const int64_t b = task / rows.heads, h = task % rows.heads;
      for (int64_t i = 0; i < rows.queries; ++i) {
        std::copy_n(from + rows.head_row(b, h, i) * rows.depth, d,
                    to + ((b * rows.queries + order[b][i]) * rows.heads + h) * d);
      }
    });
    return result.to(type).permute({0, 2, 1, 3});
  }
  at::Tensor unpack_numbers(const at::Tensor& packed, at::ScalarType type) const {
    at::Tensor result = at::empty({rows.batch, rows.heads, rows.queries}, packed.options());
    const T* from = packed.const_data_ptr<T>();
    T* to = result.data_ptr<T>();
    for (int64_t bh = 0; bh < rows.batch * rows.heads; ++bh) {
      for (int64_t i = 0; i < rows.queries; ++i) {
        to[bh * rows.queries + order[bh / rows.heads][i]] = from[bh * rows.rows + i];
      }
    }
    return result.to(type);
  }

  // Returns the largest norm of the rows of each block.
  std::vector<T> block_norms(const at::Tensor& packed) const {
    std::vector<T> norms(rows.batch * rows.heads * rows.blocks(), T(0));
    const T* data = packed.const_data_ptr<T>();
    for (int64_t row = 0; row < rows.batch * rows.heads * rows.rows; ++row) {
      T square = 0;
      for (int d = 0; d < rows.depth; ++d) {
        square += data[row * rows.depth + d] * data[row * rows.depth + d];
      }
      T& norm = norms[row / kTile];
      if (!(square <= norm)) norm = square;  // NaN propagates
      if (norm != norm) row += kTile - 1 - row % kTile;
    }
    for (T& norm : norms) norm = std::sqrt(norm);
    return norms;
  }
};

bool all_finite(const at::Tensor& tensor) {
  bool finite = true;
  AT_DISPATCH_FLOATING_TYPES(tensor.scalar_type(), "all_finite", [&] {
    const scalar_t* data = tensor.const_data_ptr<scalar_t>();
    for (int64_t i = 0; i < tensor.numel(); ++i) finite &= data[i] - data[i] == scalar_t(0);
  });
  return finite;
}

template <typename T>
void pack_inputs(const Shape& s, const at::Tensor& query, const at::Tensor& key,
                 const at::Tensor& value, const at::Tensor& tau, const at::Tensor& centres,
                 const Drawn& drawn, Packed<T>& packed) {
  Rows<T>& rows = packed.rows;
  rows.batch = s.batch;
  rows.heads = s.heads;
  rows.queries = s.queries;
  rows.rows = num_blocks(s.queries, kTile) * kTile;
  rows.depth = static_cast<int>((s.depth + 3) / 4 * 4);
  rows.scale = static_cast<T>(1.0 / std::sqrt(static_cast<double>(s.depth)));
  const auto type = std::is_same_v<T, double> ? at::kDouble : at::kFloat;
  const at::Tensor source = centres.to(type).contiguous();
  packed.centre = at::zeros({s.batch, rows.rows, 3}, source.options());
  T* centre = packed.centre.template data_ptr<T>();
  const T* from = source.template const_data_ptr<T>();
  packed.row_hash.resize(s.batch * s.heads * rows.rows);
  packed.key_hash.resize(s.batch * rows.rows);
  for (int64_t b = 0; b < s.batch; ++b) {
    packed.order.push_back(
        drawn.order.defined()
            ? given_order(drawn.order, b)
            : distance_attention::spatial_order(from + 3 * b * s.queries, s.queries));
    const Dropout dropout = distance_attention::seeded(drawn.dropout, drawn.seed_data(), b);
    for (int64_t i = 0; i < s.queries; ++i) {
      const int64_t at = packed.order[b][i];
      std::copy_n(from + 3 * (b * s.queries + at), 3, centre + 3 * (b * rows.rows + i));
      packed.key_hash[b * rows.rows + i] = dropout.key_hash(at);
      for (int64_t h = 0; h < s.heads; ++h) {
        packed.row_hash[rows.head_row(b, h, i)] =
            dropout.row_hash(h * s.queries + at);
      }
    }
    for (int64_t first = 0; first < rows.rows; first += kTile) {
      packed.boxes.push_back(distance_attention::box_of(
          centre + 3 * (b * rows.rows + first), std::min<int64_t>(kTile, s.queries - first)));
    }
  }
  packed.query = packed.pack(query);
  packed.key = packed.pack(key);
  packed.value = packed.pack(value);
  packed.tau = packed.pack_numbers(tau);
  packed.key_norm = packed.block_norms(packed.key);
  packed.query_norm = packed.block_norms(packed.query);
  rows.query = packed.query.template const_data_ptr<T>();
  rows.key = packed.key.template const_data_ptr<T>();
  rows.value = packed.value.template const_data_ptr<T>();
  rows.tau = packed.tau.template const_data_ptr<T>();
  rows.centre = centre;
  rows.row_hash = packed.row_hash.data();
  rows.key_hash = packed.key_hash.data();
  rows.key_norm = packed.key_norm.data();
  rows.query_norm = packed.query_norm.data();
  rows.may_skip = true;
  for (const at::Tensor* t : {&packed.query, &packed.key, &packed.value, &packed.tau,
                              &packed.centre}) {
    rows.may_skip = rows.may_skip && all_finite(*t);
  }
}

template <typename T>
std::tuple<at::Tensor, at::Tensor> forward(const Shape& s, const at::Tensor& query,
                                           const at::Tensor& key, const at::Tensor& value,
                                           const at::Tensor& tau, const at::Tensor& centres,
                                           const Drawn& drawn) {
  Packed<T> packed;
  pack_inputs(s, query, key, value, tau, centres, drawn, packed);
  const Dropout& dropout = drawn.dropout;
  const Rows<T>& rows = packed.rows;
  at::Tensor out = at::empty(packed.query.sizes(), packed.query.options());
  at::Tensor log_sum = at::empty(packed.tau.sizes(), packed.tau.options());
  T* out_data = out.template data_ptr<T>();
  T* log_data = log_sum.template data_ptr<T>();
  parallel_tasks(s.batch * rows.blocks(), [&](int64_t task) {
    if (dropout.threshold > 0) {
      OPUS_CALL_TARGET(attention_tiles::forward_task<true>, rows, packed.boxes, dropout, task,
                       out_data, log_data);
    } else {
      OPUS_CALL_TARGET(attention_tiles::forward_task<false>, rows, packed.boxes, dropout, task,
                       out_data, log_data);
    }
  });
  return {packed.unpack(out, s.depth, query.scalar_type()),
          packed.unpack_numbers(log_sum, log_sum.scalar_type())};
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

template <typename T>
Gradients backward(const Shape& s, const at::Tensor& grad, const at::Tensor& query,
                   const at::Tensor& key, const at::Tensor& value, const at::Tensor& tau,
                   const at::Tensor& centres, const at::Tensor& out, const at::Tensor& log_sum,
                   const Drawn& drawn) {
  Packed<T> packed;
  pack_inputs(s, query, key, value, tau, centres, drawn, packed);
  const Dropout& dropout = drawn.dropout;
  Rows<T>& rows = packed.rows;
  packed.grad = packed.pack(grad);
  packed.log_sum = packed.pack_numbers(log_sum);
  rows.may_skip = rows.may_skip && all_finite(packed.grad) && all_finite(packed.log_sum);
  const at::Tensor packed_out = packed.pack(out);
  packed.delta = at::empty(packed.tau.sizes(), packed.tau.options());
  T* delta = packed.delta.template data_ptr<T>();
  const T* grads = packed.grad.template const_data_ptr<T>();
  const T* outs = packed_out.template const_data_ptr<T>();
  for (int64_t row = 0; row < packed.delta.numel(); ++row) {
    T sum = 0;
    for (int64_t i = row * rows.depth; i < (row + 1) * rows.depth; ++i) sum += grads[i] * outs[i];
    delta[row] = sum;
  }
  rows.grad = grads;
  rows.log_sum = packed.log_sum.template const_data_ptr<T>();
  rows.delta = delta;
  at::Tensor d_query = at::empty(packed.query.sizes(), packed.query.options());
  at::Tensor d_key = at::empty_like(d_query), d_value = at::empty_like(d_query);
  at::Tensor d_tau = at::empty(packed.tau.sizes(), packed.tau.options());
  T *dq = d_query.template data_ptr<T>(), *dk = d_key.template data_ptr<T>(),
    *dv = d_value.template data_ptr<T>(), *dt = d_tau.template data_ptr<T>();
  const int64_t tiles = s.batch * rows.blocks();
  parallel_tasks(2 * tiles, [&](int64_t task) {
    const bool drop = dropout.threshold > 0;
    if (task < tiles) {
      if (drop) {
        OPUS_CALL_TARGET(attention_tiles::query_gradient_task<true>, rows, packed.boxes, dropout,
                         task, dq, dt);
      } else {
        OPUS_CALL_TARGET(attention_tiles::query_gradient_task<false>, rows, packed.boxes, dropout,
                         task, dq, dt);
      }
    } else if (drop) {
      OPUS_CALL_TARGET(attention_tiles::key_gradient_task<true>, rows, packed.boxes, dropout,
                       task - tiles, dk, dv);
    } else {
      OPUS_CALL_TARGET(attention_tiles::key_gradient_task<false>, rows, packed.boxes, dropout,
                       task - tiles, dk, dv);
    }
  });
  return {packed.unpack(d_query, s.depth, query.scalar_type()),
          packed.unpack(d_key, s.depth, key.scalar_type()),
          packed.unpack(d_value, s.depth, value.scalar_type()),
          packed.unpack_numbers(d_tau, tau.scalar_type())};
}

std::tuple<at::Tensor, at::Tensor> attention_cpu(const at::Tensor& query, const at::Tensor& key,
                                                 const at::Tensor& value, const at::Tensor& tau,
                                                 const at::Tensor& centres, double dropout_p,
                                                 const OptionalTensor& seeds,
                                                 const OptionalTensor& order) {
  const Shape s =
      distance_attention::check(query, key, value, tau, centres, dropout_p, seeds, order);
  const Drawn drawn(dropout_p, seeds, order);
  if (query.scalar_type() == at::kDouble) {
    return forward<double>(s, query, key, value, tau, centres, drawn);
  }
  return forward<float>(s, query, key, value, tau, centres, drawn);
}

Gradients attention_backward_cpu(const at::Tensor& grad, const at::Tensor& query,
                                 const at::Tensor& key, const at::Tensor& value,
                                 const at::Tensor& tau, const at::Tensor& centres,
                                 const at::Tensor& out, const at::Tensor& log_sum,
                                 double dropout_p, const OptionalTensor& seeds,
                                 const OptionalTensor& order) {
  const Shape s =
      distance_attention::check(query, key, value, tau, centres, dropout_p, seeds, order);
  TORCH_CHECK_VALUE(grad.sizes() == query.sizes() && out.sizes() == query.sizes(),
                    "grad and out must be ", query.sizes(), ", got ", grad.sizes(), " and ",
                    out.sizes());
  TORCH_CHECK_VALUE(log_sum.sizes() == tau.sizes(), "log_sum must be ", tau.sizes(), ", got ",
                    log_sum.sizes());
  const Drawn drawn(dropout_p, seeds, order);
  if (query.scalar_type() == at::kDouble) {
    return backward<double>(s, grad, query, key, value, tau, centres, out, log_sum, drawn);
  }
  return backward<float>(s, grad, query, key, value, tau, centres, out, log_sum, drawn);
}

at::Tensor attention_order_cpu(const at::Tensor& centres) {
  distance_attention::check_centres(centres);
  const at::Tensor c = centres.contiguous();
  const int64_t count = c.size(1);
  at::Tensor order = at::empty({c.size(0), count}, c.options().dtype(at::kLong));
  AT_DISPATCH_FLOATING_TYPES(c.scalar_type(), "attention_order", [&] {
    for (int64_t b = 0; b < c.size(0); ++b) {
      const auto own = distance_attention::spatial_order(
          c.const_data_ptr<scalar_t>() + 3 * b * count, count);
      std::copy(own.begin(), own.end(), order.mutable_data_ptr<int64_t>() + b * count);
    }
  });
  return order;
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) {
  m.impl("distance_attention", &attention_cpu);
  m.impl("distance_attention_backward", &attention_backward_cpu);
  m.impl("attention_order", &attention_order_cpu);
}

}  // namespace opus
