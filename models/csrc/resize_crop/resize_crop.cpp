// Resizes the part of an image inside a crop, and writes it into memory of the caller.
#include "resize_crop/resize_crop.h"

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/avx2.h"
#include "common/check.h"
#include "resize_crop/resize_crop_avx2.h"

namespace opus {
namespace {

using namespace resize_crop;

// Limit of sides and reductions, within which sums of weights are exact.
constexpr int64_t kMaxSide = 1 << 15;
constexpr int64_t kMaxReduction = 256;
// Rows that are resized together.
constexpr int kRows = 4;

void resize_rows(const Axis& axis, int64_t skipped, const uint8_t* const* from, int count,
                 int64_t outputs, uint8_t* const* to) {
#if defined(OPUS_HAS_AVX2_KERNELS)
  if (use_avx2()) {
    const auto several = axis.is_exact() ? &avx2::resize_rows<kRows, true>
                                         : &avx2::resize_rows<kRows, false>;
    const auto single = axis.is_exact() ? &avx2::resize_rows<1, true>
                                        : &avx2::resize_rows<1, false>;
    if (count == kRows) return several(axis, skipped, from, outputs, to);
    for (int r = 0; r < count; ++r) single(axis, skipped, from + r, outputs, to + r);
    return;
  }
#endif
  for (int r = 0; r < count; ++r) resize_row(axis, skipped, from[r], outputs, to[r]);
}

void mix(const Axis& axis, int64_t output, const uint8_t* from, int64_t stride, int64_t bytes,
         uint8_t* to) {
#if defined(OPUS_HAS_AVX2_KERNELS)
  if (use_avx2()) {
    const auto mix_vectors = axis.is_exact() ? &avx2::mix_rows<true> : &avx2::mix_rows<false>;
    return mix_vectors(axis, output, from, stride, bytes, to);
  }
#endif
  mix_rows(axis, output, from, stride, bytes, to);
}

// Cache of rows of the image, resized along x. They are computed at their first use, and kept while
// rows of the output need them.
class ResizedRows {
 public:
  ResizedRows(const at::Tensor& image, const Axis& x, const Axis& y, int64_t top, int64_t left,
              int64_t outputs)
      : image_(image),
        x_(x),
        top_(top),
        left_(left),
        outputs_(outputs),
        stride_((outputs * kChannels + 31) / 32 * 32 + kSlack),
        capacity_(2 * y.taps + 8 * kRows),
        end_(y.end),
        base_(y.begin),
        done_(y.begin),
        rows_(capacity_ * stride_),
        row_bytes_(image.size(1) * kChannels),
        reach_(row_bytes_ + (x.taps + 1) * kChannels + kSlack) {}

  int64_t stride() const { return stride_; }

  // Rows [first, last); `first` never decreases. Rows past the last one are undefined.
  const uint8_t* get(int64_t first, int64_t last) {
    if (last + kRows - base_ > capacity_) {
      const int64_t kept = std::max<int64_t>(0, done_ - first);
      std::memmove(rows_.data(), row(first), kept * stride_);
      base_ = first;
      done_ = std::max(done_, first);
    }
    while (done_ < std::min(last, end_)) advance();
    return row(first);
  }

 private:
  uint8_t* row(int64_t number) { return rows_.data() + (number - base_) * stride_; }

  void advance() {
    const uint8_t* from[kRows];
    uint8_t* to[kRows];
    int count = 0;
    for (; count < kRows && done_ < end_; ++count, ++done_) {
      from[count] = source(done_ - top_, count);
      to[count] = row(done_);
    }
    resize_rows(x_, left_, from, count, outputs_, to);
  }

  // A row of the image. The last ones are copied, because kernels read past the end of a row.
  const uint8_t* source(int64_t number, int slot) {
    const uint8_t* from = image_.const_data_ptr<uint8_t>() + number * image_.stride(0);
    if ((image_.size(0) - 1 - number) * image_.stride(0) + row_bytes_ >= reach_) return from;
    copies_[slot].resize(reach_);
    std::memcpy(copies_[slot].data(), from, row_bytes_);
    return copies_[slot].data();
  }

