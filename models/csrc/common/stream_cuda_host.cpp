// Compiled into CUDA builds only.
#include <c10/cuda/CUDAStream.h>

#include "common/cuda_launch.h"

namespace opus {

CudaStream current_stream(c10::Device device);

CudaStream current_stream(c10::Device device) {
  return c10::cuda::getCurrentCUDAStream(device.index()).stream();
}

}  // namespace opus
