// Bicubic resizing of 8-bit images with three channels, of the part that a crop keeps.
//
// The filter is the one of Pillow: the cubic kernel with a = -0.5, stretched by the reduction, rows
// first, rounded to 8 bits, then columns. Weights have 15 or 16 bits here (Pillow: 22), so that
// products of two pixels are added in one instruction; the outcome differs by one grey value at
// most.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace opus {
namespace resize_crop {

constexpr int kChannels = 3;
// Taps along a row are dealt in groups of so many, across rows in pairs; the last is filled up with
// weights of zero.
constexpr int kGroup = 4;
constexpr int kPair = 2;
// Bytes that the kernels may read behind a row.
constexpr int64_t kSlack = 64;

// One axis: which pixels make each pixel of the output, and with what weights.
struct Axis {
  int taps = 0;                  // of every output, a multiple of the group
  int shift = 0;                 // binary digits of the weights
  std::vector<int32_t> first;    // of each output, the first pixel; -1: outside, black
  std::vector<int16_t> weights;  // [outputs, taps]
  int64_t begin = 0, end = 0;    // pixels that have a weight anywhere

  const int16_t* of(int64_t output) const { return weights.data() + output * taps; }
};

inline double cubic(double x) {
  x = std::fabs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0.0;
}

// An axis of `full` pixels resized to `resized`, of which [crop, crop + outputs) is kept, turned
// round where `reversed`.
inline Axis make_axis(int64_t full, int64_t resized, int64_t crop, int64_t outputs, bool reversed,
                      int group) {
  const double scale = static_cast<double>(full) / static_cast<double>(resized);
  const double stretch = std::max(scale, 1.0), support = 2 * stretch;
  Axis axis;
  axis.first.assign(outputs, -1);
  std::vector<std::vector<double>> exact(outputs);
  size_t most = 1;
  double largest = 0;
  axis.begin = full;
  for (int64_t i = 0; i < outputs; ++i) {
    const int64_t at = crop + (reversed ? outputs - 1 - i : i);
    if (at < 0 || at >= resized) continue;
    const double centre = (static_cast<double>(at) + 0.5) * scale;
    const int64_t low = std::max<int64_t>(0, static_cast<int64_t>(centre - support + 0.5));
    const int64_t high = std::min(full, static_cast<int64_t>(centre + support + 0.5));
    double sum = 0;
    for (int64_t x = low; x < high; ++x) {
      exact[i].push_back(cubic((static_cast<double>(x) - centre + 0.5) / stretch));
      sum += exact[i].back();
    }
    for (double& weight : exact[i]) {
      weight /= sum;
      largest = std::max(largest, std::fabs(weight));
    }
    axis.first[i] = static_cast<int32_t>(low);
    most = std::max(most, exact[i].size());
    axis.begin = std::min(axis.begin, low);
    axis.end = std::max(axis.end, high);
  }
  axis.begin = std::min(axis.begin, axis.end);
  axis.taps = static_cast<int>(most + group - 1) / group * group;
  axis.shift = 16;
  while (axis.shift > 0 && largest * (1 << axis.shift) > 32000.0) --axis.shift;
  axis.weights.assign(outputs * axis.taps, 0);
  for (int64_t i = 0; i < outputs; ++i) {
    int16_t* weights = axis.weights.data() + i * axis.taps;
    int32_t lacking = exact[i].empty() ? 0 : 1 << axis.shift;
    for (size_t t = 0; t < exact[i].size(); ++t) {
      weights[t] = static_cast<int16_t>(std::lround(exact[i][t] * (1 << axis.shift)));
      lacking -= weights[t];
    }
    // Areas of one value keep it, however small the weights are.
    *std::max_element(weights, weights + axis.taps) += static_cast<int16_t>(lacking);
  }
  return axis;
}

inline uint8_t rounded(int32_t sum, int shift) {
  return static_cast<uint8_t>(std::clamp((sum + (1 << shift >> 1)) >> shift, 0, 255));
}

// Rows of pixels on their way: `from` may be read kSlack bytes behind its last pixel.
inline void resize_row(const Axis& axis, int64_t skipped, const uint8_t* from, int64_t outputs,
                       uint8_t* to) {
  for (int64_t i = 0; i < outputs; ++i) {
    int32_t sum[kChannels] = {};
    if (axis.first[i] >= 0) {
      const uint8_t* pixel = from + (axis.first[i] - skipped) * kChannels;
      const int16_t* weights = axis.of(i);
      for (int t = 0; t < axis.taps; ++t) {
        for (int c = 0; c < kChannels; ++c) sum[c] += weights[t] * pixel[t * kChannels + c];
      }
    }
    for (int c = 0; c < kChannels; ++c) to[i * kChannels + c] = rounded(sum[c], axis.shift);
  }
}

// One row of the output from axis.taps rows that lie `stride` bytes apart.
inline void mix_rows(const int16_t* weights, int taps, int shift, const uint8_t* from,
                     int64_t stride, int64_t bytes, uint8_t* to) {
  for (int64_t x = 0; x < bytes; ++x) {
    int32_t sum = 0;
    for (int t = 0; t < taps; ++t) sum += weights[t] * from[t * stride + x];
    to[x] = rounded(sum, shift);
  }
}

}  // namespace resize_crop
}  // namespace opus