  const at::Tensor& image_;
  const Axis& x_;
  int64_t top_, left_, outputs_, stride_, capacity_, end_, base_, done_;
  std::vector<uint8_t> rows_;
  int64_t row_bytes_, reach_;
  std::vector<uint8_t> copies_[kRows];
};

void check_arguments(const at::Tensor& out, const at::Tensor& image, at::IntArrayRef full,
                     at::IntArrayRef offset, at::IntArrayRef resized, at::IntArrayRef crop) {
  for (const auto& [tensor, name] : {std::pair(&out, "out"), std::pair(&image, "image")}) {
    const bool fits = tensor->dim() == 3 && tensor->scalar_type() == at::kByte &&
                      tensor->size(2) == kChannels && tensor->numel() > 0 &&
                      tensor->stride(2) == 1 && tensor->stride(1) == kChannels &&
                      tensor->stride(0) >= tensor->size(1) * kChannels;
    TORCH_CHECK_VALUE(fits, name, " must be uint8 [H, W, 3] of whole rows, got ",
                      tensor->scalar_type(), " ", tensor->sizes(), " of strides ",
                      tensor->strides());
    TORCH_CHECK_VALUE(tensor->size(0) <= kMaxSide && tensor->size(1) <= kMaxSide, name,
                      " is larger than ", kMaxSide, ": ", tensor->sizes());
  }
  check_length(full, 2, "full");
  check_length(offset, 2, "offset");
  check_length(resized, 2, "resized");
  check_length(crop, 2, "crop");
  for (int axis = 0; axis < 2; ++axis) {
    const bool in_range = full[axis] >= 1 && full[axis] <= kMaxSide && resized[axis] >= 1 &&
                          resized[axis] <= kMaxSide && crop[axis] >= -kMaxSide &&
                          crop[axis] <= kMaxSide && offset[axis] >= 0 &&
                          offset[axis] <= full[axis] - image.size(axis) &&
                          full[axis] <= kMaxReduction * resized[axis];
    TORCH_CHECK_VALUE(in_range, "sizes must lie in [1, ", kMaxSide,
                      "], the image in the full one, and no side shrink by more than ",
                      kMaxReduction, ", got full ", full, ", offset ", offset,
                      ", image ", image.sizes(), ", resized ", resized, ", crop ", crop);
  }
}

// Runs only on the calling thread: data workers process samples in parallel.
void resize_crop_cpu(at::Tensor& out, const at::Tensor& image, at::IntArrayRef full,
                     at::IntArrayRef offset, at::IntArrayRef resized, at::IntArrayRef crop,
                     bool flip, int64_t method_number) {
  check_arguments(out, image, full, offset, resized, crop);
  TORCH_CHECK_VALUE(method_number >= 0 && method_number <= 2, "method must be 0, 1 or 2, got ",
                    method_number);
  const Method method = static_cast<Method>(method_number);
  const int64_t height = out.size(0), width = out.size(1);
  const Axis y = make_axis(full[0], resized[0], crop[0], height, false, kPair, method);
  const Axis x = make_axis(full[1], resized[1], crop[1], width, flip, kGroup, method);
  const Axis* axes[] = {&y, &x};
  for (int axis = 0; axis < 2; ++axis) {
    const bool is_there = axes[axis]->begin >= offset[axis] &&
                          axes[axis]->end <= offset[axis] + image.size(axis);
    TORCH_CHECK_VALUE(is_there || axes[axis]->begin == axes[axis]->end,
                      "image must hold the pixels from ", axes[axis]->begin, " to ",
                      axes[axis]->end, " of axis ", axis, ", it has ", offset[axis], " to ",
                      offset[axis] + image.size(axis));
  }
  uint8_t* to = out.mutable_data_ptr<uint8_t>();
  const int64_t bytes = width * kChannels;
  if (x.begin == x.end || y.begin == y.end) {
    for (int64_t i = 0; i < height; ++i) std::memset(to + i * out.stride(0), 0, bytes);
    return;
  }
  ResizedRows rows(image, x, y, offset[0], offset[1], width);
  std::vector<uint8_t> line(rows.stride());
  for (int64_t i = 0; i < height; ++i, to += out.stride(0)) {
    if (y.first[i] < 0) {
      std::memset(to, 0, bytes);
      continue;
    }
    const uint8_t* from = rows.get(y.first[i], y.first[i] + y.taps);
    const bool is_whole = bytes % 32 == 0;
    uint8_t* target = is_whole ? to : line.data();
    mix(y, i, from, rows.stride(), bytes, target);
    if (!is_whole) std::memcpy(to, target, bytes);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) { m.impl("resize_crop", &resize_crop_cpu); }

}  // namespace opus
