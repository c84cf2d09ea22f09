// Launchers of multi-view sampling on CUDA; needs neither CUDA's headers nor torch's.
#pragma once

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/half_bits.h"
#include "multi_view_sampling/multi_view_sampling.h"

namespace opus {
namespace multi_view_sampling {

struct CudaArguments {
  Shape shape;
  Storage storage;                       // of the maps
  Level<const void> levels[kMaxLevels];
  bool quads;  // whether four adjacent channels of every group can be read at once, at all levels
  Inputs<float> inputs;
  float* out;
  // the backward pass's; null where a gradient is not wanted
  const float* grad;
  float *d_points, *d_weights;
  Level<float> d_levels[kMaxLevels];
  bool need_maps;
  // Where the order of additions must not show: sums of whole numbers, `scale` of them to 1. They lie
  // like d_levels, which then take only what is not finite. Null where any order will do.
  const float* scale;
  int64_t* d_fixed[kMaxLevels];
  float* parts;        // [blocks, parts_per_query] where shared memory cannot hold those of a query
  int64_t num_blocks;  // of the backward pass, at most
};

// Numbers that the samples of a query leave for its points and weights: gradients of the weights of
// all levels, then of the point, for each.
OPUS_HD int64_t parts_per_query(const Shape& s) { return s.samples_per_query() * (s.levels + 3); }

// Adds what the whole numbers stand for.
struct AddFixed {
  const int64_t* fixed;
  const float* scale;
  float* out;

  OPUS_HD void operator()(int64_t i) const {
    out[i] += static_cast<float>(static_cast<double>(fixed[i]) / static_cast<double>(*scale));
  }
};

void forward_cuda(const CudaArguments& arguments, CudaStream stream);
void backward_cuda(const CudaArguments& arguments, CudaStream stream);

}  // namespace multi_view_sampling
}  // namespace opus
