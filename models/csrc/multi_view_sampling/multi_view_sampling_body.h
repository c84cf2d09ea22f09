// Reading maps around projected points, for any lane vector (no include guard: included after
// common/lanes.h for every instruction set). A lane is a channel.

namespace opus {
namespace OPUS_TARGET {
namespace sampling_body {

using namespace multi_view_sampling;

// sum[v] += weight * texel over reads, for NV vectors of adjacent channels. Products are rounded,
// and overflow, before they are added, as in the reference implementation and on processors without
// a fused operation.
template <int NV, typename V, typename S, typename T, typename Count>
OPUS_BODY void add_reads(const S* const* texels, const T* weights, Count count, int64_t first,
                         V* sum) {
  OPUS_UNROLL
  for (int i = 0; i < count; ++i) {
    const V weight = Lanes<V>::fill(weights[i]);
    const S* texel = texels[i] + first;
    OPUS_UNROLL
    for (int v = 0; v < NV; ++v) {
      sum[v] = sum[v] + weight * Lanes<V>::load(texel + v * Lanes<V>::kWidth);
    }
  }
}

// Adds weight * grad to NV vectors of a texel's gradient.
template <int NV, typename V, typename T>
OPUS_BODY void add_adjacent(T weight, const T* grad, int first, T* texel) {
  const V factor = Lanes<V>::fill(weight);
  OPUS_UNROLL
  for (int v = 0; v < NV; ++v) {
    T* at = texel + first + v * Lanes<V>::kWidth;
    const V g = Lanes<V>::load(grad + first + v * Lanes<V>::kWidth);
    Lanes<V>::store(at, fmadd(factor, g, Lanes<V>::load(at)));
  }
}

// Adds the products of grad with the four texels, lane by lane, to dot. The paired channels
// start at `of_grad` and `of_texel`.
template <int NV, typename V, typename S, typename T>
OPUS_BODY void dot_adjacent(const S* const* texels, const T* grad, int of_grad, int64_t of_texel,
                            V* dot) {
  OPUS_UNROLL
  for (int v = 0; v < NV; ++v) {
    const int at = v * Lanes<V>::kWidth;
    const V g = Lanes<V>::load(grad + of_grad + at);
    OPUS_UNROLL
    for (int k = 0; k < 4; ++k) {
      dot[k] = fmadd(g, Lanes<V>::load(texels[k] + of_texel + at), dot[k]);
    }
  }
}

// Gradients of a level's weight and of the pixel, from the four dots of the level.
template <typename T>
struct PixelGradient {
  T weight, u, v;
};

template <typename T>
OPUS_BODY PixelGradient<T> pixel_gradient(const Taps<T>& taps, const T* dot, T weight, T x_per_u,
                                          T y_per_v) {
  T value = 0, dx = 0, dy = 0;
  OPUS_UNROLL
  for (int k = 0; k < 4; ++k) {
    const int i = k & 1, j = k >> 1;
    value += taps.wy[j] * taps.wx[i] * dot[k];
    dx += taps.wy[j] * taps.sx[i] * dot[k];
    dy += taps.sy[j] * taps.wx[i] * dot[k];
  }
  return {value, weight * dx * x_per_u, weight * dy * y_per_v};
}

// Adds the gradient of a pixel to that of the point that was projected there.
template <typename T>
OPUS_BODY void point_gradient(const Projection<T>& at, T du, T dv, const T* matrix, T* d_point) {
  const T dx = du / at.depth, dy = dv / at.depth;
  const T dw = at.behind ? T(0) : -(dx * at.u + dy * at.v);
  OPUS_UNROLL
  for (int a = 0; a < 3; ++a) {
    d_point[a] += dx * matrix[a] + dy * matrix[4 + a] + dw * matrix[8 + a];
  }
}

}  // namespace sampling_body
}  // namespace OPUS_TARGET
}  // namespace opus
