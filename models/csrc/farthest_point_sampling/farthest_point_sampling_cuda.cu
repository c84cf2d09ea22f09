// One block samples one cloud. A warp refreshes a bucket with four points per lane.
#include "common/launch.cuh"
#include "farthest_point_sampling/farthest_point_sampling.h"

namespace opus {
namespace farthest_point_sampling {
namespace {

constexpr int kWarp = 32;
constexpr int kTeamThreads = 1024;
constexpr int kWarps = kTeamThreads / kWarp;
constexpr unsigned kAll = 0xFFFFFFFFu;

template <typename T>
__device__ Farthest<T> farthest_of_warp(Farthest<T> own) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Farthest<T> other{__shfl_xor_sync(kAll, own.squared, distance),
                            __shfl_xor_sync(kAll, own.index, distance)};
    own = farther(own, other);
  }
  return own;
}

// Team of the warps of a block. `shared` holds one farthest point per warp.
template <typename T>
struct BlockTeam {
  Farthest<T>* shared;

  __device__ int64_t member() const { return threadIdx.x / kWarp; }
  __device__ int64_t size() const { return kWarps; }
  __device__ bool leads() const { return threadIdx.x == 0; }

  __device__ Farthest<T> refresh(const Cloud<T>& cloud, int64_t b, const T* chosen) const {
    const int lane = threadIdx.x % kWarp;
    Farthest<T> own = no_point<T>();
    for (int64_t slot = b * kBucket + lane; slot < (b + 1) * kBucket; slot += kWarp) {
      const T squared = updated(cloud, slot, chosen);
      cloud.squared[slot] = squared;
      own = farther(own, Farthest<T>{squared, cloud.index[slot]});
    }
    own = farthest_of_warp(own);
    if (lane == 0) cloud.buckets[b].farthest = own;
    __syncwarp();
    return own;
  }

  // Every warp completes the reduction itself, so each chosen point needs two barriers.
  __device__ Farthest<T> farthest(const Farthest<T>& own) const {
    const int lane = threadIdx.x % kWarp;
    if (lane == 0) shared[threadIdx.x / kWarp] = own;
    __syncthreads();
    const Farthest<T> all = farthest_of_warp(shared[lane]);
    __syncthreads();
    return all;
  }
};

template <typename T>
__global__ void __launch_bounds__(kTeamThreads) sample_kernel(const Batch<T> batch) {
  static_assert(kWarps == kWarp, "one lane per warp result");
  __shared__ Farthest<T> shared[kWarps];
  const int cloud = blockIdx.x;
  sample(batch.clouds[cloud], batch.num_samples, batch.out + cloud * batch.num_samples, BlockTeam<T>{shared});
}

}  // namespace

template <typename T>
void launch_cuda(const Batch<T>& batch, CudaStream stream) {
  launch_kernel("farthest_point_sampling", sample_kernel<T>,
                dim3(static_cast<unsigned>(batch.num_clouds)), dim3(kTeamThreads), 0, stream, batch);
}

template void launch_cuda<float>(const Batch<float>&, CudaStream);
template void launch_cuda<double>(const Batch<double>&, CudaStream);

}  // namespace farthest_point_sampling
}  // namespace opus

OPUS_INSTANTIATE_LAUNCH(opus::farthest_point_sampling::FillBuckets<float>);
OPUS_INSTANTIATE_LAUNCH(opus::farthest_point_sampling::FillBuckets<double>);
