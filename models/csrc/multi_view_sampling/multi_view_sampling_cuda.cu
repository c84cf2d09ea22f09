// A block projects its samples first, one thread each, then finds their texels, one thread for each
// sample and level; after that adjacent threads read adjacent channels.
#include <cmath>

#include "common/launch.cuh"
#include "multi_view_sampling/multi_view_sampling_cuda.h"

#define OPUS_TARGET device
#include "common/lanes.h"
#include "multi_view_sampling/multi_view_sampling_body.h"
#undef OPUS_TARGET

namespace opus {
namespace multi_view_sampling {
namespace {

using namespace device::sampling_body;
using device::Fixed;
using device::Lanes;
using device::Quad;
using device::sum_of_lanes;

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kForwardThreads = 128;
constexpr int kSamples = 32;  // of a block of the forward pass at once
constexpr int kBackwardThreads = 256;

// The four texels of a level around a projected point, at the first channel of group g.
template <typename S>
struct Corners {
  const S* texels[4];
  Taps<float> taps;

  __device__ bool find(const CudaArguments& a, int l, int64_t b, int64_t image,
                       const Projection<float>& at, int g) {
    const Level<const void>& from = a.levels[l];
    const Level<const S> level{static_cast<const S*>(from.data), from.batch_stride,
                               from.image_stride,  from.channel_stride,
                               from.row_stride,    from.column_stride,
                               from.w,             from.h};
    if (!taps_of(a.shape, level, at, taps)) return false;
    OPUS_UNROLL
    for (int k = 0; k < 4; ++k) {
      texels[k] = level.texel(b, image, taps.y[k >> 1], taps.x[k & 1]) +
                  g * a.shape.per_group * level.channel_stride;
    }
    return true;
  }
};

// Quads are read from adjacent channels only.
template <typename V>
__device__ int64_t channel_offset(const CudaArguments& a, int l, int first) {
  return Lanes<V>::kWidth == 1 ? first * a.levels[l].channel_stride : first;
}

// Row of the output: one point of a query in one frame.
struct Place {
  int64_t bq, b;
  Sample sample;

