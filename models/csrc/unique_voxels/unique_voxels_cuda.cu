#include "common/launch.cuh"
#include "unique_voxels/unique_voxels.h"

namespace opus {
namespace unique_voxels {
namespace {

__global__ void __launch_bounds__(kThreads)
    mark_keys(const int64_t* keys, int64_t n, int64_t num_keys, uint32_t* words,
              int64_t* first_bad) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step) {
    const int64_t key = keys[i];
    if (key >= 0 && key < num_keys) {
      atomicOr(words + key / kWordBits, 1u << (key % kWordBits));
    } else {
      atomicMin(reinterpret_cast<unsigned long long*>(first_bad),
                static_cast<unsigned long long>(i));
    }
  }
}

}  // namespace

void mark_keys_cuda(const int64_t* keys, int64_t n, int64_t num_keys, uint32_t* words,
                    int64_t* first_bad, CudaStream stream) {
  if (n == 0) return;
  launch_kernel("unique_voxels", mark_keys, blocks_for(num_blocks(n, kThreads)), dim3(kThreads), 0,
                stream, keys, n, num_keys, words, first_bad);
}

}  // namespace unique_voxels
}  // namespace opus

OPUS_INSTANTIATE_LAUNCH(opus::bit_set::CountBits);
OPUS_INSTANTIATE_LAUNCH(opus::bit_set::ListMembers);
OPUS_INSTANTIATE_LAUNCH(opus::unique_voxels::RankKeys);
