// Whether kernels written for AVX2, FMA and F16C may run; each has a portable twin for where they
// may not.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define OPUS_HAS_AVX2_KERNELS 1
#endif

#include <cstdlib>

namespace opus {

// True where the processor has all three, unless OPUS_DISABLE_AVX2 is set; decided at the first
// call.
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

// True where the processor has AVX-512's foundation too, unless OPUS_DISABLE_AVX512 is set.
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
