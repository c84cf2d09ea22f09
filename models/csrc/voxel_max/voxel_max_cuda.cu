#include "common/launch.cuh"
#include "voxel_max/voxel_max.h"

namespace opus {
namespace voxel_max {
namespace {

constexpr int kLanes = 32;  // adjacent channels of a point
constexpr int kPoints = 8;  // points processed by a block at once

__global__ void __launch_bounds__(kLanes* kPoints)
    find_keys(const float* features, const int64_t* voxel_index, int64_t n, int64_t channels,
              int64_t num_voxels, uint64_t* keys) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kPoints;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPoints + threadIdx.y; i < n; i += step) {
    const int64_t voxel = voxel_index[i];
    if (voxel < 0 || voxel >= num_voxels) continue;
    for (int64_t c = threadIdx.x; c < channels; c += kLanes) {
      const uint64_t key = candidate_key(features[i * channels + c], i);
      atomicMax(reinterpret_cast<unsigned long long*>(keys + voxel * channels + c),
                static_cast<unsigned long long>(key));
    }
  }
}

}  // namespace

void find_keys_cuda(const float* features, const int64_t* voxel_index, int64_t n, int64_t channels,
                    int64_t num_voxels, uint64_t* keys, CudaStream stream) {
  if (n * channels == 0) return;
  launch_kernel("voxel_max", find_keys, blocks_for(num_blocks(n, kPoints)),
                dim3(kLanes, kPoints), 0, stream, features, voxel_index, n, channels, num_voxels,
                keys);
}

}  // namespace voxel_max
}  // namespace opus

OPUS_INSTANTIATE_LAUNCH(opus::voxel_max::ReadKeys);
OPUS_INSTANTIATE_LAUNCH(opus::voxel_max::ScatterGradients);
