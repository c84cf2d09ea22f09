#include "chamfer/chamfer.h"
#include "common/launch.cuh"

namespace opus {
namespace chamfer {

template <typename T>
struct AddAtomic {
  OPUS_HD static void add(T* where, T value) {
#if defined(__CUDA_ARCH__)
    atomicAdd(where, value);
#else
    *where += value;  // host version, never called: this struct is only used on the GPU
#endif
  }
};

template <typename T>
void launch_gradients_cuda(const Pairs<T>& pairs, const T* grad, T* grad_query, T* grad_reference,
                           int64_t count, CudaStream stream) {
  const Gradients<T, AddAtomic<T>> body{pairs, grad, grad_query, grad_reference};
  opus::launch_cuda(body, count, stream);
}

template void launch_gradients_cuda<float>(const Pairs<float>&, const float*, float*, float*,
                                           int64_t, CudaStream);
template void launch_gradients_cuda<double>(const Pairs<double>&, const double*, double*, double*,
                                            int64_t, CudaStream);

}  // namespace chamfer
}  // namespace opus

OPUS_INSTANTIATE_LAUNCH(opus::chamfer::Terms<float>);
OPUS_INSTANTIATE_LAUNCH(opus::chamfer::Terms<double>);
