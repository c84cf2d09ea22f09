#include "voxel_sets/voxel_sets.h"

#include "common/launch.cuh"

// The bodies of common/bit_set.h are instantiated in unique_voxels.
OPUS_INSTANTIATE_LAUNCH(opus::voxel_sets::MarkKeys);
OPUS_INSTANTIATE_LAUNCH(opus::voxel_sets::MarkReached);
OPUS_INSTANTIATE_LAUNCH(opus::voxel_sets::GridEnds);
OPUS_INSTANTIATE_LAUNCH(opus::voxel_sets::PlaceOfKeys);
OPUS_INSTANTIATE_LAUNCH(opus::voxel_sets::Neighbors);
