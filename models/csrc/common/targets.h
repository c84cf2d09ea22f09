// Host code compiled for several instruction sets and selected at run time.
#pragma once

#include "common/avx2.h"

// clang has no pragma that sets the target of a whole file.
#if defined(OPUS_HAS_AVX2_KERNELS) && !defined(__clang__)
#define OPUS_HAS_AVX2_TARGET 1
#include <immintrin.h>
#endif

// Calls a function that is defined in the namespaces opus::portable and opus::avx2. If the source
// defines OPUS_WITH_AVX512 before the include, opus::avx512 is used too. Define it only where it
// helps: memory-bound code and code with short rows do not get faster.
#if defined(OPUS_HAS_AVX2_TARGET) && defined(OPUS_WITH_AVX512)
#define OPUS_CALL_TARGET(FUNCTION, ...)                 \
  (::opus::use_avx512() ? avx512::FUNCTION(__VA_ARGS__) \
   : ::opus::use_avx2() ? avx2::FUNCTION(__VA_ARGS__)   \
                        : portable::FUNCTION(__VA_ARGS__))
#elif defined(OPUS_HAS_AVX2_TARGET)
#define OPUS_CALL_TARGET(FUNCTION, ...)         \
  (::opus::use_avx2() ? avx2::FUNCTION(__VA_ARGS__) : portable::FUNCTION(__VA_ARGS__))
#else
#define OPUS_CALL_TARGET(FUNCTION, ...) portable::FUNCTION(__VA_ARGS__)
#endif
