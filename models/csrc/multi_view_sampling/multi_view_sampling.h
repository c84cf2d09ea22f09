// Projecting points into the cameras of a frame and reading maps bilinearly, host and device.
#pragma once

#include <cstdint>

#include "common/defs.h"

namespace opus {
namespace multi_view_sampling {

// Depths are clamped to this from below; up to it a point is invalid.
constexpr double kMinDepth = 1e-5;

template <typename T>
OPUS_HD bool is_finite(T value) {
  return value - value == T(0);
}

// A point in the camera that a frame reads.
template <typename T>
struct Projection {
  int camera;   // -1 where the pixel is not finite
  T u, v;       // pixel
  T depth;      // clamped
  bool behind;  // whether the clamp took effect: then the depth passes no gradient
};

// Row i of a 4 x 4 matrix times (x, y, z, 1), in this order of operations.
template <typename T>
OPUS_HD T transform_row(const T* m, int i, const T* p) {
  return m[4 * i] * p[0] + m[4 * i + 1] * p[1] + m[4 * i + 2] * p[2] + m[4 * i + 3];
}

template <typename T>
OPUS_HD Projection<T> project(const T* matrix, const T* point) {
  const T w = transform_row(matrix, 2, point);
  Projection<T> projection;
  projection.behind = !(w >= T(kMinDepth));
  projection.depth = w < T(kMinDepth) ? T(kMinDepth) : w;
  projection.u = transform_row(matrix, 0, point) / projection.depth;
  projection.v = transform_row(matrix, 1, point) / projection.depth;
  projection.camera = w > T(kMinDepth) ? 0 : -1;  // for now: whether the depth is valid
  return projection;
}

// The lowest-numbered camera that sees the point; camera 0 if none does.
template <typename T>
OPUS_HD Projection<T> choose_camera(const T* matrices, int num_cams, const T* point, T width,
                                    T height) {
  Projection<T> chosen;
  for (int n = 0; n < num_cams; ++n) {
    Projection<T> here = project(matrices + 16 * n, point);
    const bool valid = here.camera == 0 && here.u > T(0) && here.u < width && here.v > T(0) &&
                       here.v < height;
    here.camera = n;
    if (n == 0 || valid) chosen = here;
    if (valid) break;
  }
  if (!is_finite(chosen.u) || !is_finite(chosen.v)) chosen.camera = -1;
  return chosen;
}

// The four texels around a position and their weights; weight 0 where there is no texel.
template <typename T>
struct Taps {
  int x[2], y[2];    // clamped into the map
  T wx[2], wy[2];    // weight of the column and of the row, 0 outside
  T sx[2], sy[2];    // derivative of the weight
};

// False where all four texels lie outside (positions that are not numbers included).
template <typename T>
OPUS_HD bool find_taps(T x, T y, int w, int h, Taps<T>& taps) {
  if (!(x > T(-1) && x < T(w) && y > T(-1) && y < T(h))) return false;
  const int x0 = static_cast<int>(x + T(1)) - 1, y0 = static_cast<int>(y + T(1)) - 1;
  // x + 1 may have been rounded up to the next integer.
  const int left = T(x0) > x ? x0 - 1 : x0, top = T(y0) > y ? y0 - 1 : y0;
  const T fx = x - T(left), fy = y - T(top);
  for (int i = 0; i < 2; ++i) {
    const bool in_x = left + i >= 0 && left + i < w, in_y = top + i >= 0 && top + i < h;
    taps.x[i] = in_x ? left + i : 0;
    taps.y[i] = in_y ? top + i : 0;
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

}  // namespace multi_view_sampling
}  // namespace opus
