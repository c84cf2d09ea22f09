// Transforms of tiles to the terms of products and back, on the host. A lane is a channel.
//
// No include guard: included once for every instruction set, after common/lanes.h.

namespace opus {
namespace OPUS_TARGET {
namespace winograd_tiles {

using namespace winograd_conv;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are not passed between functions

using V = Pack<float>;

OPUS_BODY V times(float factor, const V& x) { return Lanes<V>::fill(factor) * x; }
OPUS_BODY V times_plus(float factor, const V& x, const V& y) {
  return fmadd(Lanes<V>::fill(factor), x, y);
}

// Six inputs of a line to six factors.
struct OfInput {
  static constexpr int kFrom = kIn, kTo = kIn;
  static OPUS_BODY void line(const V* x, int step, V* to) {
    const V *x0 = x, *x1 = x + step, *x2 = x + 2 * step, *x3 = x + 3 * step, *x4 = x + 4 * step,
            *x5 = x + 5 * step;
    const V even = times_plus(-4, *x2, *x4), odd = times_plus(-4, *x1, *x3);
    const V near = *x4 - *x2, turn = times(2, *x3 - *x1);
    to[0] = times_plus(4, *x0, times_plus(-5, *x2, *x4));
    to[1] = even + odd;
    to[2] = even - odd;
    to[3] = near + turn;
    to[4] = near - turn;
    to[5] = times_plus(4, *x1, times_plus(-5, *x3, *x5));
  }
};

// Six products of a line to four outputs.
struct OfProducts {
  static constexpr int kFrom = kIn, kTo = kOut;
  static OPUS_BODY void line(const V* x, int step, V* to) {
    const V *x0 = x, *x1 = x + step, *x2 = x + 2 * step, *x3 = x + 3 * step, *x4 = x + 4 * step,
            *x5 = x + 5 * step;
    const V sum = *x1 + *x2, difference = *x1 - *x2;
    const V far_sum = *x3 + *x4, far_difference = *x3 - *x4;
    to[0] = *x0 + sum + far_sum;
    to[1] = times_plus(2, far_difference, difference);
    to[2] = times_plus(4, far_sum, sum);
    to[3] = times_plus(8, far_difference, difference) + *x5;
  }
};

// Four gradients of outputs to six of products: the transpose of OfProducts.
struct OfGradient {
  static constexpr int kFrom = kOut, kTo = kIn;
  static OPUS_BODY void line(const V* x, int step, V* to) {
    const V *x0 = x, *x1 = x + step, *x2 = x + 2 * step, *x3 = x + 3 * step;
    const V even = *x0 + *x2, odd = *x1 + *x3;
    const V far_even = times_plus(4, *x2, *x0);
    const V far_odd = times(2, times_plus(4, *x3, *x1));
    to[0] = *x0;
    to[1] = even + odd;
    to[2] = even - odd;
    to[3] = far_even + far_odd;
    to[4] = far_even - far_odd;
    to[5] = *x3;
  }
};

// Applies a transform to the columns and then to the rows of a square.
template <typename Transform>
OPUS_BODY void both_ways(const V* from, V* to) {
  constexpr int kFrom = Transform::kFrom, kTo = Transform::kTo;
  V half[kFrom * kTo];  // the columns of `from`, transformed, one after another
  for (int j = 0; j < kFrom; ++j) Transform::line(from + j, kFrom, half + j * kTo);
  for (int i = 0; i < kTo; ++i) Transform::line(half + i, kTo, to + i * kTo);
}

// Transforms the inputs of tiles, which start `before` pixels above and left of their outputs.
//   image  [I, H, W, channels], padded with zeros
//   terms  [36, end - begin, channels] of the tiles begin .. end
template <typename Transform>
void gather_tiles(const Tiles& tiles, const float* image, int64_t channels, int before,
                  int64_t begin, int64_t end, int64_t first, int64_t last, float* terms) {
  constexpr int kFrom = Transform::kFrom;
  const int64_t plane = (end - begin) * channels;
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t row = tile / tiles.columns;
    const int64_t top = row % tiles.rows * kOut - before;
    const int64_t left = tile % tiles.columns * kOut - before;
    const float* at = image + row / tiles.rows * tiles.height * tiles.width * channels;
    const float* pixels[kFrom * kFrom];
    for (int i = 0; i < kFrom * kFrom; ++i) {
      const int64_t y = top + i / kFrom, x = left + i % kFrom;
      const bool inside = y >= 0 && y < tiles.height && x >= 0 && x < tiles.width;
      pixels[i] = inside ? at + (y * tiles.width + x) * channels : nullptr;
    }
    float* to = terms + (tile - begin) * channels;
    for (int64_t c = 0; c < channels; c += V::kWidth) {
      V from[kFrom * kFrom], out[kProducts];
      for (int i = 0; i < kFrom * kFrom; ++i) {
        from[i] = pixels[i] == nullptr ? Lanes<V>::fill(0.0f) : Lanes<V>::load(pixels[i] + c);
      }
      both_ways<Transform>(from, out);
      for (int i = 0; i < kProducts; ++i) Lanes<V>::store(to + i * plane + c, out[i]);
    }
  }
}

inline void gather_inputs(const Tiles& tiles, const float* image, int64_t channels, int64_t begin,
                          int64_t end, int64_t first, int64_t last, float* terms) {
  gather_tiles<OfInput>(tiles, image, channels, 1, begin, end, first, last, terms);
}

inline void gather_gradients(const Tiles& tiles, const float* image, int64_t channels,
                             int64_t begin, int64_t end, int64_t first, int64_t last,
                             float* terms) {
  gather_tiles<OfGradient>(tiles, image, channels, 0, begin, end, first, last, terms);
}

// Writes the outputs of the tiles first .. last; `bias` may be null.
inline void scatter_outputs(const Tiles& tiles, const float* products, int64_t channels,
                            const float* bias, int64_t begin, int64_t end, int64_t first,
                            int64_t last, float* image) {
  const int64_t plane = (end - begin) * channels;
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t row = tile / tiles.columns;
    const int64_t top = row % tiles.rows * kOut, left = tile % tiles.columns * kOut;
    float* at = image + row / tiles.rows * tiles.height * tiles.width * channels;
    float* pixels[kOut * kOut];
    for (int i = 0; i < kOut * kOut; ++i) {
      const int64_t y = top + i / kOut, x = left + i % kOut;
      const bool inside = y < tiles.height && x < tiles.width;
      pixels[i] = inside ? at + (y * tiles.width + x) * channels : nullptr;
    }
    const float* from = products + (tile - begin) * channels;
    for (int64_t c = 0; c < channels; c += V::kWidth) {
      V terms[kProducts], out[kOut * kOut];
      for (int i = 0; i < kProducts; ++i) terms[i] = Lanes<V>::load(from + i * plane + c);
      both_ways<OfProducts>(terms, out);
      const V shift = bias == nullptr ? Lanes<V>::fill(0.0f) : Lanes<V>::load(bias + c);
      for (int i = 0; i < kOut * kOut; ++i) {
        if (pixels[i] != nullptr) Lanes<V>::store(pixels[i] + c, out[i] + shift);
      }
    }
  }
}

#pragma GCC diagnostic pop

}  // namespace winograd_tiles
}  // namespace OPUS_TARGET
}  // namespace opus
