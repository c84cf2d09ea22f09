// Shared by all operations: marks functions whose arithmetic serves host and device alike.
//
// Kernel bodies are compiled twice, by the host's compiler for torch's CPU threads and by nvcc for
// a CUDA grid, with fused multiply-add off in both: what the CPU tests see is what a GPU computes.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define OPUS_HD __host__ __device__ __forceinline__
#else
#define OPUS_HD inline
#endif

namespace opus {

// std::min and std::max are no device functions.
template <typename T>
OPUS_HD T least_of(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
OPUS_HD T greatest_of(T a, T b) {
  return a < b ? b : a;
}

// Number of blocks when `count` items are dealt in blocks of `block`.
OPUS_HD int64_t num_blocks(int64_t count, int64_t block) { return (count + block - 1) / block; }

// False for NaN and both infinities, without the host's <cmath>.
template <typename T>
OPUS_HD bool is_finite(T value) {
  return value - value == T(0);
}

}  // namespace opus
