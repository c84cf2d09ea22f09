// Includes the headers OPUS_BODY_HEADER (optional) and OPUS_KERNEL_HEADER once per instruction set.
// Their definitions are in the namespaces opus::portable and opus::avx2, and also in opus::avx512
// if the source defines OPUS_WITH_AVX512 (see targets.h). No include guard: every source file
// includes this once with its own headers.

#define OPUS_TARGET portable
#define OPUS_PACK_BYTES 32
#include "common/lanes.h"
#if defined(OPUS_BODY_HEADER)
#include OPUS_BODY_HEADER
#endif
#include OPUS_KERNEL_HEADER
#undef OPUS_TARGET

#if defined(OPUS_HAS_AVX2_TARGET)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define OPUS_TARGET_HAS_AVX2
#define OPUS_TARGET avx2
#include "common/lanes.h"
#if defined(OPUS_BODY_HEADER)
#include OPUS_BODY_HEADER
#endif
#include OPUS_KERNEL_HEADER
#undef OPUS_TARGET
#undef OPUS_TARGET_HAS_AVX2
#pragma GCC pop_options
#endif
#undef OPUS_PACK_BYTES

#if defined(OPUS_HAS_AVX2_TARGET) && defined(OPUS_WITH_AVX512)
#pragma GCC push_options
#pragma GCC target("avx512f,avx2,fma,f16c")
#define OPUS_TARGET_HAS_AVX512
#define OPUS_TARGET avx512
#define OPUS_PACK_BYTES 64
#include "common/lanes.h"
#if defined(OPUS_BODY_HEADER)
#include OPUS_BODY_HEADER
#endif
#include OPUS_KERNEL_HEADER
#undef OPUS_PACK_BYTES
#undef OPUS_TARGET
#undef OPUS_TARGET_HAS_AVX512
#pragma GCC pop_options
#endif

#undef OPUS_BODY_HEADER
#undef OPUS_KERNEL_HEADER
