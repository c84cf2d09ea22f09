// Starts kernels through CUDA's runtime. When CUDA sources are compiled for the CPU,
// scripts/build/cuda_emulation/common/runtime.cuh replaces this file.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "common/cuda_launch.h"

namespace opus {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("opus: ") + what + ": " + cudaGetErrorString(status));
  }
}

// Dynamic shared memory, whose size is set at launch. Each kernel has one such array, of any type.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char opus_dynamic_shared[];
  return reinterpret_cast<T*>(opus_dynamic_shared);
}

inline int current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "the current device");
  return device;
}

// Cached results of CUDA queries, by device and kernel; a query takes longer than a launch.
class Told {
 public:
  // Calls use(entry) with the entry of a key, which ask() initialises and use() may raise.
  template <typename Ask, typename Use>
  auto with(const void* kernel, const Ask& ask, const Use& use) {
    const std::pair<int, const void*> key{current_device(), kernel};
    const std::lock_guard<std::mutex> lock(mutex_);
    auto found = bytes_.find(key);
    if (found == bytes_.end()) found = bytes_.emplace(key, ask(key.first)).first;
    return use(found->second);
  }

 private:
  std::mutex mutex_;
  std::map<std::pair<int, const void*>, int64_t> bytes_;
};

// Returns the largest dynamic shared memory of a block on the current device. 1 KiB is left for
// static arrays.
inline int64_t most_shared_bytes() {
  static Told told;
  return told.with(
      nullptr,
      [](int device) {
        int bytes = 0;
        check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                   "the size of shared memory");
        return int64_t{bytes} - 1024;
      },
      [](int64_t bytes) { return bytes; });
}

// Raises a kernel's limit of dynamic shared memory to the size of a launch. The default limit is 48
// KiB minus the static arrays.
inline void grant_shared(const void* kernel, int64_t shared_bytes, const char* what) {
  static Told told;
  told.with(
      kernel,
      [&](int) {
        cudaFuncAttributes granted{};
        check_cuda(cudaFuncGetAttributes(&granted, kernel), what);
        return int64_t{granted.maxDynamicSharedSizeBytes};
      },
      [&](int64_t& granted) {
        if (shared_bytes <= granted) return;
        check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared_bytes)),
                   what);
        granted = shared_bytes;
      });
}

// Reports a failed launch. Errors of a running kernel are reported at torch's next synchronisation,
// as for torch's own kernels.
template <typename... Parameters, typename... Arguments>
void launch_kernel(const char* what, void (*kernel)(Parameters...), dim3 blocks, dim3 threads,
                   int64_t shared_bytes, CudaStream stream, const Arguments&... arguments) {
  if (shared_bytes > 0) grant_shared(reinterpret_cast<const void*>(kernel), shared_bytes, what);
  kernel<<<blocks, threads, static_cast<size_t>(shared_bytes), stream>>>(arguments...);
  check_cuda(cudaGetLastError(), what);
}

}  // namespace opus
