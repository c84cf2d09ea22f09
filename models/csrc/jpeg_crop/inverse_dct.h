// Inverse discrete cosine transforms of 8 x 8 coefficients to 8, 4, 2 or 1 rows and columns.
//
// A transform to N points uses the N lowest frequencies. The result is the block at N / 8 of its
// size, without the frequencies that this size cannot represent. Columns are transformed first,
// then rows, both with weights of 13 binary digits and sums of 32 bits.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "jpeg_crop/header.h"

namespace opus {
namespace jpeg_crop {

constexpr int kWeightDigits = 13;
// Binary digits after the point between the two passes.
constexpr int kInnerDigits = 5;
constexpr int kFirstShift = kWeightDigits - kInnerDigits;
constexpr int kLastShift = kWeightDigits + kInnerDigits;
// Half a unit for rounding, and the middle grey, which is the origin of the values.
constexpr int32_t kLastBias = (1 << (kLastShift - 1)) + (128 << kLastShift);
// Blocks store their coefficients in rows of eight for all sizes of the transform.
constexpr int kStride = 8;

// weights[position][frequency] of a transform to `points` points.
using Weights = std::array<std::array<int16_t, kBlock>, kBlock>;

inline Weights make_weights(int points) {
  Weights weights{};
  const double pi = std::acos(-1.0);
  for (int x = 0; x < points; ++x) {
    for (int u = 0; u < points; ++u) {
      const double norm = u == 0 ? std::sqrt(0.125) : 0.5;
      const double weight = norm * std::cos((2 * x + 1) * u * pi / (2 * points));
      weights[x][u] = static_cast<int16_t>(std::lround(weight * (1 << kWeightDigits)));
    }
  }
  return weights;
}

inline const Weights& weights_of(int points) {
  static const std::array<Weights, 4> all = {make_weights(1), make_weights(2), make_weights(4),
                                             make_weights(8)};
  return all[points == 1 ? 0 : points == 2 ? 1 : points == 4 ? 2 : 3];
}

inline uint8_t pixel_of(int32_t sum) {
  return static_cast<uint8_t>(std::clamp((sum + kLastBias) >> kLastShift, 0, 255));
}

// Returns the value of a block whose only nonzero coefficient is the first.
inline uint8_t flat_pixel(int16_t first) {
  const int32_t weight = weights_of(1)[0][0];
  const int32_t inner = (first * weight + (1 << (kFirstShift - 1))) >> kFirstShift;
  return pixel_of(std::clamp(inner, -32768, 32767) * weight);
}

// Transform to any size in plain loops: `rows` x `columns` pixels at `to`.
inline void inverse_dct(const int16_t* block, int rows, int columns, uint8_t* to, int64_t stride) {
  const Weights &along_y = weights_of(rows), &along_x = weights_of(columns);
  for (int y = 0; y < rows; ++y) {
    int16_t inner[kBlock];
    for (int u = 0; u < columns; ++u) {
      int32_t sum = 1 << (kFirstShift - 1);
      for (int v = 0; v < rows; ++v) sum += along_y[y][v] * block[v * kStride + u];
      inner[u] = static_cast<int16_t>(std::clamp(sum >> kFirstShift, -32768, 32767));
    }
    for (int x = 0; x < columns; ++x) {
      int32_t sum = 0;
      for (int u = 0; u < columns; ++u) sum += along_x[x][u] * inner[u];
      to[y * stride + x] = pixel_of(sum);
    }
  }
}

}  // namespace jpeg_crop
}  // namespace opus
