// Starts kernels through CUDA's runtime. scripts/build/cuda_emulation/common/runtime.cuh stands in for
// this file where CUDA sources are compiled for the CPU.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "common/cuda_launch.h"

namespace opus {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("opus: ") + what + ": " + cudaGetErrorString(status));
  }
}

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

// Reports a launch that was refused. A kernel that fails later is seen by torch's next
// synchronisation, as with torch's own kernels.
template <typename... Parameters, typename... Arguments>
void launch_kernel(const char* what, void (*kernel)(Parameters...), dim3 blocks, dim3 threads,
                   int64_t shared_bytes, CudaStream stream, const Arguments&... arguments) {
  if (shared_bytes > 0) {
    // Unasked it is granted what static arrays leave of 48 KiB.
    cudaFuncAttributes granted{};
    check_cuda(cudaFuncGetAttributes(&granted, kernel), what);
    if (shared_bytes > granted.maxDynamicSharedSizeBytes) {
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared_bytes)),
                 what);
    }
  }
  kernel<<<blocks, threads, static_cast<size_t>(shared_bytes), stream>>>(arguments...);
  check_cuda(cudaGetLastError(), what);
}

}  // namespace opus
