// Compiled into CUDA builds only.
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "common/curve_order.h"
#include "common/launch.h"
#include "distance_attention/distance_attention_check.h"
#include "distance_attention/distance_attention_cuda.h"
#include "distance_attention/distance_attention_tiles.h"

namespace opus {
namespace {

using distance_attention::CudaArguments;
using distance_attention::kCudaDepth;
using distance_attention::kCudaTile;
using distance_attention::OptionalTensor;
using distance_attention::RowsView;
using distance_attention::Shape;

// Fewer queries keep their order, because sorting takes longer than it saves.
constexpr int64_t kSortFrom = 1024;
constexpr int kCodeBits = 10;  // per axis; tiles need no finer order
constexpr int64_t kMostBlocks = 65535;  // limit of a grid's second and third axis

RowsView view(const at::Tensor& rows, const char* name) {
  return {rows.const_data_ptr(), storage_of(rows, name), rows.stride(0),
          rows.stride(1),        rows.stride(2),         rows.stride(3)};
}

// Returns the order [B, Q], or an undefined tensor to keep the order.
at::Tensor order_of(const at::Tensor& centres) {
  if (centres.size(1) < kSortFrom || centres.size(0) == 0) return {};
  std::vector<at::Tensor> orders;
  for (int64_t b = 0; b < centres.size(0); ++b) {
    orders.push_back(order_along_curve<float>(centres[b], kCodeBits));
  }
  return at::stack(orders);
}

at::Tensor attention_order_cuda(const at::Tensor& centres) {
  distance_attention::check_centres(centres);
  const c10::DeviceGuard guard(centres.device());
  const at::Tensor order = order_of(centres.to(at::kFloat).contiguous());
  if (order.defined()) return order;
  const at::TensorOptions whole = centres.options().dtype(at::kLong);
  return at::arange(centres.size(1), whole).repeat({centres.size(0), 1});
}

// Arguments of the kernels, with ownership of the tensors.
struct Prepared {
  CudaArguments arguments{};
  at::Tensor tau, centres, seeds, order, numbers, rows;

  Prepared(const Shape& s, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
           const at::Tensor& t, const at::Tensor& c, double dropout_p, const OptionalTensor& seed,
           const OptionalTensor& given_order, bool backward)
      : tau(t.to(at::kFloat).contiguous()), centres(c.to(at::kFloat).contiguous()) {
    TORCH_CHECK_VALUE(s.depth <= kCudaDepth, "a head may have up to ", kCudaDepth,
                      " channels on CUDA, got ", s.depth);
    TORCH_CHECK_VALUE(s.batch <= kMostBlocks && s.heads <= kMostBlocks, "B and H may be up to ",
                      kMostBlocks, " on CUDA, got ", s.batch, " and ", s.heads);
    CudaArguments& a = arguments;
    a.batch = s.batch;
    a.heads = s.heads;
    a.queries = s.queries;
    a.tiles = num_blocks(s.queries, kCudaTile);
    a.depth = static_cast<int>(s.depth);
    a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(s.depth)));
    a.negligible_gap = distance_attention::negligible_gap<float>(s.queries);
    a.dropout = distance_attention::make_dropout(dropout_p);
    if (dropout_p > 0) {
      check_same_device(query, "query", *seed, "seeds");
      seeds = seed->contiguous();
      a.seeds = seeds.const_data_ptr<int64_t>();
    }
    a.query = view(query, "query");
    a.key = view(key, "key");
    a.value = view(value, "value");
    a.tau = tau.const_data_ptr<float>();
    a.centres = centres.const_data_ptr<float>();
    if (given_order) {
      check_same_device(query, "query", *given_order, "order");
      order = given_order->contiguous();
    } else {
      order = order_of(centres);
    }
    if (order.defined()) a.order = order.const_data_ptr<int64_t>();
    allocate(backward);
  }

 private:

  void allocate(bool backward) {
    const CudaArguments& a = arguments;
    const int64_t per_head = a.batch * a.heads * a.rows(), per_tile = a.batch * a.heads * a.tiles;
    const int64_t matrices = (backward ? 4 : 3) * per_head * kCudaDepth;
    const int64_t boxes = a.batch * a.tiles * 6, centre = a.batch * a.rows() * 3;
    numbers = at::empty({matrices + 5 * per_head + per_tile + boxes + centre}, centres.options());
    rows = at::empty({a.batch, a.rows()}, centres.options().dtype(at::kLong));
    float* next = numbers.mutable_data_ptr<float>();
    const auto take = [&next](int64_t count) {
      next += count;
      return next - count;
    };
    distance_attention::Packed& packed = arguments.packed;  // matrices first, for 16-byte alignment
    packed.query = take(per_head * kCudaDepth);
    packed.key = take(per_head * kCudaDepth);
    packed.value = take(per_head * kCudaDepth);
    if (backward) packed.grad = take(per_head * kCudaDepth);
    packed.tau = take(per_head);
    packed.log_sum = take(per_head);
    packed.delta = take(per_head);
    packed.query_norm = take(per_head);
    packed.self_logit = take(per_head);
    packed.key_norm = take(per_tile);
    packed.centre = take(centre);
    packed.box = take(boxes);
    packed.row = rows.mutable_data_ptr<int64_t>();
  }
};

