#include <ATen/core/Tensor.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>

#define OPUS_WITH_AVX512
#include "common/parallel.h"
#include "common/targets.h"
#include "winograd_conv/winograd_conv.h"

#define OPUS_KERNEL_HEADER "winograd_conv/winograd_conv_cpu_kernel.h"
#include "common/for_each_target.h"

namespace opus {
namespace {

using winograd_conv::kChannels;
using winograd_conv::kProducts;
using winograd_conv::Tiles;

// The terms of this number of tiles fit into a cache while they are multiplied.
constexpr int64_t kTilesAtOnce = 192;
constexpr int64_t kTilesOfTask = 8;

void check_images(const at::Tensor& x, const char* name) {
  TORCH_CHECK_VALUE(x.dim() == 4 && x.scalar_type() == at::kFloat && x.size(1) % kChannels == 0 &&
                        x.size(1) > 0,
                    name, " must be float32 [I, C, H, W] with C a multiple of ", kChannels,
                    ", got ", x.scalar_type(), " ", x.sizes());
}

// Calls run(first, last) for tasks that share the tiles begin .. end.
template <typename Run>
void parallel_tiles(int64_t begin, int64_t end, const Run& run) {
  parallel_tasks(num_blocks(end - begin, kTilesOfTask), [&](int64_t task) {
    const int64_t first = begin + task * kTilesOfTask;
    run(first, std::min(end, first + kTilesOfTask));
  });
}

// Calls run(begin, end) for chunks of tiles, one after another.
template <typename Run>
void for_each_chunk(const Tiles& tiles, const Run& run) {
  for (int64_t begin = 0; begin < tiles.count(); begin += kTilesAtOnce) {
    run(begin, std::min(tiles.count(), begin + kTilesAtOnce));
  }
}

// [36, tiles, C] at the beginning of a buffer.
at::Tensor terms_in(const at::Tensor& buffer, int64_t tiles, int64_t channels) {
  return buffer.narrow(0, 0, kProducts * tiles * channels).view({kProducts, tiles, channels});
}

at::Tensor empty_terms(const Tiles& tiles, int64_t channels, const at::TensorOptions& options) {
  const int64_t most = std::min(tiles.count(), kTilesAtOnce);
  return at::empty({kProducts * most * channels}, options);
}

at::Tensor winograd_conv_cpu(const at::Tensor& input, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias) {
  check_images(input, "input");
  const int64_t in_channels = input.size(1);
  const int64_t out_channels = weight.dim() == 3 ? weight.size(2) : 0;
  TORCH_CHECK_VALUE(weight.dim() == 3 && weight.scalar_type() == at::kFloat &&
                        weight.size(0) == kProducts && weight.size(1) == in_channels &&
                        out_channels % kChannels == 0 && out_channels > 0,
                    "weight must be float32 [36, ", in_channels, ", K] with K a multiple of ",
                    kChannels, ", got ", weight.scalar_type(), " ", weight.sizes());
  const bool has_bias = bias.has_value() && bias->defined();
  TORCH_CHECK_VALUE(!has_bias || (bias->dim() == 1 && bias->size(0) == out_channels &&
                                  bias->scalar_type() == at::kFloat),
                    "bias must be float32 [", out_channels, "]");
  const at::Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast), u = weight.contiguous();
  const at::Tensor shift = has_bias ? bias->contiguous() : at::Tensor();
  const Tiles tiles(x.size(0), x.size(2), x.size(3));
  at::Tensor out = at::empty({tiles.images, out_channels, tiles.height, tiles.width},
                             x.options().memory_format(at::MemoryFormat::ChannelsLast));
  const at::Tensor factors = empty_terms(tiles, in_channels, x.options());
  const at::Tensor sums = empty_terms(tiles, out_channels, x.options());
  const float* in = x.const_data_ptr<float>();
  const float* added = has_bias ? shift.const_data_ptr<float>() : nullptr;
  float *terms = factors.data_ptr<float>(), *products = sums.data_ptr<float>(),
        *result = out.data_ptr<float>();
  for_each_chunk(tiles, [&](int64_t begin, int64_t end) {
    parallel_tiles(begin, end, [&](int64_t first, int64_t last) {
      OPUS_CALL_TARGET(winograd_tiles::gather_inputs, tiles, in, in_channels, begin, end, first,
                       last, terms);
    });
    at::Tensor product = terms_in(sums, end - begin, out_channels);
    at::bmm_out(product, terms_in(factors, end - begin, in_channels), u);
    parallel_tiles(begin, end, [&](int64_t first, int64_t last) {
      OPUS_CALL_TARGET(winograd_tiles::scatter_outputs, tiles, products, out_channels, added, begin,
                       end, first, last, result);
    });
  });
  return out;
}

at::Tensor winograd_weight_grad_cpu(const at::Tensor& input, const at::Tensor& grad) {
  check_images(input, "input");
  check_images(grad, "grad");
  TORCH_CHECK_VALUE(input.size(0) == grad.size(0) && input.size(2) == grad.size(2) &&
                        input.size(3) == grad.size(3),
                    "grad must have the images of input, got ", grad.sizes(), " next to ",
                    input.sizes());
  const at::Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor g = grad.contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t in_channels = x.size(1), out_channels = g.size(1);
  const Tiles tiles(x.size(0), x.size(2), x.size(3));
  at::Tensor sum = at::zeros({kProducts, in_channels, out_channels}, x.options());
  const at::Tensor factors = empty_terms(tiles, in_channels, x.options());
  const at::Tensor grads = empty_terms(tiles, out_channels, x.options());
  const float *in = x.const_data_ptr<float>(), *out = g.const_data_ptr<float>();
  float *of_in = factors.data_ptr<float>(), *of_out = grads.data_ptr<float>();
  for_each_chunk(tiles, [&](int64_t begin, int64_t end) {
    parallel_tiles(begin, end, [&](int64_t first, int64_t last) {
      OPUS_CALL_TARGET(winograd_tiles::gather_inputs, tiles, in, in_channels, begin, end, first,
                       last, of_in);
      OPUS_CALL_TARGET(winograd_tiles::gather_gradients, tiles, out, out_channels, begin, end,
                       first, last, of_out);
    });
    const at::Tensor turned = terms_in(factors, end - begin, in_channels).transpose(1, 2);
    at::baddbmm_out(sum, sum, turned, terms_in(grads, end - begin, out_channels));
  });
  return sum;
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) {
  m.impl("winograd_conv", &winograd_conv_cpu);
  m.impl("winograd_weight_grad", &winograd_weight_grad_cpu);
}

}  // namespace opus
