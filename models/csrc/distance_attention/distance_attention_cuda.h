// Launchers of distance-biased attention on CUDA; requires no headers of CUDA or torch.
#pragma once

#include <cstdint>

#include "common/cuda_launch.h"
#include "common/defs.h"
#include "common/half_bits.h"
#include "distance_attention/distance_attention.h"

namespace opus {
namespace distance_attention {

constexpr int kCudaDepth = 32;  // channels of a packed row; heads may have fewer
constexpr int kCudaTile = 32;   // rows of a tile: one per lane of a warp

// [B, H, Q, depth] with any strides.
struct RowsView {
  const void* data;
  Storage storage;
  int64_t batch_stride, head_stride, row_stride, channel_stride;
};

// Rows in spatial order, padded to whole tiles; rows past the last query are zero.
struct Packed {
  float *query, *key, *value, *grad;  // [batch, heads, rows, kCudaDepth]
  float *tau, *log_sum, *delta;       // [batch, heads, rows]
  float *query_norm, *self_logit;     // multiplied by the scale
  float* key_norm;                    // largest norm in a tile, [batch, heads, tiles]
  float* centre;                      // [batch, rows, 3]
  float* box;                         // [batch, tiles, 6], lower then upper corner
  int64_t* row;                       // index of the query, [batch, rows]
};

struct CudaArguments {
  int64_t batch, heads, queries, tiles;
  int depth;
  float scale, negligible_gap;
  Dropout dropout;
  const int64_t* seeds;        // [B], or null without dropout
  // inputs of the operation, unpacked
  RowsView query, key, value;
  const float *tau, *centres;  // [B, H, Q] and [B, Q, 3]
  const int64_t* order;        // [B, Q], or null to keep the order
  // only in the backward pass, else null
  RowsView grad, result;
  const float* log_sum_in;     // [B, H, Q]
  Packed packed;
  float *out, *log_sum;        // [B, Q, H, depth] and [B, H, Q]
  float *d_query, *d_key, *d_value, *d_tau;

  OPUS_HD int64_t rows() const { return tiles * kCudaTile; }
};

// Fills `packed`. The other launchers read only packed rows.
void pack_cuda(const CudaArguments& arguments, bool backward, CudaStream stream);
void forward_cuda(const CudaArguments& arguments, CudaStream stream);
void backward_cuda(const CudaArguments& arguments, CudaStream stream);

}  // namespace distance_attention
}  // namespace opus
