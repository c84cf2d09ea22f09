// Launchers of adaptive mixing on CUDA; needs neither CUDA's headers nor torch's.
#pragma once

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/half_bits.h"

namespace opus {
namespace adaptive_mixing {

struct CudaArguments {
  Storage storage;  // of x and parameters
  bool quads;       // whether four adjacent numbers of every row can be read and written at once
  const void *x, *parameters;
  int64_t x_stride, parameters_stride;  // from one group to the next
  int64_t count;
  int s_in, s_out, c;
  float* out;                 // [count, s_out, c]
  const float* grad;          // as out
  float *d_x, *d_parameters;  // [count, s_in, c] and [count, c * c + s_out * s_in]
  // Scratch of each block, [num_blocks, scratch_size], or null where shared memory holds it, which
  // needs quads.
  float* scratch;
  int64_t num_blocks;
};

// Numbers of scratch that a block needs.
int64_t scratch_size(const CudaArguments& arguments, bool backward);
// Numbers that shared memory of the current device holds for a block.
int64_t shared_size();

void forward_cuda(const CudaArguments& arguments, CudaStream stream);
void backward_cuda(const CudaArguments& arguments, CudaStream stream);

}  // namespace adaptive_mixing
}  // namespace opus
