// The sizes of a 3 x 3 convolution by Winograd's algorithm.
//
// F(4 x 4, 3 x 3), after Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv
// 1509.09308: a tile of 6 x 6 inputs gives 4 x 4 outputs with 36 products for each pair of
// channels, a quarter of the 144 of the definition. Interpolation points: 0, 1, -1, 2, -2 and
// infinity.
#pragma once

#include <cstdint>

#include "common/defs.h"

namespace opus {
namespace winograd_conv {

constexpr int kOut = 4, kIn = 6;
constexpr int kProducts = kIn * kIn;
// Numbers of channels must be multiples of this, a vector of AVX-512.
constexpr int kChannels = 16;

// Images [I, C, H, W], channels-last in memory, and their tiles, image by image and row by row.
struct Tiles {
  int64_t images, height, width, rows, columns;

  Tiles(int64_t images, int64_t height, int64_t width)
      : images(images),
        height(height),
        width(width),
        rows(num_blocks(height, kOut)),
        columns(num_blocks(width, kOut)) {}

  int64_t count() const { return images * rows * columns; }
};

}  // namespace winograd_conv
}  // namespace opus
