// Definitions shared by host and device launchers of the sigmoid focal loss.
#pragma once

#include <cstdint>

#include "common/cuda_launch.h"

namespace opus {
namespace sigmoid_focal_loss {

template <typename T>
struct Problem {
  const T* logits;         // [n, classes]
  const int64_t* labels;   // [n]
  const T* class_weights;  // [classes]; on the host padded with zeros to whole vectors
  const T* row_weights;    // [n] or null
  int64_t classes;
  T gamma, alpha;
};

constexpr int64_t kLogitsPerSum = 4096;  // logits summed by one CUDA block

// sums [blocks of kLogitsPerSum]: losses of each block, added in a fixed order.
void sum_losses_cuda(const Problem<float>& problem, int64_t num_logits, double* sums,
                     CudaStream stream);

// d_logits, shaped as logits: grad, one number on the device, times the derivative of the sum.
void loss_slopes_cuda(const Problem<float>& problem, int64_t num_logits, const float* grad,
                      float* d_logits, CudaStream stream);

}  // namespace sigmoid_focal_loss
}  // namespace opus
