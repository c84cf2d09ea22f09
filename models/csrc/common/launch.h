// Runs a kernel body on the device of its tensors: torch's CPU threads or the current CUDA stream.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>

#include "common/cuda_launch.h"
#include "common/defs.h"
#include "common/half_bits.h"
#include "common/parallel.h"

namespace opus {

// Returns torch's current stream of a CUDA device; see stream_cuda_host.cpp.
CudaStream current_stream(c10::Device device);

// Returns whether GPU kernels process tensors of a device. Emulated kernels (see
// scripts/emulate_cuda.py) process CPU tensors.
inline bool runs_on_gpu(c10::Device device) {
#if defined(OPUS_EMULATES_CUDA)
  return device.is_cpu();
#else
  return device.is_cuda();
#endif
}

// Runs body(i) for every i in [0, count) on the CPU, in tasks of `grain` items.
template <typename Body>
void run_on_cpu(const Body& body, int64_t count, int64_t grain) {
  parallel_tasks(num_blocks(count, grain), [&](int64_t task) {
    const int64_t end = std::min(count, (task + 1) * grain);
    for (int64_t i = task * grain; i < end; ++i) body(i);
  });
}

// The same on the device of the operation's tensors. The caller holds a c10::DeviceGuard.
template <typename Body>
void run(c10::Device device, const Body& body, int64_t count, int64_t grain) {
  if (!runs_on_gpu(device)) return run_on_cpu(body, count, grain);
  if constexpr (kWithCuda) launch_cuda(body, count, current_stream(device));
}

// Checks that two tensors are on one device; the error names both.
inline void check_same_device(const at::Tensor& a, const char* a_name, const at::Tensor& b,
                              const char* b_name) {
  TORCH_CHECK_VALUE(a.device() == b.device(), a_name, " and ", b_name,
                    " must be on one device, got ", a.device(), " and ", b.device());
}

// Returns the storage format of a tensor for CUDA kernels, which compute in single precision.
inline Storage storage_of(const at::Tensor& tensor, const char* name) {
  const at::ScalarType type = tensor.scalar_type();
  TORCH_CHECK_VALUE(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, name,
                    " must be float32, float16 or bfloat16 on CUDA, got ", type);
  return type == at::kHalf       ? Storage::kHalf
         : type == at::kBFloat16 ? Storage::kBrain
                                 : Storage::kFloat;
}

// Returns whether the first element is aligned to the size of four numbers.
inline bool starts_at_quad(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % (4 * tensor.element_size()) == 0;
}

// Returns a contiguous tensor aligned to 16 bytes; copies if necessary.
inline at::Tensor aligned(const at::Tensor& tensor) {
  const at::Tensor whole = tensor.contiguous();
  return starts_at_quad(whole) ? whole : whole.clone();
}

}  // namespace opus

// Registers functions for both devices, at namespace scope: OPUS_REGISTER(m) { m.impl(…); }
#if defined(OPUS_WITH_CUDA) && !defined(OPUS_EMULATES_CUDA)
#define OPUS_REGISTER(m)                               \
  static void opus_register_kernels(torch::Library&);  \
  TORCH_LIBRARY_IMPL(opus, CPU, m) { opus_register_kernels(m); }  \
  TORCH_LIBRARY_IMPL(opus, CUDA, m) { opus_register_kernels(m); } \
  static void opus_register_kernels(torch::Library& m)
#else
#define OPUS_REGISTER(m) TORCH_LIBRARY_IMPL(opus, CPU, m)
#endif
