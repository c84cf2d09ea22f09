// What host code must know to start a body on a CUDA grid; needs neither CUDA's headers nor torch's.
//
// A body is a copyable struct of pointers and numbers with `void operator()(int64_t i) const`,
// marked OPUS_HD, that does the work of item i and writes only what no other item touches.
#pragma once

#include <cstdint>

struct CUstream_st;  // what a cudaStream_t points to

namespace opus {

using CudaStream = CUstream_st*;

#if defined(OPUS_WITH_CUDA)
inline constexpr bool kWithCuda = true;
#else
inline constexpr bool kWithCuda = false;
#endif

// Starts body(i) for every i in [0, count) on the stream. Defined in launch.cuh; every body that is
// launched is named in a .cu file by OPUS_INSTANTIATE_LAUNCH.
template <typename Body>
void launch_cuda(const Body& body, int64_t count, CudaStream stream);

}  // namespace opus
