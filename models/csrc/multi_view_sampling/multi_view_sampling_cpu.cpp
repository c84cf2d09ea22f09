#include "multi_view_sampling/multi_view_sampling.h"

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/parallel.h"

namespace opus {
namespace {

namespace mvs = multi_view_sampling;

constexpr int64_t kQueriesPerTask = 8;
constexpr int kMaxLevels = 16;

struct Shape {
  int64_t batch, images, queries, channels;
  int frames, cams, groups, points, levels, per_group;
  int64_t img_h, img_w;
  bool permuted;

  int64_t points_per_query() const { return static_cast<int64_t>(groups) * points; }
};

// One level, channels last: texel (image, y, x) starts at image * image_stride + y * row_stride +
// x * column_stride of `data`.
template <typename T>
struct Level {
  T* data;
  int64_t batch_stride, image_stride, row_stride, column_stride;
  int w, h;

  T* texel(int64_t b, int64_t image, int y, int x) const {
    return data + b * batch_stride + image * image_stride + y * row_stride + x * column_stride;
  }
};

Shape check_shapes(at::TensorList feats, const at::Tensor& points, const at::Tensor& occ2img,
                   const at::Tensor& level_weights, int64_t img_h, int64_t img_w, int64_t num_cams,
                   bool permuted) {
  TORCH_CHECK_VALUE(points.dim() == 5 && points.size(4) == 3,
                    "points must be [B, Q, G, P, 3], got ", points.sizes());
  const int64_t B = points.size(0), Q = points.size(1), G = points.size(2), P = points.size(3);
  TORCH_CHECK_VALUE(occ2img.dim() == 4 && occ2img.size(0) == B && occ2img.size(2) == 4 &&
                        occ2img.size(3) == 4 && num_cams >= 1 && occ2img.size(1) % num_cams == 0,
                    "occ2img must be [", B, ", T * ", num_cams, ", 4, 4], got ", occ2img.sizes());
  const auto L = static_cast<int64_t>(feats.size());
  TORCH_CHECK_VALUE(L >= 1 && L <= kMaxLevels, "feats must have 1 to ", kMaxLevels,
                    " levels, got ", L);
  const int64_t images = occ2img.size(1), C = feats[0].size(2);
  for (const at::Tensor& feat : feats) {
    TORCH_CHECK_VALUE(feat.dim() == 5 && feat.size(0) == B && feat.size(1) == images &&
                          feat.size(2) == C && feat.size(3) >= 1 && feat.size(4) >= 1,
                      "feats must be [", B, ", ", images, ", ", C, ", h, w], got ", feat.sizes());
    TORCH_CHECK_VALUE(feat.scalar_type() == points.scalar_type(),
                      "feats and points must have one dtype, got ", feat.scalar_type(), " and ",
                      points.scalar_type());
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

// The maps with adjacent channels; copies only those that have them apart.
std::vector<at::Tensor> channels_last(at::TensorList feats) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& feat : feats) {
    const bool adjacent = feat.stride(2) == 1 || feat.size(2) == 1;
    result.push_back(adjacent ? feat
                              : feat.permute({0, 1, 3, 4, 2}).contiguous().permute({0, 1, 4, 2, 3}));
  }
  return result;
}

template <typename T>
std::vector<Level<T>> view_levels(const std::vector<at::Tensor>& feats) {
  std::vector<Level<T>> levels;
  for (const at::Tensor& feat : feats) {
    levels.push_back({const_cast<T*>(feat.const_data_ptr<T>()), feat.stride(0), feat.stride(1),
                      feat.stride(3), feat.stride(4), static_cast<int>(feat.size(4)),
                      static_cast<int>(feat.size(3))});
  }
  return levels;
}

template <typename T>
struct Inputs {
  const T *points, *matrices, *weights;

