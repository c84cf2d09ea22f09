// Host code compiled for more than one instruction set, chosen at run time.
#pragma once

#include <cstdlib>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define OPUS_HAS_AVX2_TARGET 1
#include <immintrin.h>
#endif

namespace opus {

// Whether the processor has AVX2 and FMA, and OPUS_DISABLE_AVX2 is not set.
inline bool use_avx2() {
#if defined(OPUS_HAS_AVX2_TARGET)
  static const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                                __builtin_cpu_supports("f16c") &&
                                std::getenv("OPUS_DISABLE_AVX2") == nullptr;
  return supported;
#else
  return false;
#endif
}

}  // namespace opus

// Calls a function that is defined in the namespaces opus::portable and opus::avx2.
#if defined(OPUS_HAS_AVX2_TARGET)
#define OPUS_CALL_TARGET(FUNCTION, ...)         \
  (::opus::use_avx2() ? avx2::FUNCTION(__VA_ARGS__) : portable::FUNCTION(__VA_ARGS__))
#else
#define OPUS_CALL_TARGET(FUNCTION, ...) portable::FUNCTION(__VA_ARGS__)
#endif
