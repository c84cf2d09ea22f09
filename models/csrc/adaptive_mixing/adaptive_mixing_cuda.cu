// One block of threads per group of a query, with the matrices in shared memory.
#include "adaptive_mixing/adaptive_mixing_cuda.h"
#include "common/launch.cuh"

#define OPUS_TARGET device
#include "common/lanes.h"
#include "adaptive_mixing/adaptive_mixing_body.h"
#undef OPUS_TARGET

namespace opus {
namespace adaptive_mixing {
namespace {

using namespace device::mixing_body;
using device::Lanes;
using device::Quad;
using device::sum_of_lanes;

constexpr int kWarp = 32;
constexpr int kBlock = 128;
constexpr int kWarps = kBlock / kWarp;
constexpr unsigned kAll = 0xffffffffu;

// All threads of a block.
struct Block {
  float* partial;  // [kWarps]

  static constexpr bool kAlone = false;
  __device__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ int size() const { return kBlock; }
  __device__ void sync() const { __syncthreads(); }
  template <typename V>
  __device__ float sum(const V& x) const {
    float own = sum_of_lanes(x);
    for (int step = kWarp / 2; step > 0; step /= 2) own += __shfl_xor_sync(kAll, own, step);
    __syncthreads();  // all threads have read the previous sum
    if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = own;
    __syncthreads();
    float total = 0;
    OPUS_UNROLL
    for (int i = 0; i < kWarps; ++i) total += partial[i];
    return total;
  }
};

// Row stride: whole quads, and adjacent rows start in different banks.
OPUS_HD int leading(int columns) {
  const int whole = (columns + 3) / 4 * 4;
  return whole % 32 == 0 ? whole + 4 : whole;
}

// Offsets of a group's matrices in the scratch memory of a block.
struct Layout {
  int ld, ld_in;  // row strides for c and for s_in columns
  int64_t x, m, s, u, z, h, grad, h_turned, m_turned, size;

  OPUS_HD Layout(const CudaArguments& a, bool backward) {
    ld = leading(a.c);
    ld_in = leading(a.s_in);
    size = 0;
    m = take(int64_t(a.c) * ld);
    s = take((int64_t(a.s_in) * a.s_out + 3) / 4 * 4);
    u = take(int64_t(a.s_in) * ld);
    if (backward) {
      x = take(int64_t(a.s_in) * ld);
      h = take(int64_t(a.s_in) * ld);
      // M is transposed after the last read of z, the gradient and h_turned.
      m_turned = z = size;
      grad = z + int64_t(a.s_out) * ld;
      h_turned = grad + int64_t(a.s_out) * ld;
      size = greatest_of(h_turned + int64_t(a.c) * ld_in, m_turned + int64_t(a.c) * ld);
    } else {
      // z is written after the last read of x.
      x = z = take(int64_t(greatest_of(a.s_in, a.s_out)) * ld);
      h = grad = h_turned = m_turned = size;
    }
  }

 private:
  OPUS_HD int64_t take(int64_t count) {
    size += count;
    return size - count;
  }
};

template <typename V, typename S>
__device__ void stage(const S* from, int rows, int columns, float* to, int ld) {
  for (int i = threadIdx.x * Lanes<V>::kWidth; i < rows * columns;
       i += kBlock * Lanes<V>::kWidth) {
    const int row = i / columns;
    Lanes<V>::store(to + row * ld + (i - row * columns), Lanes<V>::load(from + i));
  }
}

// x, M and S of group i.
template <typename V, typename S>
__device__ void stage_inputs(const CudaArguments& a, const Layout& at, int64_t i, float* scratch) {
  const S* parameters = static_cast<const S*>(a.parameters) + i * a.parameters_stride;
  const int size = a.s_in * a.s_out;
  stage<V>(static_cast<const S*>(a.x) + i * a.x_stride, a.s_in, a.c, scratch + at.x, at.ld);
  stage<V>(parameters, a.c, a.c, scratch + at.m, at.ld);
  stage<V>(parameters + a.c * a.c, 1, size, scratch + at.s, size);
}

template <typename V>
__device__ void stage_stored(const CudaArguments& a, const Layout& at, int64_t i, float* scratch) {
  switch (a.storage) {
    case Storage::kHalf: return stage_inputs<V, HalfBits>(a, at, i, scratch);
    case Storage::kBrain: return stage_inputs<V, BrainBits>(a, at, i, scratch);
    default: return stage_inputs<V, float>(a, at, i, scratch);
  }
}

// V is Quad if the scratch fits into shared memory and sizes are multiples of four; otherwise V is
// one number and the scratch is in global memory. A thread computes tiles of kRows rows by kColumns
// vectors of a product.
template <typename V>
struct Memory {
  static constexpr bool kIsShared = Lanes<V>::kWidth == 4;
  static constexpr int kRows = 4, kColumns = kIsShared ? 1 : 2;

