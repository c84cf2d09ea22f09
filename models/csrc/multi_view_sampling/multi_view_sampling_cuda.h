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
  // of the backward pass; null if a gradient is not needed
  const float* grad;
  float *d_points, *d_weights;
  Level<float> d_levels[kMaxLevels];
  bool need_maps;
  // For results that do not depend on the order: integer sums in units of 1 / `scale`. They have
  // the layout of d_levels, which then receive only values that are not finite. Null otherwise.
  const float* scale;
  int64_t* d_fixed[kMaxLevels];
  float* parts;        // [blocks, parts_per_query] if shared memory cannot hold those of a query
  int64_t num_blocks;  // of the backward pass, at most
};

// Number of values that the samples of a query store for its points and weights: for each the
// gradients of the weights of all levels, then of the point.
OPUS_HD int64_t parts_per_query(const Shape& s) { return s.samples_per_query() * (s.levels + 3); }

// Adds the values of the integer sums.
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
