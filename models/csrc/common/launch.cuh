// Runs bodies (see cuda_launch.h) on a CUDA grid. Include it from .cu files only.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "common/cuda_launch.h"
#include "common/defs.h"

namespace opus {

constexpr int kThreads = 256;
// More blocks than any GPU runs at once; larger counts go round again.
constexpr int64_t kMaxBlocks = int64_t(1) << 20;

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("opus: ") + what + ": " + cudaGetErrorString(status));
  }
}

// Reports a launch that was refused. A kernel that fails later is seen by torch's next
// synchronisation, as with torch's own kernels.
inline void check_launch(const char* what) { check_cuda(cudaGetLastError(), what); }

template <typename Body>
__global__ void __launch_bounds__(kThreads) body_kernel(const Body body, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    body(i);
  }
}

template <typename Body>
void launch_cuda(const Body& body, int64_t count, CudaStream stream) {
  if (count <= 0) return;
  const auto blocks = static_cast<unsigned>(least_of(num_blocks(count, kThreads), kMaxBlocks));
  body_kernel<Body><<<blocks, kThreads, 0, stream>>>(body, count);
  check_launch("kernel launch");
}

}  // namespace opus

#define OPUS_INSTANTIATE_LAUNCH(...) \
  template void opus::launch_cuda<__VA_ARGS__>(const __VA_ARGS__&, int64_t, opus::CudaStream)