  __device__ static float* scratch(const CudaArguments& a, const Layout& at) {
    return kIsShared ? dynamic_shared<float>() : a.scratch + blockIdx.x * at.size;
  }
};

template <typename V>
__global__ void __launch_bounds__(kBlock) mixing_forward(const __grid_constant__ CudaArguments a) {
  __shared__ float partial[kWarps];
  const Layout at(a, false);
  float* scratch = Memory<V>::scratch(a, at);
  for (int64_t i = blockIdx.x; i < a.count; i += gridDim.x) {
    __syncthreads();  // the last group's matrices have been read
    stage_stored<V>(a, at, i, scratch);
    __syncthreads();
    mix<Memory<V>::kRows, Memory<V>::kColumns, V>(
        Block{partial}, Sizes{a.s_in, a.s_out, a.c}, Matrix<const float>{scratch + at.x, at.ld},
        Matrix<const float>{scratch + at.m, at.ld}, scratch + at.s,
        Matrix<float>{scratch + at.u, at.ld}, Matrix<float>{scratch + at.z, at.ld},
        Rows<float>{a.out + i * a.s_out * a.c, a.c});
  }
}

template <typename V>
__global__ void __launch_bounds__(kBlock) mixing_backward(const __grid_constant__ CudaArguments a) {
  __shared__ float partial[kWarps];
  const Layout at(a, true);
  float* scratch = Memory<V>::scratch(a, at);
  const Buffers<float> buffers{{scratch + at.u, at.ld},           {scratch + at.h, at.ld},
                               {scratch + at.z, at.ld},           {scratch + at.grad, at.ld},
                               {scratch + at.h_turned, at.ld_in}, {scratch + at.m_turned, at.ld}};
  const int64_t size = int64_t(a.c) * a.c + int64_t(a.s_in) * a.s_out;
  for (int64_t i = blockIdx.x; i < a.count; i += gridDim.x) {
    __syncthreads();  // the last group's matrices have been read
    stage_stored<V>(a, at, i, scratch);
    stage<V>(a.grad + i * a.s_out * a.c, a.s_out, a.c, scratch + at.grad, at.ld);
    __syncthreads();
    float* d_m = a.d_parameters + i * size;
    mix_backward<Memory<V>::kRows, Memory<V>::kColumns, V>(
        Block{partial}, Sizes{a.s_in, a.s_out, a.c}, Matrix<const float>{scratch + at.x, at.ld},
        Matrix<const float>{scratch + at.m, at.ld}, scratch + at.s, buffers,
        Rows<float>{a.d_x + i * a.s_in * a.c, a.c}, Rows<float>{d_m, a.c},
        Rows<float>{d_m + int64_t(a.c) * a.c, a.s_in});
  }
}

void launch(const CudaArguments& a, bool backward, CudaStream stream) {
  if (a.count == 0) return;
  const bool is_shared = a.scratch == nullptr;
  const int64_t bytes =
      is_shared ? scratch_size(a, backward) * static_cast<int64_t>(sizeof(float)) : 0;
  const auto kernel = backward ? (is_shared ? mixing_backward<Quad> : mixing_backward<float>)
                               : (is_shared ? mixing_forward<Quad> : mixing_forward<float>);
  launch_kernel("adaptive_mixing", kernel, blocks_for(least_of(a.count, a.num_blocks)),
                dim3(kBlock), bytes, stream, a);
}

}  // namespace

int64_t scratch_size(const CudaArguments& arguments, bool backward) {
  return Layout(arguments, backward).size;
}

int64_t shared_size() { return most_shared_bytes() / static_cast<int64_t>(sizeof(float)); }

void forward_cuda(const CudaArguments& arguments, CudaStream stream) {
  launch(arguments, false, stream);
}

void backward_cuda(const CudaArguments& arguments, CudaStream stream) {
  launch(arguments, true, stream);
}

}  // namespace adaptive_mixing
}  // namespace opus
