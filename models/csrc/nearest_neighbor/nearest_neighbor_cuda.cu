#include "common/launch.cuh"
#include "nearest_neighbor/nearest_neighbor.h"
#include "nearest_neighbor/tiled.h"

namespace opus {
namespace nearest_neighbor {
namespace {

constexpr int kTile = 256;  // references in shared memory, and threads of a block

template <typename T>
__global__ void __launch_bounds__(kTile) tiled_kernel(const Tiled<T> body) {
  __shared__ T tile[3 * kTile];
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kTile;
  const int64_t rounded = num_blocks(body.num_queries, kTile) * kTile;
  // The loop is uniform within a block, since all its threads load every tile.
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kTile + threadIdx.x; i < rounded;
       i += stride) {
    const int64_t row = least_of(i, body.num_queries - 1);
    const T q[3] = {body.query[3 * row], body.query[3 * row + 1], body.query[3 * row + 2]};
    Nearest<T> best = nothing<T>();
    for (int64_t first = 0; first < body.num_references; first += kTile) {
      const int count = static_cast<int>(least_of<int64_t>(kTile, body.num_references - first));
      for (int k = threadIdx.x; k < 3 * count; k += kTile) {
        tile[k] = body.reference[3 * first + k];
      }
      __syncthreads();
      for (int k = 0; k < count; ++k) Tiled<T>::compare(q, tile + 3 * k, first + k, best);
      __syncthreads();
    }
    if (i < body.num_queries) body.write(i, best);
  }
}

}  // namespace

template <typename T>
void launch_tiled_cuda(const Tiled<T>& body, CudaStream stream) {
  if (body.num_queries == 0) return;
  launch_kernel("nearest_by_brute_force", tiled_kernel<T>,
                blocks_for(num_blocks(body.num_queries, kTile)), dim3(kTile), 0, stream, body);
}

template void launch_tiled_cuda<float>(const Tiled<float>&, CudaStream);
template void launch_tiled_cuda<double>(const Tiled<double>&, CudaStream);

}  // namespace nearest_neighbor
}  // namespace opus

OPUS_INSTANTIATE_LAUNCH(opus::MortonCodes<float>);
OPUS_INSTANTIATE_LAUNCH(opus::MortonCodes<double>);
OPUS_INSTANTIATE_LAUNCH(opus::nearest_neighbor::PlacePoints<float>);
OPUS_INSTANTIATE_LAUNCH(opus::nearest_neighbor::PlacePoints<double>);
OPUS_INSTANTIATE_LAUNCH(opus::nearest_neighbor::LeafBoxes<float>);
OPUS_INSTANTIATE_LAUNCH(opus::nearest_neighbor::LeafBoxes<double>);
OPUS_INSTANTIATE_LAUNCH(opus::nearest_neighbor::MergeBoxes<float>);
OPUS_INSTANTIATE_LAUNCH(opus::nearest_neighbor::MergeBoxes<double>);
OPUS_INSTANTIATE_LAUNCH(opus::nearest_neighbor::Search<float>);
OPUS_INSTANTIATE_LAUNCH(opus::nearest_neighbor::Search<double>);
OPUS_INSTANTIATE_LAUNCH(opus::nearest_neighbor::SearchInOrder<float>);
OPUS_INSTANTIATE_LAUNCH(opus::nearest_neighbor::SearchInOrder<double>);
