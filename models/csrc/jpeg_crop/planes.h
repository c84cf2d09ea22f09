// Planes of luma and chroma: resizing and conversion to colours. The filters are those of
// resize_crop/resize_crop.h; values between the passes are rounded to 8 bits as there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "jpeg_crop/header.h"
#include "resize_crop/resize_crop.h"

namespace opus {
namespace jpeg_crop {

using resize_crop::Axis;

// Number of outputs that are resized together, in two halves, and bytes that a half may span.
constexpr int kOutputs = 8, kHalf = 4, kSpan = 16;
// Bytes past the end of a row that may be read or written.
constexpr int64_t kSlack = 64;

// An axis of columns in the order in which vectors are computed.
//
// Each half of eight outputs reads 16 pixels. `picks` selects bytes of them: two pixels of each
// output as 16-bit numbers, which are multiplied with `weights`.
struct ColumnTable {
  std::vector<int32_t> begin;   // [halves], first pixel
  std::vector<uint8_t> picks;   // [groups, pairs, 2, 16]
  std::vector<int16_t> weights;  // [groups, pairs, 2, 8]
  int pairs = 0;
  bool fits = false;  // whether no half spans too many pixels

  void make(const Axis& axis, int64_t outputs) {
    const int64_t groups = (outputs + kOutputs - 1) / kOutputs;
    pairs = axis.taps / 2;
    begin.assign(groups * 2, 0);
    picks.assign(groups * pairs * 2 * kSpan, 0x80);
    weights.assign(groups * pairs * 2 * kSpan / 2, 0);
    fits = true;
    for (int64_t half = 0; half < groups * 2; ++half) {
      const int64_t low = half * kHalf, high = std::min(outputs, low + kHalf);
      if (low >= high) continue;
      begin[half] = *std::min_element(axis.first.begin() + low, axis.first.begin() + high);
      for (int64_t i = low; i < high; ++i) {
        const int from = axis.first[i] - begin[half];
        if (from + axis.taps > kSpan) {
          fits = false;
          return;
        }
        for (int tap = 0; tap < axis.taps; ++tap) {
          const int64_t row = (half / 2 * pairs + tap / 2) * 2 + half % 2;
          const int64_t column = (i - low) * 2 + tap % 2;
          picks[row * kSpan + column * 2] = static_cast<uint8_t>(from + tap);
          weights[row * kSpan / 2 + column] = axis.of(i)[tap];
        }
      }
    }
  }
};

// A row of one plane; `from` is the pixel `skipped` of the axis.
inline void resize_plane_row(const Axis& axis, int64_t skipped, const uint8_t* from,
                             int64_t outputs, uint8_t* to) {
  for (int64_t i = 0; i < outputs; ++i) {
    const uint8_t* pixel = from + axis.first[i] - skipped;
    int32_t sum = 0;
    for (int tap = 0; tap < axis.taps; ++tap) sum += axis.of(i)[tap] * pixel[tap];
    to[i] = resize_crop::rounded(sum, axis.shift);
  }
}

// Factors of the conversion to RGB (ITU-T T.871), with 13 binary digits. Chroma has 7 more, and
// products lose 15, so that 5 remain.
constexpr int kColourDigits = 13, kChromaDigits = 7, kColourShift = 5;
constexpr int16_t kRedOfRed = 11485, kGreenOfBlue = 2819, kGreenOfRed = 5850, kBlueOfBlue = 14516;

inline int colour_product(int chroma, int factor) {
  return ((chroma - 128) * (1 << kChromaDigits) * factor + (1 << 14)) >> 15;
}

// Pixels [first, last) of a row, BGR.
inline void convert_row(const uint8_t* luma, const uint8_t* blue, const uint8_t* red, int64_t first,
                        int64_t last, uint8_t* to) {
  const auto pixel = [](int value) {
    return static_cast<uint8_t>(
        std::clamp((value + (1 << (kColourShift - 1))) >> kColourShift, 0, 255));
  };
  for (int64_t i = first; i < last; ++i) {
    const int y = luma[i] * (1 << kColourShift);
    to[3 * i] = pixel(y + colour_product(blue[i], kBlueOfBlue));
    to[3 * i + 1] =
        pixel(y - colour_product(blue[i], kGreenOfBlue) - colour_product(red[i], kGreenOfRed));
    to[3 * i + 2] = pixel(y + colour_product(red[i], kRedOfRed));
  }
}

}  // namespace jpeg_crop
}  // namespace opus
