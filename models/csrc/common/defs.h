// Definitions for all operations, such as the mark of functions for both host and device.
//
// Kernel bodies are compiled twice: by the host's compiler for torch's CPU threads, and by nvcc for
// a CUDA grid. Fused multiply-add is disabled in both, so CPU tests also verify the GPU's results.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define OPUS_HD __host__ __device__ __forceinline__
#else
#define OPUS_HD inline
#endif

namespace opus {

// std::min and std::max are not device functions.
template <typename T>
OPUS_HD T least_of(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
OPUS_HD T greatest_of(T a, T b) {
  return a < b ? b : a;
}

// Returns the number of blocks of `block` items needed for `count` items.
OPUS_HD int64_t num_blocks(int64_t count, int64_t block) { return (count + block - 1) / block; }

// Returns false for NaN and infinities; does not need the host's <cmath>.
template <typename T>
OPUS_HD bool is_finite(T value) {
  return value - value == T(0);
}

}  // namespace opus
