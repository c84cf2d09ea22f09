// Conversion of numbers from a storage format of 16 or 32 bits to the format of the computation.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/defs.h"

namespace opus {

struct HalfBits {  // IEEE 754 binary16
  uint16_t bits;
};

struct BrainBits {  // bfloat16: the upper half of a single-precision number
  uint16_t bits;
};

OPUS_HD float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

OPUS_HD uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

OPUS_HD float widen(BrainBits x) { return float_of_bits(static_cast<uint32_t>(x.bits) << 16); }

OPUS_HD float widen(HalfBits x) {
#if defined(__CUDA_ARCH__) && !defined(OPUS_EMULATES_CUDA)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t rest = x.bits & 0x7fffu;
  // The exponents' biases differ by 112. Infinities and NaNs have the highest exponent. Numbers that
  // are subnormal in 16 bits are multiples of 2^-24. No intermediate result is subnormal, since
  // tasks read such numbers as zeros (flush_denormals.h).
  const uint32_t bias = (rest >= 0x7c00u ? 224u : 112u) << 23;
  const float subnormal = static_cast<float>(static_cast<int32_t>(rest)) * 5.9604644775390625e-8f;
  const uint32_t magnitude = rest < 0x0400u ? bits_of_float(subnormal) : (rest << 13) + bias;
  return float_of_bits(sign | magnitude);
#endif
}

OPUS_HD float widen(float x) { return x; }
OPUS_HD double widen(double x) { return x; }

// Storage format of a tensor, for kernels that are not templates over it.
enum class Storage { kFloat, kHalf, kBrain };

OPUS_HD float number_at(const void* data, Storage storage, int64_t i) {
  if (storage == Storage::kHalf) return widen(static_cast<const HalfBits*>(data)[i]);
  if (storage == Storage::kBrain) return widen(static_cast<const BrainBits*>(data)[i]);
  return static_cast<const float*>(data)[i];
}

}  // namespace opus
