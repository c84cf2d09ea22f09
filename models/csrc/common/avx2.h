// Detection of AVX2, FMA and F16C. Every kernel written for them has a portable alternative.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define OPUS_HAS_AVX2_KERNELS 1
#endif

#include <cstdlib>

namespace opus {

// Returns whether the processor has all three and OPUS_DISABLE_AVX2 is not set; evaluated once.
inline bool use_avx2() {
#if defined(OPUS_HAS_AVX2_KERNELS)
  static const bool usable = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                             __builtin_cpu_supports("f16c") &&
                             std::getenv("OPUS_DISABLE_AVX2") == nullptr;
  return usable;
#else
  return false;
#endif
}

// Returns whether the processor also has AVX-512F and OPUS_DISABLE_AVX512 is not set.
inline bool use_avx512() {
#if defined(OPUS_HAS_AVX2_KERNELS)
  static const bool usable = use_avx2() && __builtin_cpu_supports("avx512f") &&
                             std::getenv("OPUS_DISABLE_AVX512") == nullptr;
  return usable;
#else
  return false;
#endif
}

}  // namespace opus
