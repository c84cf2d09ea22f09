// Codes along a space-filling curve: points with similar codes are close in space.
#pragma once

#include <cstdint>

#include "common/defs.h"

namespace opus {

// Inserts two zero bits after each of 21 bits.
OPUS_HD uint64_t spread_bits(uint64_t x) {
  x = (x | x << 32) & 0x001F00000000FFFFull;
  x = (x | x << 16) & 0x001F0000FF0000FFull;
  x = (x | x << 8) & 0x100F00F00F00F00Full;
  x = (x | x << 4) & 0x10C30C30C30C30C3ull;
  return (x | x << 2) & 0x1249249249249249ull;
}

// Quantises a coordinate in [lo, hi] to 2^bits steps; 0 if the interval is empty.
template <typename T>
OPUS_HD uint64_t quantise(T value, T lo, T hi, int bits) {
  const double scale = static_cast<double>(hi) - static_cast<double>(lo);
  const double share = (static_cast<double>(value) - static_cast<double>(lo)) / scale;
  const auto last = static_cast<double>((int64_t(1) << bits) - 1);
  const double step = share * (last + 1);
  return step >= 0 ? static_cast<uint64_t>(step > last ? last : step) : 0;  // NaN is not >= 0
}

// Codes with 3 * bits bits for points [n, 3] in the box from bounds[0..2] to bounds[3..5].
// Non-finite points get the largest code.
template <typename T>
struct MortonCodes {
  const T *points, *bounds;
  int64_t* codes;
  int bits;

  OPUS_HD void operator()(int64_t i) const {
    uint64_t code = 0;
    bool finite = true;
    for (int a = 0; a < 3; ++a) {
      const T value = points[3 * i + a];
      finite = finite && is_finite(value);
      code |= spread_bits(quantise(value, bounds[a], bounds[3 + a], bits)) << (2 - a);
    }
    codes[i] = static_cast<int64_t>(finite ? code : (uint64_t(1) << 3 * bits) - 1);
  }
};

}  // namespace opus
