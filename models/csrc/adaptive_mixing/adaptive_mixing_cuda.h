// Launchers of adaptive mixing on CUDA; requires no headers of CUDA or torch.
#pragma once

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/half_bits.h"

namespace opus {
namespace adaptive_mixing {

struct CudaArguments {
  Storage storage;  // dtype of x and parameters
  bool quads;       // whether every row allows aligned reads and writes of four numbers
  const void *x, *parameters;
  int64_t x_stride, parameters_stride;  // from one group to the next
  int64_t count;
  int s_in, s_out, c;
  float* out;                 // [count, s_out, c]
  const float* grad;          // shape of out
  float *d_x, *d_parameters;  // [count, s_in, c] and [count, c * c + s_out * s_in]
  // Scratch of the blocks, [num_blocks, scratch_size]; null if it is in shared memory, which
  // requires quads.
  float* scratch;
  int64_t num_blocks;
};

// Returns the scratch size of a block, in numbers.
int64_t scratch_size(const CudaArguments& arguments, bool backward);
// Returns the shared memory available to a block on the current device, in numbers.
int64_t shared_size();

void forward_cuda(const CudaArguments& arguments, CudaStream stream);
void backward_cuda(const CudaArguments& arguments, CudaStream stream);

}  // namespace adaptive_mixing
}  // namespace opus
