// Projecting points into the cameras of a frame and reading maps bilinearly, host and device.
#pragma once

#include <cstdint>

#include "common/defs.h"

namespace opus {
namespace multi_view_sampling {

// Depths are clamped to this from below; up to it a point is invalid.
constexpr double kMinDepth = 1e-5;
constexpr int kMaxLevels = 16;

template <typename T>
OPUS_HD bool is_finite(T value) {
  return value - value == T(0);
}

// A point in the camera that a frame reads.
template <typename T>
struct Projection {
  int camera;   // -1 if the pixel is not finite
  T u, v;       // pixel
  T depth;      // clamped
  bool behind;  // whether the depth was clamped: then it has no gradient
};

// Row i of a 4 x 4 matrix times (x, y, z, 1), in this order of operations.
template <typename T>
OPUS_HD T transform_row(const T* m, int i, const T* p) {
  return m[4 * i] * p[0] + m[4 * i + 1] * p[1] + m[4 * i + 2] * p[2] + m[4 * i + 3];
}

// Row 2 gives the depth, which is checked first: most cameras face other directions.
template <typename T>
OPUS_HD Projection<T> project(const T* matrix, const T* point, int camera, T w) {
  Projection<T> projection;
  projection.camera = camera;
  projection.behind = !(w >= T(kMinDepth));
  projection.depth = w < T(kMinDepth) ? T(kMinDepth) : w;
  projection.u = transform_row(matrix, 0, point) / projection.depth;
  projection.v = transform_row(matrix, 1, point) / projection.depth;
  return projection;
}

// The lowest-numbered camera that sees the point; camera 0 if none does.
template <typename T>
OPUS_HD Projection<T> choose_camera(const T* matrices, int num_cams, const T* point, T width,
                                    T height) {
  Projection<T> chosen;
  for (int n = 0; n < num_cams; ++n) {
    const T w = transform_row(matrices + 16 * n, 2, point);
    const bool in_front = w > T(kMinDepth);
    if (n > 0 && !in_front) continue;
    const Projection<T> here = project(matrices + 16 * n, point, n, w);
    const bool valid = in_front && here.u > T(0) && here.u < width && here.v > T(0) &&
                       here.v < height;
    if (n == 0 || valid) chosen = here;
    if (valid) break;
  }
  if (!is_finite(chosen.u) || !is_finite(chosen.v)) chosen.camera = -1;
  return chosen;
}

// The four texels around a position and their weights. A texel outside has weight 0 and is replaced
// by the other texel of the row or column, which is read anyway, so that values that are not finite
// elsewhere do not enter the sum.
template <typename T>
struct Taps {
  int x[2], y[2];
  T wx[2], wy[2];    // weight of the column and of the row, 0 outside
  T sx[2], sy[2];    // derivative of the weight, 0 only outside

  // Whether there is a texel k: left and right of the upper row, then of the lower one.
  OPUS_HD bool exists(int k) const { return sx[k & 1] != T(0) && sy[k >> 1] != T(0); }
};

// Returns false if all four texels are outside, also for NaN.
template <typename T>
OPUS_HD bool find_taps(T x, T y, int w, int h, Taps<T>& taps) {
  if (!(x > T(-1) && x < T(w) && y > T(-1) && y < T(h))) return false;
  const int x0 = static_cast<int>(x + T(1)) - 1, y0 = static_cast<int>(y + T(1)) - 1;
  // x + 1 may have been rounded up to the next integer.
  const int left = T(x0) > x ? x0 - 1 : x0, top = T(y0) > y ? y0 - 1 : y0;
  const T fx = x - T(left), fy = y - T(top);
  for (int i = 0; i < 2; ++i) {
    const bool in_x = left + i >= 0 && left + i < w, in_y = top + i >= 0 && top + i < h;
    taps.x[i] = in_x ? left + i : left + 1 - i;
    taps.y[i] = in_y ? top + i : top + 1 - i;
    taps.wx[i] = in_x ? (i ? fx : T(1) - fx) : T(0);
    taps.wy[i] = in_y ? (i ? fy : T(1) - fy) : T(0);
    taps.sx[i] = in_x ? T(2 * i - 1) : T(0);
    taps.sy[i] = in_y ? T(2 * i - 1) : T(0);
  }
  return true;
}

// The group whose level weights weigh group g at frame t.
OPUS_HD int paired_group(int t, int g, int num_frames, int num_groups, bool permuted) {
  return permuted ? (t * num_groups + g) / num_frames : g;
}

struct Shape {
  int64_t batch, images, queries, channels;
  int frames, cams, groups, points, levels, per_group;
  int64_t img_h, img_w;
  bool permuted;

  OPUS_HD int64_t points_per_query() const { return static_cast<int64_t>(groups) * points; }
  OPUS_HD int64_t samples_per_query() const { return points_per_query() * frames; }
};

// One level: channel c of texel (image, y, x) lies at image * image_stride + y * row_stride +
// x * column_stride + c * channel_stride of sample b's data.
template <typename S>
struct Level {
  S* data;
  int64_t batch_stride, image_stride, channel_stride, row_stride, column_stride;
  int w, h;

  OPUS_HD S* texel(int64_t b, int64_t image, int y, int x) const {
    return data + b * batch_stride + image * image_stride + y * row_stride + x * column_stride;
  }
};

template <typename T>
struct Inputs {
  const T *points, *matrices, *weights;

  OPUS_HD const T* point(const Shape& s, int64_t bq, int64_t gp) const {
    return points + 3 * (bq * s.points_per_query() + gp);
  }
  OPUS_HD Projection<T> camera(const Shape& s, int64_t b, int t, const T* point) const {
    return choose_camera(matrices + 16 * (b * s.images + t * s.cams), s.cams, point,
                         static_cast<T>(s.img_w), static_cast<T>(s.img_h));
  }
  // Offset of the level weights of frame t, group g, point p.
  OPUS_HD int64_t weight_row(const Shape& s, int64_t bq, int t, int g, int p) const {
    const int paired = paired_group(t, g, s.frames, s.groups, s.permuted);
    return (bq * s.points_per_query() + paired * s.points + p) * s.levels;
  }
};

// A sample is one point in one frame; the output has one row for each.
struct Sample {
  int g, t, p;
};

OPUS_HD Sample sample_at(const Shape& s, int index) {
  return {index / (s.frames * s.points), index / s.points % s.frames, index % s.points};
}

template <typename S, typename T>
OPUS_HD bool taps_of(const Shape& s, const Level<S>& level, const Projection<T>& at,
                     Taps<T>& taps) {
  const T x = at.u / static_cast<T>(s.img_w) * static_cast<T>(level.w - 1);
  const T y = at.v / static_cast<T>(s.img_h) * static_cast<T>(level.h - 1);
  return find_taps(x, y, level.w, level.h, taps);
}

}  // namespace multi_view_sampling
}  // namespace opus
