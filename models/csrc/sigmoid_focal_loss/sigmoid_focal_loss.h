// What host and device launchers of the sigmoid focal loss share.
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

constexpr int64_t kLogitsPerSum = 4096;  // that one block of the CUDA grid adds up

// sums [blocks of kLogitsPerSum]: their losses, added in an order that depends on nothing.
void sum_losses_cuda(const Problem<float>& problem, int64_t num_logits, double* sums,
                     CudaStream stream);

// d_logits, as logits: grad, one number on the device, times the derivative of the sum.
void loss_slopes_cuda(const Problem<float>& problem, int64_t num_logits, const float* grad,
                      float* d_logits, CudaStream stream);

}  // namespace sigmoid_focal_loss
}  // namespace opus
