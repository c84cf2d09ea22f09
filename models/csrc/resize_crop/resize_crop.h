// Resizing of the part of an 8-bit image with three channels that is inside a crop.
//
// The filters are those of Pillow, stretched by the reduction: the cubic kernel with a = -0.5, or
// the triangle. Rows first, rounded to 8 bits, then columns. Pillow's weights have 22 binary
// digits. Exact sums take them in two parts of 16 bits, so that products of two pixels are added
// in one instruction; quick ones use only the first part, with as many digits as fit, and differ
// by a few grey values.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace opus {
namespace resize_crop {

constexpr int kChannels = 3;
// Taps along a row are processed in groups, across rows in pairs. The last group is filled up with
// weights of zero.
constexpr int kGroup = 4;
constexpr int kPair = 2;
// Bytes past the end of a row that the kernels may read.
constexpr int64_t kSlack = 64;

enum class Method : int64_t { kLinear = 0, kCubic = 1, kExactCubic = 2 };

// Digits of exact weights, and those of their second part.
constexpr int kDigits = 22, kLowDigits = 8;

// One axis: pixels that contribute to each pixel of the output, and their weights.
struct Axis {
  int taps = 0;                  // pixels per output, a multiple of the group
  int shift = 0;                 // binary digits of the weights
  std::vector<int32_t> first;    // of each output, the first pixel; -1: outside, black
  std::vector<int16_t> weights;  // [outputs, taps], of exact weights the first part
  std::vector<int16_t> low;      // [outputs, taps], the second part; empty for quick sums
  int64_t begin = 0, end = 0;    // pixels that have a weight anywhere

  bool is_exact() const { return !low.empty(); }
  const int16_t* of(int64_t output) const { return weights.data() + output * taps; }
  const int16_t* low_of(int64_t output) const { return low.data() + output * taps; }
};

inline double cubic(double x) {
  x = std::fabs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0.0;
}

inline double triangle(double x) { return std::max(0.0, 1 - std::fabs(x)); }

// An axis of `full` pixels, `scale` of which make one of `resized`, of which [crop, crop + outputs)
// is kept, mirrored if `reversed`.
inline Axis make_axis(double scale, int64_t full, int64_t resized, int64_t crop, int64_t outputs,
                      bool reversed, int group, Method method) {
  const double stretch = std::max(scale, 1.0);
  const double support = (method == Method::kLinear ? 1 : 2) * stretch;
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
      const double distance = (static_cast<double>(x) - centre + 0.5) / stretch;
      exact[i].push_back(method == Method::kLinear ? triangle(distance) : cubic(distance));
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
  axis.weights.assign(outputs * axis.taps, 0);
  if (method == Method::kExactCubic) {
    axis.shift = kDigits - kLowDigits;
    axis.low.assign(outputs * axis.taps, 0);
    for (int64_t i = 0; i < outputs; ++i) {
      for (size_t t = 0; t < exact[i].size(); ++t) {
        const int64_t weight = std::lround(exact[i][t] * (1 << kDigits));
        axis.weights[i * axis.taps + t] = static_cast<int16_t>(weight >> kLowDigits);
        axis.low[i * axis.taps + t] = static_cast<int16_t>(weight & ((1 << kLowDigits) - 1));
      }
    }
    return axis;
  }
  axis.shift = 16;
  while (axis.shift > 0 && largest * (1 << axis.shift) > 32000.0) --axis.shift;
  for (int64_t i = 0; i < outputs; ++i) {
    int16_t* weights = axis.weights.data() + i * axis.taps;
    int32_t lacking = exact[i].empty() ? 0 : 1 << axis.shift;
    for (size_t t = 0; t < exact[i].size(); ++t) {
      weights[t] = static_cast<int16_t>(std::lround(exact[i][t] * (1 << axis.shift)));
      lacking -= weights[t];
    }
    // Areas of one value keep it for any size of the weights.
    *std::max_element(weights, weights + axis.taps) += static_cast<int16_t>(lacking);
  }
  return axis;
}

// The same for all `full` pixels and all of `resized`.
inline Axis make_axis(int64_t full, int64_t resized, int64_t crop, int64_t outputs, bool reversed,
                      int group, Method method) {
  const double scale = static_cast<double>(full) / static_cast<double>(resized);
  return make_axis(scale, full, resized, crop, outputs, reversed, group, method);
}

inline uint8_t rounded(int32_t sum, int shift) {
  return static_cast<uint8_t>(std::clamp((sum + (1 << shift >> 1)) >> shift, 0, 255));
}

// Returns (sum * 2^8 + low) / 2^22 of a sum in two parts: floors may be taken one after the other.
inline uint8_t rounded(int32_t sum, int32_t low, int shift) {
  const int32_t carried = sum + ((low + (1 << (kDigits - 1))) >> kLowDigits);
  return static_cast<uint8_t>(std::clamp(carried >> shift, 0, 255));
}

// Resizes one row along x: `from` may be read kSlack bytes past its last pixel.
inline void resize_row(const Axis& axis, int64_t skipped, const uint8_t* from, int64_t outputs,
                       uint8_t* to) {
  for (int64_t i = 0; i < outputs; ++i) {
    int32_t sum[kChannels] = {}, low[kChannels] = {};
    if (axis.first[i] >= 0) {
      const uint8_t* pixel = from + (axis.first[i] - skipped) * kChannels;
      for (int t = 0; t < axis.taps; ++t) {
        for (int c = 0; c < kChannels; ++c) {
          const int32_t value = pixel[t * kChannels + c];
          sum[c] += axis.of(i)[t] * value;
          if (axis.is_exact()) low[c] += axis.low_of(i)[t] * value;
        }
      }
    }
    for (int c = 0; c < kChannels; ++c) {
      to[i * kChannels + c] = axis.is_exact() ? rounded(sum[c], low[c], axis.shift)
                                              : rounded(sum[c], axis.shift);
    }
  }
}

// Computes one row of the output from axis.taps rows that are `stride` bytes apart.
inline void mix_rows(const Axis& axis, int64_t output, const uint8_t* from, int64_t stride,
                     int64_t bytes, uint8_t* to) {
  for (int64_t x = 0; x < bytes; ++x) {
    int32_t sum = 0, low = 0;
    for (int t = 0; t < axis.taps; ++t) {
      const int32_t value = from[t * stride + x];
      sum += axis.of(output)[t] * value;
      if (axis.is_exact()) low += axis.low_of(output)[t] * value;
    }
    to[x] = axis.is_exact() ? rounded(sum, low, axis.shift) : rounded(sum, axis.shift);
  }
}

}  // namespace resize_crop
}  // namespace opus
