// Decodes a JPEG file, resizes it and crops it in one pass over its blocks.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cstdint>
#include <memory>

#include "common/check.h"
#include "jpeg_crop/decoder.h"

namespace opus {
namespace {

using namespace jpeg_crop;

constexpr int64_t kMaxReduction = 256;

void check_output(const at::Tensor& out) {
  const bool fits = out.dim() == 3 && out.scalar_type() == at::kByte && out.size(2) == 3 &&
                    out.numel() > 0 && out.stride(2) == 1 && out.stride(1) == 3 &&
                    out.stride(0) >= out.size(1) * 3 && out.size(0) <= kMaxSide &&
                    out.size(1) <= kMaxSide;
  TORCH_CHECK_VALUE(fits, "out must be uint8 [h, w, 3] of whole rows, at most ", kMaxSide,
                    " by side, got ", out.scalar_type(), " ", out.sizes(), " of strides ",
                    out.strides());
}

bool jpeg_crop_cpu(at::Tensor& out, const at::Tensor& data, int64_t reduction,
                   at::IntArrayRef full, int64_t top, at::IntArrayRef resized,
                   at::IntArrayRef crop, bool flip, int64_t method) {
  check_output(out);
  TORCH_CHECK_VALUE(data.dim() == 1 && data.scalar_type() == at::kByte && data.is_contiguous(),
                    "data must be uint8 [n], got ", data.scalar_type(), " ", data.sizes());
  TORCH_CHECK_VALUE(reduction == 1 || reduction == 2 || reduction == 4 || reduction == 8,
                    "reduction must be 1, 2, 4 or 8, got ", reduction);
  TORCH_CHECK_VALUE(method == 0 || method == 1, "method must be 0 or 1, got ", method);
  check_length(full, 2, "full");
  check_length(resized, 2, "resized");
  check_length(crop, 2, "crop");
  for (int axis = 0; axis < 2; ++axis) {
    const bool in_range = full[axis] >= 1 && full[axis] <= kMaxSide && resized[axis] >= 1 &&
                          resized[axis] <= kMaxSide && crop[axis] >= -kMaxSide &&
                          crop[axis] <= kMaxSide && full[axis] <= kMaxReduction * resized[axis];
    TORCH_CHECK_VALUE(in_range && top >= 0 && top < full[0], "sizes must lie in [1, ", kMaxSide,
                      "], and no side shrink by more than ", kMaxReduction, ", got full ", full,
                      ", top ", top, ", resized ", resized, ", crop ", crop);
  }
  // Memory and tables are kept for the next image, which usually has the same size and tables.
  thread_local const std::unique_ptr<Decoder> decoder = std::make_unique<Decoder>();
  return decoder->run({data.const_data_ptr<uint8_t>(),
                       static_cast<size_t>(data.numel()),
                       static_cast<int>(reduction),
                       {full[0], full[1]},
                       top,
                       {resized[0], resized[1]},
                       {crop[0], crop[1]},
                       flip,
                       static_cast<Method>(method),
                       out.mutable_data_ptr<uint8_t>(),
                       out.size(0),
                       out.size(1),
                       out.stride(0)});
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) { m.impl("jpeg_crop", &jpeg_crop_cpu); }

}  // namespace opus
