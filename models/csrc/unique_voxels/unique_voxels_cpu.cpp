// Unique voxels without sorting: one bit per voxel of the grid, and the rank of every bit.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "common/parallel.h"
#include "sparse_conv/ranked_bitmap.h"
#include "unique_voxels/unique_voxels_check.h"

namespace opus {
namespace {

constexpr int64_t kKeysPerTask = 8192;

std::tuple<at::Tensor, at::Tensor> unique_voxels_cpu(const at::Tensor& keys, int64_t num_keys) {
  unique_voxels::check(keys, num_keys);
  const at::Tensor contiguous = keys.contiguous();
  const int64_t* key = contiguous.const_data_ptr<int64_t>();
  const int64_t n = contiguous.size(0);
  RankedBitmap set(num_keys);
  for (int64_t i = 0; i < n; ++i) {
    TORCH_CHECK_VALUE(key[i] >= 0 && key[i] < num_keys, "keys[", i, "] is ", key[i],
                      ", expected 0 <= key < num_keys=", num_keys);
    set.set(key[i]);
  }
  at::Tensor unique = at::empty({set.index()}, keys.options());
  int64_t* next = unique.data_ptr<int64_t>();
  set.for_each([&](int64_t member) { *next++ = member; });
  at::Tensor inverse = at::empty({n}, keys.options());
  int64_t* rank = inverse.data_ptr<int64_t>();
  parallel_tasks(num_blocks(n, kKeysPerTask), [&](int64_t task) {
    const int64_t end = std::min(n, (task + 1) * kKeysPerTask);
    for (int64_t i = task * kKeysPerTask; i < end; ++i) rank[i] = set.rank(key[i]);
  });
  return {unique, inverse};
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) { m.impl("unique_voxels", &unique_voxels_cpu); }

}  // namespace opus
