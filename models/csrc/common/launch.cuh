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

// Shared memory whose size the launch says; every kernel has one such array, of any type.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char opus_dynamic_shared[];
  return reinterpret_cast<T*>(opus_dynamic_shared);
}

// What a block may get of it at most on the current device, beside 1 KiB of static arrays.
inline int64_t most_shared_bytes() {
  int device = 0, bytes = 0;
  check_cuda(cudaGetDevice(&device), "the current device");
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "the size of shared memory");
  return bytes - 1024;
}

// Blocks of a grid whose kernel goes round until `count` are done.
inline dim3 blocks_for(int64_t count) {
  return dim3(static_cast<unsigned>(least_of(count, kMaxBlocks)));
}

template <typename... Parameters, typename... Arguments>
void launch_kernel(const char* what, void (*kernel)(Parameters...), dim3 blocks, dim3 threads,
                   int64_t shared_bytes, CudaStream stream, const Arguments&... arguments) {
  constexpr int64_t kGrantedUnasked = 48 * 1024;
  if (shared_bytes > kGrantedUnasked) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               what);
  }
  kernel<<<blocks, threads, static_cast<size_t>(shared_bytes), stream>>>(arguments...);
  check_launch(what);
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
  const auto blocks = static_cast<unsigned>(least_of(num_blocks(count, kThreads), kMaxBlocks));
  body_kernel<Body><<<blocks, kThreads, 0, stream>>>(body, count);
  check_launch("kernel launch");
}

}  // namespace opus

#define OPUS_INSTANTIATE_LAUNCH(...) \
  template void opus::launch_cuda<__VA_ARGS__>(const __VA_ARGS__&, int64_t, opus::CudaStream)
