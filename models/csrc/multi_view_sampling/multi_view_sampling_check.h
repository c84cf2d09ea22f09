// Checks of the arguments of multi-view sampling, and views of its maps, for all devices.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "multi_view_sampling/multi_view_sampling.h"

namespace opus {
namespace multi_view_sampling {

inline Shape check(at::TensorList feats, const at::Tensor& points, const at::Tensor& occ2img,
                   const at::Tensor& level_weights, int64_t img_h, int64_t img_w,
                   int64_t num_cams, bool permuted) {
  TORCH_CHECK_VALUE(points.dim() == 5 && points.size(4) == 3,
                    "points must be [B, Q, G, P, 3], got ", points.sizes());
  const int64_t B = points.size(0), Q = points.size(1), G = points.size(2), P = points.size(3);
  TORCH_CHECK_VALUE(occ2img.dim() == 4 && occ2img.size(0) == B && occ2img.size(2) == 4 &&
                        occ2img.size(3) == 4 && num_cams >= 1 && occ2img.size(1) % num_cams == 0,
                    "occ2img must be [", B, ", T * ", num_cams, ", 4, 4], got ", occ2img.sizes());
  TORCH_CHECK_VALUE(occ2img.size(1) >= 1, "occ2img must hold one image at least, got none");
  const auto L = static_cast<int64_t>(feats.size());
  TORCH_CHECK_VALUE(L >= 1 && L <= kMaxLevels, "feats must have 1 to ", kMaxLevels,
                    " levels, got ", L);
  const int64_t images = occ2img.size(1), C = feats[0].dim() == 5 ? feats[0].size(2) : 0;
  for (const at::Tensor& feat : feats) {
    TORCH_CHECK_VALUE(feat.dim() == 5 && feat.size(0) == B && feat.size(1) == images &&
                          feat.size(2) == C && feat.size(3) >= 1 && feat.size(4) >= 1,
                      "feats must be [", B, ", ", images, ", ", C, ", h, w], got ", feat.sizes());
    TORCH_CHECK_VALUE(feat.scalar_type() == feats[0].scalar_type(),
                      "feats must have one dtype, got ", feats[0].scalar_type(), " and ",
                      feat.scalar_type());
    TORCH_CHECK_VALUE(feat.scalar_type() == points.scalar_type() ||
                          (points.scalar_type() == at::kFloat &&
                           (feat.scalar_type() == at::kHalf ||
                            feat.scalar_type() == at::kBFloat16)),
                      "feats must have the dtype of points, ", points.scalar_type(),
                      ", or half of its bits, got ", feat.scalar_type());
  }
  TORCH_CHECK_VALUE(G >= 1 && C % G == 0, "the ", C, " channels of feats do not divide into G=", G,
                    " groups");
  TORCH_CHECK_VALUE(level_weights.sizes() == at::IntArrayRef({B, Q, G, P, L}),
                    "level_weights must be ", at::IntArrayRef({B, Q, G, P, L}), ", got ",
                    level_weights.sizes());
  TORCH_CHECK_VALUE(occ2img.scalar_type() == points.scalar_type() &&
                        level_weights.scalar_type() == points.scalar_type(),
                    "occ2img and level_weights must have the dtype of points, ",
                    points.scalar_type(), ", got ", occ2img.scalar_type(), " and ",
                    level_weights.scalar_type());
  TORCH_CHECK_VALUE(img_h >= 1 && img_w >= 1, "img_hw must be positive, got ", img_h, " x ",
                    img_w);
  return {B,
          images,
          Q,
          C,
          static_cast<int>(images / num_cams),
          static_cast<int>(num_cams),
          static_cast<int>(G),
          static_cast<int>(P),
          static_cast<int>(L),
          static_cast<int>(C / G),
          img_h,
          img_w,
          permuted};
}

// A map whose channels are not adjacent is copied to channels-last if it has at most this many
// texels per read: otherwise a read costs as many cache lines as there are channels.
constexpr int64_t kReadsPerTexel = 2;

// The maps in the layout to read.
inline std::vector<at::Tensor> readable(at::TensorList feats, const Shape& s) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& feat : feats) {
    const bool adjacent = feat.stride(2) == 1 || feat.size(2) == 1;
    const int64_t texels = s.batch * s.images * feat.size(3) * feat.size(4);
    const int64_t reads = s.batch * s.queries * s.points * s.frames * 4;
    result.push_back(adjacent || texels > kReadsPerTexel * reads
                         ? feat
                         : feat.permute({0, 1, 3, 4, 2}).contiguous().permute({0, 1, 4, 2, 3}));
  }
  return result;
}

// S is the type of reads, of the same size as the type of the maps.
template <typename S>
std::vector<Level<S>> view_levels(at::TensorList feats) {
  std::vector<Level<S>> levels;
  for (const at::Tensor& feat : feats) {
    void* data = const_cast<void*>(feat.const_data_ptr());
    levels.push_back({static_cast<S*>(data), feat.stride(0), feat.stride(1), feat.stride(2),
                      feat.stride(3), feat.stride(4), static_cast<int>(feat.size(4)),
                      static_cast<int>(feat.size(3))});
  }
  return levels;
}

// Gradients of maps, zero: in the precision of the points, channels-last.
inline at::Tensor zero_sums(const at::Tensor& feat, const at::TensorOptions& options) {
  return at::zeros({feat.size(0), feat.size(1), feat.size(3), feat.size(4), feat.size(2)}, options)
      .permute({0, 1, 4, 2, 3});
}

inline void check_sums(at::TensorList sums, at::TensorList feats, const at::Tensor& points) {
  TORCH_CHECK_VALUE(sums.size() == feats.size(), "sums must have ", feats.size(), " maps, got ",
                    sums.size());
  for (size_t l = 0; l < sums.size(); ++l) {
    const at::Tensor& sum = sums[l];
    TORCH_CHECK_VALUE(sum.sizes() == feats[l].sizes() &&
                          sum.scalar_type() == points.scalar_type() &&
                          sum.device() == points.device() &&
                          sum.permute({0, 1, 3, 4, 2}).is_contiguous(),
                      "sums[", l, "] must be ", points.scalar_type(), " ", feats[l].sizes(),
                      ", channels-last, on the points' device");
  }
}

}  // namespace multi_view_sampling
}  // namespace opus
