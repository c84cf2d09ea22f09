#include "common/launch.cuh"
#include "ray_cast/ray_cast_bodies.h"

OPUS_INSTANTIATE_LAUNCH(opus::ray_cast::FillMasks);
OPUS_INSTANTIATE_LAUNCH(opus::ray_cast::CastRays<float>);
OPUS_INSTANTIATE_LAUNCH(opus::ray_cast::CastRays<double>);
