// Compiled into CUDA builds only.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "adaptive_mixing/adaptive_mixing_check.h"
#include "adaptive_mixing/adaptive_mixing_cuda.h"
#include "common/launch.h"

namespace opus {
namespace {

using adaptive_mixing::CudaArguments;
using adaptive_mixing::Shape;

// Limit of scratch in global memory. The decoder's sizes fit into shared memory.
constexpr int64_t kMostScratch = int64_t(1) << 26;  // numbers
constexpr int64_t kMostScratchBlocks = 1024;

bool has_quads(const at::Tensor& rows) {
  return starts_at_quad(rows) && rows.stride(0) % 4 == 0;
}

// Arguments of the kernels, with ownership of the tensors.
struct Prepared {
  CudaArguments arguments{};
  at::Tensor x, parameters, scratch;

  Prepared(const Shape& s, const at::Tensor& sampled, const at::Tensor& generated, bool backward)
      : x(adaptive_mixing::with_whole_rows(sampled)),
        parameters(adaptive_mixing::with_whole_rows(generated)) {
    CudaArguments& a = arguments;
    a.storage = storage_of(x, "sampled");
    a.quads = s.c % 4 == 0 && s.s_in % 4 == 0 && has_quads(x) && has_quads(parameters);
    a.x = x.const_data_ptr();
    a.parameters = parameters.const_data_ptr();
    a.x_stride = x.stride(0);
    a.parameters_stride = parameters.stride(0);
    a.count = a.num_blocks = s.count;
    a.s_in = s.s_in;
    a.s_out = s.s_out;
    a.c = s.c;
    const int64_t size = adaptive_mixing::scratch_size(a, backward);
    if (a.quads && size <= adaptive_mixing::shared_size()) return;
    const int64_t most = std::clamp<int64_t>(kMostScratch / size, 1, kMostScratchBlocks);
    a.num_blocks = std::min(s.count, most);
    scratch = at::empty({a.num_blocks * size}, x.options().dtype(at::kFloat));
    a.scratch = scratch.mutable_data_ptr<float>();
  }
};

Shape check_all(const at::Tensor& sampled, const at::Tensor& parameters, int64_t out_points) {
  const Shape s = adaptive_mixing::check(sampled, parameters, out_points);
  check_same_device(sampled, "sampled", parameters, "parameters");
  return s;
}

at::Tensor mixing_cuda(const at::Tensor& sampled, const at::Tensor& parameters,
                       int64_t out_points) {
  const Shape s = check_all(sampled, parameters, out_points);
  const c10::DeviceGuard guard(sampled.device());
  Prepared prepared(s, sampled, parameters, false);
  at::Tensor out = at::empty({s.count, s.s_out, s.c}, sampled.options().dtype(at::kFloat));
  prepared.arguments.out = out.mutable_data_ptr<float>();
  adaptive_mixing::forward_cuda(prepared.arguments, current_stream(sampled.device()));
  return out.to(sampled.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> mixing_backward_cuda(const at::Tensor& grad,
                                                        const at::Tensor& sampled,
                                                        const at::Tensor& parameters,
                                                        int64_t out_points) {
  const Shape s = check_all(sampled, parameters, out_points);
  TORCH_CHECK_VALUE(grad.sizes() == at::IntArrayRef({s.count, s.s_out, s.c}), "grad must be [",
                    s.count, ", ", s.s_out, ", ", s.c, "], got ", grad.sizes());
  check_same_device(sampled, "sampled", grad, "grad");
  const c10::DeviceGuard guard(sampled.device());
  Prepared prepared(s, sampled, parameters, true);
  CudaArguments& a = prepared.arguments;
  const at::Tensor grads = aligned(grad.to(at::kFloat));
  const at::TensorOptions wide = sampled.options().dtype(at::kFloat);
  at::Tensor d_x = at::empty(sampled.sizes(), wide), d_p = at::empty(parameters.sizes(), wide);
  a.grad = grads.const_data_ptr<float>();
  a.d_x = d_x.mutable_data_ptr<float>();
  a.d_parameters = d_p.mutable_data_ptr<float>();
  adaptive_mixing::backward_cuda(a, current_stream(sampled.device()));
  return {d_x.to(sampled.scalar_type()), d_p.to(sampled.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CUDA, m) {
  m.impl("adaptive_mixing", &mixing_cuda);
  m.impl("adaptive_mixing_backward", &mixing_backward_cuda);
}

}  // namespace opus
