// One block casts rays of one origin and counts in shared memory.
#include "common/launch.cuh"
#include "ray_iou/ray_iou.h"

namespace opus {
namespace ray_iou {
namespace {

constexpr int kRayThreads = 128;
constexpr int64_t kMaxOriginBlocks = 65535;

struct AddShared {
  unsigned* shared;
  __device__ void operator()(int entry) const { atomicAdd(shared + entry, 1u); }
};

__global__ void __launch_bounds__(kRayThreads) rays_kernel(const Rays rays,
                                                           const Counting counting) {
  unsigned* shared = dynamic_shared<unsigned>();  // counts, if requested
  for (int64_t origin = blockIdx.y; origin < rays.num_origins; origin += gridDim.y) {
    if (counting.counts != nullptr) {
      for (int i = threadIdx.x; i < counting.size(); i += blockDim.x) shared[i] = 0;
      __syncthreads();
    }
    const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (column < rays.num_directions) {
      RayEnd gt, pred;
      rays.cast(origin, column, gt, pred);
      if (counting.counts != nullptr) counting.count(gt, pred, rays.empty, AddShared{shared});
    }
    if (counting.counts == nullptr) continue;
    __syncthreads();
    const int64_t sample = rays.sample_of_origin[origin];
    const bool known = sample >= 0 && sample < rays.num_samples;
    for (int i = threadIdx.x; known && i < counting.size(); i += blockDim.x) {
      auto* entry = reinterpret_cast<unsigned long long*>(counting.counts) +
                    sample * counting.size() + i;
      if (shared[i] != 0) atomicAdd(entry, static_cast<unsigned long long>(shared[i]));
    }
    __syncthreads();
  }
}

}  // namespace

void launch_rays_cuda(const Rays& rays, const Counting& counting, CudaStream stream) {
  if (rays.num_origins == 0 || rays.num_directions == 0) return;
  const dim3 blocks(static_cast<unsigned>(num_blocks(rays.num_directions, kRayThreads)),
                    static_cast<unsigned>(least_of(rays.num_origins, kMaxOriginBlocks)));
  const size_t shared = counting.counts == nullptr ? 0 : counting.size() * sizeof(unsigned);
  launch_kernel("ray_iou", rays_kernel, blocks, dim3(kRayThreads), static_cast<int64_t>(shared),
                stream, rays, counting);
}

}  // namespace ray_iou
}  // namespace opus