  const T* point(const Shape& s, int64_t bq, int64_t gp) const {
    return points + 3 * (bq * s.points_per_query() + gp);
  }
  mvs::Projection<T> camera(const Shape& s, int64_t b, int t, const T* point) const {
    return mvs::choose_camera(matrices + 16 * (b * s.images + t * s.cams), s.cams, point,
                              static_cast<T>(s.img_w), static_cast<T>(s.img_h));
  }
  // Offset of the level weights of frame t, group g, point p.
  int64_t weight_row(const Shape& s, int64_t bq, int t, int g, int p) const {
    const int paired = mvs::paired_group(t, g, s.frames, s.groups, s.permuted);
    return (bq * s.points_per_query() + paired * s.points + p) * s.levels;
  }
};

template <typename T>
bool taps_of(const Shape& s, const Level<T>& level, const mvs::Projection<T>& at,
             mvs::Taps<T>& taps) {
  const T x = at.u / static_cast<T>(s.img_w) * static_cast<T>(level.w - 1);
  const T y = at.v / static_cast<T>(s.img_h) * static_cast<T>(level.h - 1);
  return mvs::find_taps(x, y, level.w, level.h, taps);
}

// out[c] = sum over levels of the weighted features of one point in one frame.
template <typename T>
void sample(const Shape& s, const std::vector<Level<T>>& levels, int64_t b, int t, int g,
            const mvs::Projection<T>& at, const T* weights, T* out) {
  std::fill_n(out, s.per_group, T(0));
  if (at.camera < 0) return;
  const int64_t image = t * s.cams + at.camera;
  for (int l = 0; l < s.levels; ++l) {
    mvs::Taps<T> taps;
    if (!taps_of(s, levels[l], at, taps)) continue;
    const T* f[4];
    T w[4];
    for (int k = 0; k < 4; ++k) {
      f[k] = levels[l].texel(b, image, taps.y[k >> 1], taps.x[k & 1]) + g * s.per_group;
      w[k] = weights[l] * (taps.wy[k >> 1] * taps.wx[k & 1]);
    }
    for (int c = 0; c < s.per_group; ++c) {
      out[c] += (w[0] * f[0][c] + w[1] * f[1][c]) + (w[2] * f[2][c] + w[3] * f[3][c]);
    }
  }
}

template <typename T>
void forward(const Shape& s, const std::vector<Level<T>>& levels, const Inputs<T>& in, T* out) {
  const int64_t rows = s.batch * s.queries;
  parallel_tasks(num_blocks(rows, kQueriesPerTask), [&](int64_t task) {
    const int64_t end = std::min(rows, (task + 1) * kQueriesPerTask);
    for (int64_t bq = task * kQueriesPerTask; bq < end; ++bq) {
      const int64_t b = bq / s.queries;
      for (int gp = 0; gp < s.points_per_query(); ++gp) {
        const int g = gp / s.points, p = gp % s.points;
        const T* point = in.point(s, bq, gp);
        for (int t = 0; t < s.frames; ++t) {
          const int64_t row = ((bq * s.groups + g) * s.frames + t) * s.points + p;
          sample(s, levels, b, t, g, in.camera(s, b, t, point),
                 in.weights + in.weight_row(s, bq, t, g, p), out + row * s.per_group);
        }
      }
    }
  });
}

// Gradients of one point in one frame: adds to d_weights [L] and d_point [3].
template <typename T>
void sample_backward(const Shape& s, const std::vector<Level<T>>& levels, int64_t b, int t, int g,
                     const mvs::Projection<T>& at, const T* weights, const T* matrices,
                     const T* grad, T* d_weights, T* d_point) {
  const int64_t image = t * s.cams + at.camera;
  T du = 0, dv = 0;
  for (int l = 0; l < s.levels; ++l) {
    mvs::Taps<T> taps;
    if (!taps_of(s, levels[l], at, taps)) continue;
    const T* f[4];
    for (int k = 0; k < 4; ++k) {
      f[k] = levels[l].texel(b, image, taps.y[k >> 1], taps.x[k & 1]) + g * s.per_group;
    }
    T dot[4] = {0, 0, 0, 0};
    for (int c = 0; c < s.per_group; ++c) {
      for (int k = 0; k < 4; ++k) dot[k] += grad[c] * f[k][c];
    }
    T value = 0, dx = 0, dy = 0;
    for (int k = 0; k < 4; ++k) {
      const int i = k & 1, j = k >> 1;
      value += taps.wy[j] * taps.wx[i] * dot[k];
      dx += taps.wy[j] * taps.sx[i] * dot[k];
      dy += taps.sy[j] * taps.wx[i] * dot[k];
    }
    d_weights[l] += value;
    du += weights[l] * dx * static_cast<T>(levels[l].w - 1) / static_cast<T>(s.img_w);
    dv += weights[l] * dy * static_cast<T>(levels[l].h - 1) / static_cast<T>(s.img_h);
  }
  const T dx = du / at.depth, dy = dv / at.depth;
  const T dw = at.behind ? T(0) : -(dx * at.u + dy * at.v);
  const T* m = matrices + 16 * (b * s.images + image);
  for (int a = 0; a < 3; ++a) d_point[a] += dx * m[a] + dy * m[4 + a] + dw * m[8 + a];
}

// Gradients of points and level weights, parallel over queries: all frames and groups that share a
// point or a weight belong to one query, so no two tasks meet.
template <typename T>
void backward_points(const Shape& s, const std::vector<Level<T>>& levels, const Inputs<T>& in,
                     const T* grad, T* d_points, T* d_weights) {
  const int64_t rows = s.batch * s.queries;
  parallel_tasks(num_blocks(rows, kQueriesPerTask), [&](int64_t task) {
    const int64_t end = std::min(rows, (task + 1) * kQueriesPerTask);
    for (int64_t bq = task * kQueriesPerTask; bq < end; ++bq) {
      const int64_t b = bq / s.queries;
      for (int gp = 0; gp < s.points_per_query(); ++gp) {
        const int g = gp / s.points, p = gp % s.points;
        for (int t = 0; t < s.frames; ++t) {
          const mvs::Projection<T> at = in.camera(s, b, t, in.point(s, bq, gp));
          if (at.camera < 0) continue;
          const int64_t row = ((bq * s.groups + g) * s.frames + t) * s.points + p;
          const int64_t weight = in.weight_row(s, bq, t, g, p);
          sample_backward(s, levels, b, t, g, at, in.weights + weight, in.matrices,
                          grad + row * s.per_group, d_weights + weight,
                          d_points + 3 * (bq * s.points_per_query() + gp));
        }
      }
    }
  });
}

// Gradients of the maps, parallel over (batch, frame, group): each has texels of its own.
template <typename T>
void backward_feats(const Shape& s, const std::vector<Level<T>>& d_levels, const Inputs<T>& in,
                    const T* grad) {
  parallel_tasks(s.batch * s.frames * s.groups, [&](int64_t task) {
    const int g = static_cast<int>(task % s.groups);
    const int t = static_cast<int>(task / s.groups % s.frames);
    const int64_t b = task / s.groups / s.frames;
    for (int64_t bq = b * s.queries; bq < (b + 1) * s.queries; ++bq) {
      for (int p = 0; p < s.points; ++p) {
        const mvs::Projection<T> at = in.camera(s, b, t, in.point(s, bq, g * s.points + p));
        if (at.camera < 0) continue;
        const int64_t row = ((bq * s.groups + g) * s.frames + t) * s.points + p;
        const T* d_out = grad + row * s.per_group;
        const T* weights = in.weights + in.weight_row(s, bq, t, g, p);
        for (int l = 0; l < s.levels; ++l) {
          mvs::Taps<T> taps;
          if (!taps_of(s, d_levels[l], at, taps)) continue;
          for (int k = 0; k < 4; ++k) {
            const T w = weights[l] * (taps.wy[k >> 1] * taps.wx[k & 1]);
            if (w == T(0)) continue;
            T* d_texel = d_levels[l].texel(b, t * s.cams + at.camera, taps.y[k >> 1],
                                           taps.x[k & 1]) +
                         g * s.per_group;
            for (int c = 0; c < s.per_group; ++c) d_texel[c] += w * d_out[c];
          }
        }
      }
    }
  });
}

at::Tensor sampling_cpu(at::TensorList feats, const at::Tensor& points, const at::Tensor& occ2img,
                        const at::Tensor& level_weights, int64_t img_h, int64_t img_w,
                        int64_t num_cams, bool permuted) {
  const Shape s =
      check_shapes(feats, points, occ2img, level_weights, img_h, img_w, num_cams, permuted);
  const std::vector<at::Tensor> maps = channels_last(feats);
  const at::Tensor p = points.contiguous(), m = occ2img.contiguous(),
                   w = level_weights.contiguous();
  at::Tensor out = at::empty(
      {s.batch, s.queries, s.groups, static_cast<int64_t>(s.frames) * s.points, s.per_group},
      points.options());
  AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "multi_view_sampling", [&] {
    const Inputs<scalar_t> in{p.const_data_ptr<scalar_t>(), m.const_data_ptr<scalar_t>(),
                              w.const_data_ptr<scalar_t>()};
    forward(s, view_levels<scalar_t>(maps), in, out.data_ptr<scalar_t>());
  });
  return out;
}

std::tuple<std::vector<at::Tensor>, at::Tensor, at::Tensor> sampling_backward_cpu(
    const at::Tensor& grad, at::TensorList feats, const at::Tensor& points,
    const at::Tensor& occ2img, const at::Tensor& level_weights, int64_t img_h, int64_t img_w,
    int64_t num_cams, bool permuted, bool need_feats, bool need_points) {
  const Shape s =
      check_shapes(feats, points, occ2img, level_weights, img_h, img_w, num_cams, permuted);
  const at::Tensor d_out = grad.contiguous(), p = points.contiguous(), m = occ2img.contiguous(),
                   w = level_weights.contiguous();
  std::vector<at::Tensor> d_feats;
  if (need_feats) {
    for (const at::Tensor& feat : feats) {
      d_feats.push_back(
          at::zeros({s.batch, s.images, feat.size(3), feat.size(4), s.channels}, feat.options())
              .permute({0, 1, 4, 2, 3}));
    }
  }
  at::Tensor d_points = need_points ? at::zeros(points.sizes(), points.options())
                                    : at::empty({0}, points.options());
  at::Tensor d_weights = need_points ? at::zeros(level_weights.sizes(), points.options())
                                     : at::empty({0}, points.options());
  AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "multi_view_sampling_backward", [&] {
    const Inputs<scalar_t> in{p.const_data_ptr<scalar_t>(), m.const_data_ptr<scalar_t>(),
                              w.const_data_ptr<scalar_t>()};
    const scalar_t* g = d_out.const_data_ptr<scalar_t>();
    if (need_points) {
      const std::vector<at::Tensor> maps = channels_last(feats);
      backward_points(s, view_levels<scalar_t>(maps), in, g, d_points.data_ptr<scalar_t>(),
                      d_weights.data_ptr<scalar_t>());
    }
    if (need_feats) backward_feats(s, view_levels<scalar_t>(d_feats), in, g);
  });
  return {d_feats, d_points, d_weights};
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) {
  m.impl("multi_view_sampling", &sampling_cpu);
  m.impl("multi_view_sampling_backward", &sampling_backward_cpu);
}

}  // namespace opus
