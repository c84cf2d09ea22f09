// Each thread processes one logit at a time.
#include "common/launch.cuh"
#include "sigmoid_focal_loss/sigmoid_focal_loss.h"

#define OPUS_TARGET device
#include "common/lanes.h"
#include "sigmoid_focal_loss/sigmoid_focal_loss_body.h"
#undef OPUS_TARGET

namespace opus {
namespace sigmoid_focal_loss {
namespace {

using namespace device::focal_body;

// Softplus, weight and label of a logit.
struct Term {
  SoftPlus<float> soft;
  float weight;
  bool is_label;

  __device__ Term(const Problem<float>& in, int64_t i) {
    const int64_t row = i / in.classes, k = i - row * in.classes;
    soft = soft_plus(in.logits[i]);
    weight = in.class_weights[k];
    if (in.row_weights != nullptr) weight *= in.row_weights[row];
    is_label = in.labels[row] == k;
  }
};

__global__ void __launch_bounds__(kThreads)
    sum_losses(const Problem<float> in, int64_t num_logits, double* sums) {
  __shared__ double partial[kThreads];
  const int64_t begin = blockIdx.x * kLogitsPerSum;
  const int64_t end = least_of(num_logits, begin + kLogitsPerSum);
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const Term term(in, i);
    const float loss = term.is_label
                           ? focal_term(term.soft.minus, term.soft.plus, in.gamma, in.alpha)
                           : focal_term(term.soft.plus, term.soft.minus, in.gamma, 1 - in.alpha);
    sum += static_cast<double>(loss * term.weight);
  }
  partial[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}

struct Slopes {
  Problem<float> in;
  const float* grad;
  float* d_logits;

  __device__ void operator()(int64_t i) const {
    const Term term(in, i);
    const float slope =
        term.is_label ? -focal_slope(term.soft.minus, term.soft.plus, in.gamma, in.alpha)
                      : focal_slope(term.soft.plus, term.soft.minus, in.gamma, 1 - in.alpha);
    d_logits[i] = slope * term.weight * *grad;
  }
};

}  // namespace

void sum_losses_cuda(const Problem<float>& problem, int64_t num_logits, double* sums,
                     CudaStream stream) {
  if (num_logits == 0) return;
  const auto blocks = static_cast<unsigned>(num_blocks(num_logits, kLogitsPerSum));
  launch_kernel("sigmoid_focal_loss", sum_losses, dim3(blocks), dim3(kThreads), 0, stream, problem,
                num_logits, sums);
}

void loss_slopes_cuda(const Problem<float>& problem, int64_t num_logits, const float* grad,
                      float* d_logits, CudaStream stream) {
  opus::launch_cuda(Slopes{problem, grad, d_logits}, num_logits, stream);
}

}  // namespace sigmoid_focal_loss
}  // namespace opus
