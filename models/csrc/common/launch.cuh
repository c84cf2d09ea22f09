// Runs bodies (see cuda_launch.h) on a CUDA grid. Include it from .cu files only.
#pragma once

#include "common/cuda_launch.h"
#include "common/defs.h"
#include "common/runtime.cuh"

namespace opus {

constexpr int kThreads = 256;
// More blocks than any GPU runs at once; for larger counts each block loops.
constexpr int64_t kMaxBlocks = int64_t(1) << 20;

// Returns the grid size of a kernel that loops over `count` blocks of items.
inline dim3 blocks_for(int64_t count) {
  return dim3(static_cast<unsigned>(least_of(count, kMaxBlocks)));
}

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
  launch_kernel("kernel launch", body_kernel<Body>, blocks_for(num_blocks(count, kThreads)),
                dim3(kThreads), 0, stream, body, count);
}

}  // namespace opus

#define OPUS_INSTANTIATE_LAUNCH(...) \
  template void opus::launch_cuda<__VA_ARGS__>(const __VA_ARGS__&, int64_t, opus::CudaStream)