Shape check_all(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                const at::Tensor& tau, const at::Tensor& centres, double dropout_p,
                const OptionalTensor& seeds, const OptionalTensor& order) {
  const Shape s =
      distance_attention::check(query, key, value, tau, centres, dropout_p, seeds, order);
  check_same_device(query, "query", key, "key");
  check_same_device(query, "query", value, "value");
  check_same_device(query, "query", tau, "tau");
  check_same_device(query, "query", centres, "centres");
  return s;
}

// Returns an empty tensor [B, H, Q, d] with the memory layout [B, Q, H, d].
at::Tensor empty_rows(const Shape& s, const at::TensorOptions& options) {
  return at::empty({s.batch, s.queries, s.heads, s.depth}, options).transpose(1, 2);
}

std::tuple<at::Tensor, at::Tensor> attention_cuda(const at::Tensor& query, const at::Tensor& key,
                                                  const at::Tensor& value, const at::Tensor& tau,
                                                  const at::Tensor& centres, double dropout_p,
                                                  const OptionalTensor& seeds,
                                                  const OptionalTensor& order) {
  const Shape s = check_all(query, key, value, tau, centres, dropout_p, seeds, order);
  const c10::DeviceGuard guard(query.device());
  const CudaStream stream = current_stream(query.device());
  Prepared prepared(s, query, key, value, tau, centres, dropout_p, seeds, order, false);
  CudaArguments& a = prepared.arguments;
  const at::TensorOptions wide = query.options().dtype(at::kFloat);
  at::Tensor out = empty_rows(s, wide), log_sum = at::empty({s.batch, s.heads, s.queries}, wide);
  a.out = out.mutable_data_ptr<float>();
  a.log_sum = log_sum.mutable_data_ptr<float>();
  distance_attention::pack_cuda(a, false, stream);
  distance_attention::forward_cuda(a, stream);
  return {out.to(query.scalar_type()), log_sum};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attention_backward_cuda(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& tau, const at::Tensor& centres,
    const at::Tensor& out, const at::Tensor& log_sum, double dropout_p,
    const OptionalTensor& seeds, const OptionalTensor& order) {
  const Shape s = check_all(query, key, value, tau, centres, dropout_p, seeds, order);
  TORCH_CHECK_VALUE(grad.sizes() == query.sizes() && out.sizes() == query.sizes(),
                    "grad and out must be ", query.sizes(), ", got ", grad.sizes(), " and ",
                    out.sizes());
  TORCH_CHECK_VALUE(log_sum.sizes() == tau.sizes() && log_sum.scalar_type() == at::kFloat,
                    "log_sum must be float32 ", tau.sizes(), ", got ", log_sum.scalar_type(), " ",
                    log_sum.sizes());
  check_same_device(query, "query", grad, "grad");
  const c10::DeviceGuard guard(query.device());
  const CudaStream stream = current_stream(query.device());
  Prepared prepared(s, query, key, value, tau, centres, dropout_p, seeds, order, true);
  CudaArguments& a = prepared.arguments;
  const at::Tensor logs = log_sum.contiguous();
  const at::TensorOptions wide = query.options().dtype(at::kFloat);
  at::Tensor d_query = empty_rows(s, wide), d_key = empty_rows(s, wide),
             d_value = empty_rows(s, wide), d_tau = at::empty(tau.sizes(), wide);
  a.grad = view(grad, "grad");
  a.result = view(out, "out");
  a.log_sum_in = logs.const_data_ptr<float>();
  a.d_query = d_query.mutable_data_ptr<float>();
  a.d_key = d_key.mutable_data_ptr<float>();
  a.d_value = d_value.mutable_data_ptr<float>();
  a.d_tau = d_tau.mutable_data_ptr<float>();
  distance_attention::pack_cuda(a, true, stream);
  distance_attention::backward_cuda(a, stream);
  const at::ScalarType type = query.scalar_type();
  return {d_query.to(type), d_key.to(type), d_value.to(type), d_tau.to(tau.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CUDA, m) {
  m.impl("distance_attention", &attention_cuda);
  m.impl("distance_attention_backward", &attention_backward_cuda);
  m.impl("attention_order", &attention_order_cuda);
}

}  // namespace opus
