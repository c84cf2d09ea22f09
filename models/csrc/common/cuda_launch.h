// Interface for host code that starts a body on a CUDA grid; requires no headers of CUDA or torch.
//
// A body is a copyable struct of pointers and numbers with `void operator()(int64_t i) const`,
// marked OPUS_HD. The operator processes item i and writes only memory that no other item accesses.
#pragma once

#include <cstdint>

struct CUstream_st;  // cudaStream_t is a pointer to it

namespace opus {

using CudaStream = CUstream_st*;

#if defined(OPUS_WITH_CUDA)
inline constexpr bool kWithCuda = true;
#else
inline constexpr bool kWithCuda = false;
#endif

// Starts body(i) for every i in [0, count) on the stream. Defined in launch.cuh; a .cu file must
// instantiate it for every body with OPUS_INSTANTIATE_LAUNCH.
template <typename Body>
void launch_cuda(const Body& body, int64_t count, CudaStream stream);

}  // namespace opus