  __device__ Place(const Shape& s, int64_t row) {
    bq = row / s.samples_per_query();
    b = bq / s.queries;
    sample = sample_at(s, static_cast<int>(row - bq * s.samples_per_query()));
  }
  __device__ Projection<float> project(const CudaArguments& a) const {
    const float* point = a.inputs.point(a.shape, bq, sample.g * a.shape.points + sample.p);
    return a.inputs.camera(a.shape, b, sample.t, point);
  }
  __device__ const float* weights(const CudaArguments& a) const {
    return a.inputs.weights + a.inputs.weight_row(a.shape, bq, sample.t, sample.g, sample.p);
  }
};

template <typename S>
struct alignas(16) Read {
  const S* texel;  // of the first of a level's four null where all lie outside
  float weight;
};

template <typename S>
__device__ void find_reads(const CudaArguments& a, int64_t row, int l, const Projection<float>& at,
                           Read<S>* reads) {
  reads[0].texel = nullptr;
  if (at.camera < 0) return;
  const Place place(a.shape, row);
  const int64_t image = place.sample.t * a.shape.cams + at.camera;
  Corners<S> corners;
  if (!corners.find(a, l, place.b, image, at, place.sample.g)) return;
  const float weight = place.weights(a)[l];
  OPUS_UNROLL
  for (int k = 0; k < 4; ++k) {
    reads[k].texel = corners.texels[k];
    reads[k].weight = weight * (corners.taps.wy[k >> 1] * corners.taps.wx[k & 1]);
  }
}

template <typename V, typename S>
__global__ void __launch_bounds__(kForwardThreads)
    sampling_forward(const __grid_constant__ CudaArguments a, int64_t rows) {
  __shared__ Projection<float> projections[kSamples];
  Read<S>* reads = dynamic_shared<Read<S>>();  // [kSamples, levels, 4]
  const int levels = a.shape.levels, vectors = a.shape.per_group / Lanes<V>::kWidth;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kSamples;
  for (int64_t begin = static_cast<int64_t>(blockIdx.x) * kSamples; begin < rows; begin += step) {
    const int count = static_cast<int>(least_of<int64_t>(kSamples, rows - begin));
    // Projections are read only before the next barrier: threads that write those of the next round
    // have passed it.
    for (int i = threadIdx.x; i < count; i += kForwardThreads) {
      projections[i] = Place(a.shape, begin + i).project(a);
    }
    __syncthreads();  // and the reads of the last round are done
    for (int i = threadIdx.x; i < count * levels; i += kForwardThreads) {
      find_reads(a, begin + i / levels, i % levels, projections[i / levels], reads + 4 * i);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * vectors; i += kForwardThreads) {
      const int sample = i / vectors, first = (i - sample * vectors) * Lanes<V>::kWidth;
      V sum = Lanes<V>::fill(0.0f);
      for (int l = 0; l < levels; ++l) {
        const Read<S>* four = reads + 4 * (sample * levels + l);
        if (four[0].texel == nullptr) continue;
        const S* texels[4];
        float weights[4];
        OPUS_UNROLL
        for (int k = 0; k < 4; ++k) {
          texels[k] = four[k].texel;
          weights[k] = four[k].weight;
        }
        add_reads<1>(texels, weights, Fixed<4>(), channel_offset<V>(a, l, first), &sum);
      }
      Lanes<V>::store(a.out + (begin + sample) * a.shape.per_group + first, sum);
    }
  }
}

__device__ void add_atomic(float* at, float x) { atomicAdd(at, x); }

__device__ void add_atomic(float* at, const Quad& x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  atomicAdd(reinterpret_cast<float4*>(at), make_float4(x.x[0], x.x[1], x.x[2], x.x[3]));
#else
  OPUS_UNROLL
  for (int i = 0; i < 4; ++i) atomicAdd(at + i, x.x[i]);
#endif
}

__device__ float component(float x, int) { return x; }
__device__ float component(const Quad& x, int i) { return x.x[i]; }

// Adds to a map's gradient, at `at` of level l. Sums of integers do not depend on the order.
template <typename V>
__device__ void add_to_map(const CudaArguments& a, int l, float* at, const V& x) {
  if (a.scale == nullptr) return add_atomic(at, x);
  auto* fixed = reinterpret_cast<unsigned long long*>(a.d_fixed[l] + (at - a.d_levels[l].data));
  OPUS_UNROLL
  for (int i = 0; i < Lanes<V>::kWidth; ++i) {
    const float value = component(x, i);
    if (is_finite(value)) {
      const auto whole = static_cast<long long>(rintf(value * *a.scale));
      atomicAdd(fixed + i, static_cast<unsigned long long>(whole));
    } else {
      atomicAdd(at + i, value);
    }
  }
}

// Lanes of a warp that share a sample: a power of two, at most one for each vector of channels.
__device__ int lanes_per_sample(int vectors) {
  int lanes = kWarp;
  while (lanes > 1 && lanes > vectors) lanes /= 2;
  return lanes;
}

// Sums over the lanes of a sample, for all of them; the whole warp takes part.
__device__ float sum_over_lanes(float x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

// Work of the lanes of one sample. Lanes without a sample (`exists` false) run the same code.
template <typename V, typename S>
struct SampleGradient {
  const CudaArguments& a;
  Place place;
  Projection<float> at;
  int lane, lanes;
  bool exists;
  const float* grad;  // [per_group]

  __device__ int64_t image() const { return place.sample.t * a.shape.cams + at.camera; }

  // Gradients of a level's texels, and this lane's share of the four dots with the gradient.
  __device__ void visit_level(int l, const Corners<S>& corners, float weight, V* dot) const {
    float factors[4];
    float* d_texels[4];
    OPUS_UNROLL
    for (int k = 0; k < 4; ++k) {
      factors[k] = weight * (corners.taps.wy[k >> 1] * corners.taps.wx[k & 1]);
      if (a.need_maps) {
        d_texels[k] = a.d_levels[l].texel(place.b, image(), corners.taps.y[k >> 1],
                                          corners.taps.x[k & 1]) +
                      place.sample.g * a.shape.per_group;
      }
    }
    for (int first = lane * Lanes<V>::kWidth; first < a.shape.per_group;
         first += lanes * Lanes<V>::kWidth) {
      if (a.d_points != nullptr) {
        dot_adjacent<1>(corners.texels, grad, first, channel_offset<V>(a, l, first), dot);
      }
      if (!a.need_maps) continue;
      const V g = Lanes<V>::load(grad + first);
      OPUS_UNROLL
      for (int k = 0; k < 4; ++k) {
        if (!corners.taps.exists(k)) continue;
        add_to_map(a, l, d_texels[k] + first, g * Lanes<V>::fill(factors[k]));
      }
    }
  }

  // Writes to parts [levels + 3]: gradients of the weights, then of the point.
  __device__ void visit(float* parts) const {
    const bool reads = exists && at.camera >= 0;
    float du = 0, dv = 0;
    for (int l = 0; l < a.shape.levels; ++l) {
      Corners<S> corners;
      PixelGradient<float> pixel{0, 0, 0};
      if (reads && corners.find(a, l, place.b, image(), at, place.sample.g)) {
        const float weight = place.weights(a)[l];
        V dot[4];
        float own[4];
        OPUS_UNROLL
        for (int k = 0; k < 4; ++k) dot[k] = Lanes<V>::fill(0.0f);
        visit_level(l, corners, weight, dot);
        OPUS_UNROLL
        for (int k = 0; k < 4; ++k) own[k] = sum_of_lanes(dot[k]);
        // Linear in the dots: the sum over lanes can come after.
        pixel = pixel_gradient(corners.taps, own, weight,
                               static_cast<float>(a.levels[l].w - 1) / a.shape.img_w,
                               static_cast<float>(a.levels[l].h - 1) / a.shape.img_h);
        du += pixel.u;
        dv += pixel.v;
      }
      if (a.d_points == nullptr) continue;
      const float sum = sum_over_lanes(pixel.weight, lanes);
      if (exists && lane == 0) parts[l] = sum;
    }
    if (a.d_points == nullptr) return;
    du = sum_over_lanes(du, lanes);
    dv = sum_over_lanes(dv, lanes);
    if (!exists || lane != 0) return;
    float d_point[3] = {0, 0, 0};
    if (reads) {
      const float* matrix = a.inputs.matrices + 16 * (place.b * a.shape.images + image());
      point_gradient(at, du, dv, matrix, d_point);
    }
    for (int i = 0; i < 3; ++i) parts[a.shape.levels + i] = d_point[i];
  }
};

// Sums the parts of all samples that share a weight or a point, in their order.
__device__ void sum_parts(const CudaArguments& a, int64_t bq, const float* parts) {
  const Shape& s = a.shape;
  const int points = static_cast<int>(s.points_per_query()), width = s.levels + 3;
  for (int i = threadIdx.x; i < points * width; i += kBackwardThreads) {
    const int gp = i / width, column = i % width, g = gp / s.points, p = gp % s.points;
    const bool of_weight = column < s.levels;
    float sum = 0;
    for (int t = 0; t < s.frames; ++t) {
      for (int from = 0; from < s.groups; ++from) {
        const int to = of_weight ? paired_group(t, from, s.frames, s.groups, s.permuted) : from;
        if (to == g) sum += parts[((from * s.frames + t) * s.points + p) * width + column];
      }
    }
    if (of_weight) {
      a.d_weights[(bq * points + gp) * s.levels + column] = sum;
    } else {
      a.d_points[(bq * points + gp) * 3 + column - s.levels] = sum;
    }
  }
}

// One block, one query at a time: all samples that share its points and weights.
template <typename V, typename S>
__global__ void __launch_bounds__(kBackwardThreads)
    sampling_backward(const __grid_constant__ CudaArguments a, int64_t queries) {
  __shared__ Projection<float> projections[kBackwardThreads];
  const Shape& s = a.shape;
  float* parts = a.parts == nullptr ? dynamic_shared<float>()
                                    : a.parts + blockIdx.x * parts_per_query(s);
  const int lanes = lanes_per_sample(s.per_group / Lanes<V>::kWidth);
  const int samples = static_cast<int>(s.samples_per_query()), width = s.levels + 3;
  for (int64_t bq = blockIdx.x; bq < queries; bq += gridDim.x) {
    for (int chunk = 0; chunk < samples; chunk += kBackwardThreads) {
      const int end = least_of(samples, chunk + kBackwardThreads);
      __syncthreads();  // the last chunk's projections, and the last query's parts, have been read
      const int mine = chunk + static_cast<int>(threadIdx.x);
      if (mine < end) projections[threadIdx.x] = Place(s, bq * samples + mine).project(a);
      __syncthreads();
      // All lanes of a warp run equally many iterations, so that they can exchange their sums.
      for (int begin = chunk; begin < end; begin += kBackwardThreads / lanes) {
        const int i = begin + static_cast<int>(threadIdx.x) / lanes;
        const bool exists = i < end;
        const int known = exists ? i : chunk;
        const int64_t row = bq * samples + known;
        SampleGradient<V, S>{a, Place(s, row), projections[known - chunk],
                             static_cast<int>(threadIdx.x) % lanes, lanes, exists,
                             a.grad + row * s.per_group}
            .visit(parts + static_cast<int64_t>(known) * width);
      }
    }
    __syncthreads();
    if (a.d_points != nullptr) sum_parts(a, bq, parts);
  }
}

template <typename V, typename S>
void launch_forward(const CudaArguments& a, CudaStream stream) {
  const int64_t rows = a.shape.batch * a.shape.queries * a.shape.samples_per_query();
  if (rows == 0) return;
  const auto bytes = static_cast<int64_t>(kSamples * 4 * a.shape.levels * sizeof(Read<S>));
  launch_kernel("multi_view_sampling", sampling_forward<V, S>,
                blocks_for(num_blocks(rows, kSamples)), dim3(kForwardThreads), bytes, stream, a,
                rows);
}

template <typename V, typename S>
void launch_backward(const CudaArguments& a, CudaStream stream) {
  const int64_t queries = a.shape.batch * a.shape.queries;
  if (queries * a.shape.samples_per_query() == 0) return;
  const int64_t bytes =
      a.parts == nullptr ? parts_per_query(a.shape) * static_cast<int64_t>(sizeof(float)) : 0;
  launch_kernel("multi_view_sampling_backward", sampling_backward<V, S>,
                blocks_for(least_of(queries, a.num_blocks)), dim3(kBackwardThreads), bytes, stream,
                a, queries);
}

template <typename S>
void launch(const CudaArguments& a, bool backward, CudaStream stream) {
  if (backward) {
    a.quads ? launch_backward<Quad, S>(a, stream) : launch_backward<float, S>(a, stream);
  } else {
    a.quads ? launch_forward<Quad, S>(a, stream) : launch_forward<float, S>(a, stream);
  }
}

void launch_stored(const CudaArguments& a, bool backward, CudaStream stream) {
  switch (a.storage) {
    case Storage::kHalf: return launch<HalfBits>(a, backward, stream);
    case Storage::kBrain: return launch<BrainBits>(a, backward, stream);
    default: return launch<float>(a, backward, stream);
  }
}

}  // namespace

void forward_cuda(const CudaArguments& arguments, CudaStream stream) {
  launch_stored(arguments, false, stream);
}

void backward_cuda(const CudaArguments& arguments, CudaStream stream) {
  launch_stored(arguments, true, stream);
}

}  // namespace multi_view_sampling
}  // namespace opus

OPUS_INSTANTIATE_LAUNCH(opus::multi_view_sampling::AddFixed);
