// A block owns one tile of rows, one row per lane, shared by all its warps. The tiles of the other
// side are distributed over the warps, so that few queries occupy a GPU too. At the end the warps'
// sums are added in a fixed order. Each warp stages its tile in its own shared memory, so the block
// needs no barrier before the end. Tiles with negligible weights are skipped.
#include <cfloat>
#include <cmath>

#include "common/launch.cuh"
#include "distance_attention/distance_attention_cuda.h"

#define OPUS_TARGET device
#include "common/lanes.h"
#include "distance_attention/distance_attention_body.h"
#undef OPUS_TARGET

namespace opus {
namespace distance_attention {
namespace {

using namespace device::attention_body;
using device::Fixed;
using device::Lanes;
using device::Quad;

constexpr int kDepth = kCudaDepth, kTile = kCudaTile;
constexpr int kWarps = 4;
constexpr int kBlock = kWarps * kTile;
// Rows that a lane processes at once: more hide latency, fewer save registers.
constexpr int kForwardStep = 8, kBackwardStep = 4;
constexpr unsigned kAll = 0xffffffffu;

__device__ int lane() { return static_cast<int>(threadIdx.x) % kTile; }
__device__ int warp() { return static_cast<int>(threadIdx.x) / kTile; }

__device__ float warp_sum(float x) {
  for (int step = kTile / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}
__device__ float warp_least(float x) {
  for (int step = kTile / 2; step > 0; step /= 2) {
    x = least_of(x, __shfl_xor_sync(kAll, x, step));
  }
  return x;
}
__device__ float warp_largest(float x) { return -warp_least(-x); }

__device__ float element(const RowsView& view, int64_t b, int64_t h, int64_t row, int d) {
  return number_at(view.data, view.storage,
                   b * view.batch_stride + h * view.head_stride + row * view.row_stride +
                       d * view.channel_stride);
}

// Returns a norm; infinite for non-finite numbers, so that no tile is skipped.
__device__ float norm_of(float square) { return is_finite(square) ? sqrtf(square) : INFINITY; }

// One warp packs one tile of one head. A lane first processes a channel, then a row.
template <bool kBackward>
__global__ void __launch_bounds__(kBlock) attention_pack(const __grid_constant__ CudaArguments a) {
  const int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + warp();
  if (task >= a.batch * a.heads * a.tiles) return;
  const int64_t bh = task / a.tiles, tile = task - bh * a.tiles;
  const int64_t b = bh / a.heads, h = bh - b * a.heads;
  const int64_t own = tile * kTile + lane();
  const bool exists = own < a.queries;
  const int64_t known = exists ? own : a.queries - 1;
  // Clamped: the caller's order may hold invalid indices.
  const int64_t from = a.order == nullptr ? known
                                          : least_of(greatest_of(a.order[b * a.queries + known],
                                                                 int64_t{0}),
                                                     a.queries - 1);
  float centre[3];
  for (int i = 0; i < 3; ++i) centre[i] = a.centres[3 * (b * a.queries + from) + i];
  const float place = centre[0] + centre[1] + centre[2];
  float query_square = 0, key_square = 0, self = 0, delta = 0;
  for (int r = 0; r < kTile; ++r) {
    const int64_t row = __shfl_sync(kAll, from, r);
    const bool real = tile * kTile + r < a.queries && lane() < a.depth;
    const float q = real ? element(a.query, b, h, row, lane()) : 0.0f;
    const float k = real ? element(a.key, b, h, row, lane()) : 0.0f;
    const float v = real ? element(a.value, b, h, row, lane()) : 0.0f;
    const int64_t to = (bh * a.rows() + tile * kTile + r) * kDepth + lane();
    a.packed.query[to] = q;
    a.packed.key[to] = k;
    a.packed.value[to] = v;
    float of_grad = 0, product = 0;
    if (kBackward) {
      const float g = real ? element(a.grad, b, h, row, lane()) : 0.0f;
      a.packed.grad[to] = g;
      of_grad = g - g;  // NaN if g is not finite, else 0
      product = real ? g * element(a.result, b, h, row, lane()) : 0.0f;
    }
    const float sums[4] = {warp_sum(q * q + of_grad), warp_sum(k * k + (v - v)),
                           kBackward ? 0.0f : warp_sum(q * k), kBackward ? warp_sum(product) : 0.0f};
    if (lane() == r) {
      query_square = sums[0];
      key_square = sums[1];
      self = sums[2];
      delta = sums[3];
    }
  }
  const int64_t head_row = bh * a.rows() + own;
  a.packed.tau[head_row] = exists ? a.tau[bh * a.queries + from] : 0.0f;
  a.packed.query_norm[head_row] = exists ? norm_of(query_square + (place - place)) * a.scale : 0.0f;
  if (kBackward) {
    a.packed.log_sum[head_row] = exists ? a.log_sum_in[bh * a.queries + from] : 0.0f;
    a.packed.delta[head_row] = delta;
  } else {
    a.packed.self_logit[head_row] = self * a.scale;
  }
  const float norm = warp_largest(exists ? norm_of(key_square + (place - place)) : 0.0f);
  if (lane() == 0) a.packed.key_norm[task] = norm;
  if (h != 0) return;
  a.packed.row[b * a.rows() + own] = from;
  for (int i = 0; i < 3; ++i) {
    a.packed.centre[3 * (b * a.rows() + own) + i] = exists ? centre[i] : 0.0f;
    const float low = warp_least(centre[i]), high = warp_largest(centre[i]);
    if (lane() == 0) {
      a.packed.box[6 * (b * a.tiles + tile) + i] = low;
      a.packed.box[6 * (b * a.tiles + tile) + 3 + i] = high;
    }
  }
}

// Returns an upper bound of the logits between a query and the keys in a box, or vice versa.
__device__ float logit_bound(float norms, float tau, const float* centre, const float* box) {
  float near = 0, far = 0;
  OPUS_UNROLL
  for (int i = 0; i < 3; ++i) {
    const float below = box[i] - centre[i], above = centre[i] - box[3 + i];
    const float gap = greatest_of(0.0f, greatest_of(below, above));
    const float span = greatest_of(-below, -above);
    near += gap * gap;
    far += span * span;
  }
  return norms - tau * (tau >= 0 ? sqrtf(near) : sqrtf(far));
}

// Row and head of a thread.
struct Place {
  int64_t b, bh, row, head_row;
  bool exists;
  float centre[3];

  __device__ explicit Place(const CudaArguments& a) : b(blockIdx.z) {
    bh = b * a.heads + blockIdx.y;
    row = static_cast<int64_t>(blockIdx.x) * kTile + lane();
    head_row = bh * a.rows() + row;
    exists = row < a.queries;
    for (int i = 0; i < 3; ++i) centre[i] = a.packed.centre[3 * (b * a.rows() + row) + i];
  }
  // Index of the query in its sample, and over all heads.
  __device__ int64_t query(const CudaArguments& a) const {
    return a.packed.row[b * a.rows() + row];
  }
  __device__ int64_t head_query(const CudaArguments& a) const {
    return (bh - b * a.heads) * a.queries + query(a);
  }
  __device__ void load(const float* rows, float* to) const {
    OPUS_UNROLL
    for (int d = 0; d < kDepth; d += 4) {
      const Quad four = Lanes<Quad>::load(rows + head_row * kDepth + d);
      OPUS_UNROLL
      for (int i = 0; i < 4; ++i) to[d + i] = four.x[i];
    }
  }
};

// A warp's current tile of the other side.
struct alignas(16) Tile {
  float first[kTile * kDepth], second[kTile * kDepth];
  float centre[kTile * 3];
  float tau[kTile], log_sum[kTile], delta[kTile];  // if the rows are queries
  uint32_t hash[kTile];

  __device__ void load(const CudaArguments& a, const Place& place, int64_t tile,
                       const float* first_rows, const float* second_rows) {
    const int64_t start = place.bh * a.rows() + tile * kTile;
    OPUS_UNROLL
    for (int i = 0; i < kDepth; i += 4) {
      const int at = i * kTile + 4 * lane();
      Lanes<Quad>::store(first + at, Lanes<Quad>::load(first_rows + start * kDepth + at));
      Lanes<Quad>::store(second + at, Lanes<Quad>::load(second_rows + start * kDepth + at));
    }
    const float* centres = a.packed.centre + 3 * (place.b * a.rows() + tile * kTile);
    for (int i = lane(); i < 3 * kTile; i += kTile) centre[i] = centres[i];
  }
};

// Sums of a warp over its tiles, until those of all warps are added. They reuse the memory of the
// tile. Rows have an odd length, so lanes that write in parallel access different banks.
struct Sums {
  static constexpr int kRow = kDepth + 1;
  float first[kTile * kRow], second[kTile * kRow];
  float number[kTile], other[kTile];

  __device__ static void store(const float* from, float* to) {
    OPUS_UNROLL
    for (int d = 0; d < kDepth; ++d) to[lane() * kRow + d] = from[d];
  }
};

union Shared {
  Tile tile;
  Sums sums;
};

// Calls visit(first row, number of queries) for groups of kStep rows with at least one query.
template <int kStep, typename Visit>
__device__ void for_each_step(const CudaArguments& a, int64_t tile, const Visit& visit) {
  const int count = static_cast<int>(least_of<int64_t>(kTile, a.queries - tile * kTile));
  OPUS_NO_UNROLL
  for (int step = 0; step < count; step += kStep) visit(step, least_of(kStep, count - step));
}

// Calls store(query, channel, row of the block, place in the sums) for each result of the block.
template <typename Store>
__device__ void for_each_result(const CudaArguments& a, const Store& store) {
  for (int i = threadIdx.x; i < kTile * kDepth; i += kBlock) {
    const int r = i / kDepth, d = i % kDepth;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kTile + r;
    if (row >= a.queries || d >= a.depth) continue;
    store(a.packed.row[blockIdx.z * a.rows() + row], d, r, r * Sums::kRow + d);
  }
}

// Place of a channel of a query in [B, Q, H, depth].
__device__ int64_t out_offset(const CudaArguments& a, int64_t query, int d) {
  return ((blockIdx.z * a.queries + query) * a.heads + blockIdx.y) * a.depth + d;
}

template <bool kDrop>
__global__ void __launch_bounds__(kBlock)
    attention_forward(const __grid_constant__ CudaArguments a) {
  __shared__ Shared shared[kWarps];
  Tile& tile = shared[warp()].tile;
  const Place place(a);
  float query[kDepth], sums[kDepth];
  place.load(a.packed.query, query);
  OPUS_UNROLL
  for (int d = 0; d < kDepth; ++d) sums[d] = 0;
  const float tau = a.packed.tau[place.head_row], norm = a.packed.query_norm[place.head_row];
  const float self = a.packed.self_logit[place.head_row];
  const Dropout seed = seeded(a.dropout, a.seeds, place.b);
  const uint32_t row_hash = seed.row_hash(place.head_query(a));
  Softmax<1, float> softmax{{-FLT_MAX}, {0.0f}};
  for (int64_t t = warp(); t < a.tiles; t += kWarps) {
    const float bound =
        logit_bound(norm * a.packed.key_norm[place.bh * a.tiles + t], tau, place.centre,
                    a.packed.box + 6 * (place.b * a.tiles + t));
    // The largest logit is at least the query's own, which is known before the first tile.
    const bool skips = bound < device::larger(softmax.max[0], self) - a.negligible_gap;
    if (__all_sync(kAll, skips || !place.exists)) continue;
    __syncwarp();  // the last tile has been read
    tile.load(a, place, t, a.packed.key, a.packed.value);
    if (kDrop) {
      const int64_t key = a.packed.row[place.b * a.rows() + t * kTile + lane()];
      tile.hash[lane()] = seed.key_hash(key);
    }
    __syncwarp();
    for_each_step<kForwardStep>(a, t, [&](int step, int valid) {
      float distance[kForwardStep];
      distances<1>(place.centre, tile.centre + 3 * step, Fixed<kForwardStep>(), distance);
      attend<1, kForwardStep, kDepth, kForwardStep, kDrop>(
          query, tile.first + step * kDepth, tile.second + step * kDepth, distance,
          Fixed<kForwardStep>(), valid, Fixed<kDepth>(), &tau, a.scale, a.dropout,
          &row_hash, tile.hash + step, softmax, sums);
    });
  }
  __syncwarp();
  Sums& own = shared[warp()].sums;
  Sums::store(sums, own.first);
  own.number[lane()] = softmax.max[0];
  own.other[lane()] = softmax.sum[0];
  __syncthreads();
  for_each_result(a, [&](int64_t to, int d, int r, int at) {
    float top = shared[0].sums.number[r], value = 0, total = 0;
    for (int w = 1; w < kWarps; ++w) top = greatest_of(top, shared[w].sums.number[r]);
    for (int w = 0; w < kWarps; ++w) {
      const float factor = expf(shared[w].sums.number[r] - top);
      value += shared[w].sums.first[at] * factor;
      total += shared[w].sums.other[r] * factor;
    }
    a.out[out_offset(a, to, d)] = value / total;
    if (d == 0) {
      a.log_sum[(blockIdx.z * a.heads + blockIdx.y) * a.queries + to] = top + logf(total);
    }
  });
}

template <bool kDrop>
__global__ void __launch_bounds__(kBlock, 2)
    attention_query_gradient(const __grid_constant__ CudaArguments a) {
  __shared__ Shared shared[kWarps];
  Tile& tile = shared[warp()].tile;
  const Place place(a);
  float query[kDepth], grad[kDepth], d_query[kDepth], d_tau = 0;
  place.load(a.packed.query, query);
  place.load(a.packed.grad, grad);
  OPUS_UNROLL
  for (int d = 0; d < kDepth; ++d) d_query[d] = 0;
  const float tau = a.packed.tau[place.head_row], norm = a.packed.query_norm[place.head_row];
  const float log_sum = a.packed.log_sum[place.head_row], delta = a.packed.delta[place.head_row];
  const Dropout seed = seeded(a.dropout, a.seeds, place.b);
  const uint32_t row_hash = seed.row_hash(place.head_query(a));
  for (int64_t t = warp(); t < a.tiles; t += kWarps) {
    const float bound =
        logit_bound(norm * a.packed.key_norm[place.bh * a.tiles + t], tau, place.centre,
                    a.packed.box + 6 * (place.b * a.tiles + t));
    if (__all_sync(kAll, bound < log_sum - a.negligible_gap || !place.exists)) continue;
    __syncwarp();  // the last tile has been read
    tile.load(a, place, t, a.packed.key, a.packed.value);
    if (kDrop) {
      const int64_t key = a.packed.row[place.b * a.rows() + t * kTile + lane()];
      tile.hash[lane()] = seed.key_hash(key);
    }
    __syncwarp();
    for_each_step<kBackwardStep>(a, t, [&](int step, int valid) {
      float distance[kBackwardStep];
      distances<1>(place.centre, tile.centre + 3 * step, Fixed<kBackwardStep>(), distance);
      query_gradient<1, kBackwardStep, kDepth, kBackwardStep, kDrop>(
          query, grad, tile.first + step * kDepth, tile.second + step * kDepth, distance,
          Fixed<kBackwardStep>(), valid, Fixed<kDepth>(), &tau, a.scale, &log_sum, &delta,
          a.dropout, &row_hash, tile.hash + step, d_query, &d_tau);
    });
  }
  __syncwarp();
  Sums& own = shared[warp()].sums;
  Sums::store(d_query, own.first);
  own.number[lane()] = d_tau;
  __syncthreads();
  for_each_result(a, [&](int64_t to, int d, int r, int at) {
    float value = 0, of_tau = 0;
    for (int w = 0; w < kWarps; ++w) {
      value += shared[w].sums.first[at];
      of_tau += shared[w].sums.number[r];
    }
    a.d_query[out_offset(a, to, d)] = value * a.scale;
    if (d == 0) a.d_tau[(blockIdx.z * a.heads + blockIdx.y) * a.queries + to] = of_tau;
  });
}

// Here the block's rows are keys and the tiles hold queries.
template <bool kDrop>
__global__ void __launch_bounds__(kBlock, 2)
    attention_key_gradient(const __grid_constant__ CudaArguments a) {
  __shared__ Shared shared[kWarps];
  Tile& tile = shared[warp()].tile;
  const Place place(a);
  float key[kDepth], value[kDepth], d_key[kDepth], d_value[kDepth];
  place.load(a.packed.key, key);
  place.load(a.packed.value, value);
  OPUS_UNROLL
  for (int d = 0; d < kDepth; ++d) d_key[d] = d_value[d] = 0;
  const float key_norm = a.packed.key_norm[place.bh * a.tiles + blockIdx.x];
  const float* box = a.packed.box + 6 * (place.b * a.tiles + blockIdx.x);
  const Dropout seed = seeded(a.dropout, a.seeds, place.b);
  const uint32_t key_hash = seed.key_hash(place.query(a));
  for (int64_t t = warp(); t < a.tiles; t += kWarps) {
    // Each lane checks for one query of the tile whether any of the block's keys is relevant.
    const int64_t row = t * kTile + lane(), head_row = place.bh * a.rows() + row;
    const float* centres = a.packed.centre + 3 * (place.b * a.rows() + row);
    const float centre[3] = {centres[0], centres[1], centres[2]};
    const float tau = a.packed.tau[head_row], log_sum = a.packed.log_sum[head_row];
    const float bound =
        logit_bound(a.packed.query_norm[head_row] * key_norm, tau, centre, box);
    if (__all_sync(kAll, bound < log_sum - a.negligible_gap || row >= a.queries)) continue;
    __syncwarp();  // the last tile has been read
    tile.load(a, place, t, a.packed.query, a.packed.grad);
    tile.tau[lane()] = tau;
    tile.log_sum[lane()] = log_sum;
    tile.delta[lane()] = a.packed.delta[head_row];
    if (kDrop) {
      const int64_t query = a.packed.row[place.b * a.rows() + row];
      tile.hash[lane()] =
          seed.row_hash((place.bh - place.b * a.heads) * a.queries + query);
    }
    __syncwarp();
    for_each_step<kBackwardStep>(a, t, [&](int step, int valid) {
      float distance[kBackwardStep];
      distances<1>(place.centre, tile.centre + 3 * step, Fixed<kBackwardStep>(), distance);
      key_gradient<1, kBackwardStep, kDepth, kBackwardStep, kDrop>(
          key, value, tile.first + step * kDepth, tile.second + step * kDepth, distance,
          Fixed<kBackwardStep>(), valid, Fixed<kDepth>(), tile.tau + step, a.scale,
          tile.log_sum + step, tile.delta + step, a.dropout, tile.hash + step, &key_hash, d_key,
          d_value);
    });
  }
  __syncwarp();
  Sums& own = shared[warp()].sums;
  Sums::store(d_key, own.first);
  Sums::store(d_value, own.second);
  __syncthreads();
  for_each_result(a, [&](int64_t to, int d, int, int at) {
    float of_key = 0, of_value = 0;
    for (int w = 0; w < kWarps; ++w) {
      of_key += shared[w].sums.first[at];
      of_value += shared[w].sums.second[at];
    }
    a.d_key[out_offset(a, to, d)] = of_key * a.scale;
    a.d_value[out_offset(a, to, d)] = of_value;
  });
}

bool is_empty(const CudaArguments& a) { return a.batch * a.heads * a.queries == 0; }

dim3 grid_of(const CudaArguments& a) {
  return dim3(static_cast<unsigned>(a.tiles), static_cast<unsigned>(a.heads),
              static_cast<unsigned>(a.batch));
}

}  // namespace

void pack_cuda(const CudaArguments& a, bool backward, CudaStream stream) {
  if (is_empty(a)) return;
  const dim3 blocks(static_cast<unsigned>(num_blocks(a.batch * a.heads * a.tiles, kWarps)));
  launch_kernel("distance_attention", backward ? attention_pack<true> : attention_pack<false>,
                blocks, dim3(kBlock), 0, stream, a);
}

void forward_cuda(const CudaArguments& a, CudaStream stream) {
  if (is_empty(a)) return;
  const bool drops = a.dropout.threshold > 0;
  launch_kernel("distance_attention", drops ? attention_forward<true> : attention_forward<false>,
                grid_of(a), dim3(kBlock), 0, stream, a);
}

void backward_cuda(const CudaArguments& a, CudaStream stream) {
  if (is_empty(a)) return;
  const bool drops = a.dropout.threshold > 0;
  launch_kernel("distance_attention_backward",
                drops ? attention_query_gradient<true> : attention_query_gradient<false>,
                grid_of(a), dim3(kBlock), 0, stream, a);
  launch_kernel("distance_attention_backward",
                drops ? attention_key_gradient<true> : attention_key_gradient<false>, grid_of(a),
                dim3(kBlock), 0, stream, a);
}

}  // namespace distance_attention
}  // namespace opus
