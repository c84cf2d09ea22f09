// Compiled into CUDA builds only.
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "common/launch.h"
#include "unique_voxels/unique_voxels_check.h"

namespace opus {
namespace {

// Synchronises with the device once, because the number of voxels determines a shape.
std::tuple<at::Tensor, at::Tensor> unique_voxels_cuda(const at::Tensor& keys, int64_t num_keys) {
  unique_voxels::check(keys, num_keys);
  const c10::DeviceGuard guard(keys.device());
  const CudaStream stream = current_stream(keys.device());
  const at::Tensor key = keys.contiguous();
  const int64_t n = key.size(0), num_words = num_blocks(num_keys, unique_voxels::kWordBits) + 1;
  const at::Tensor words = at::zeros({num_words}, key.options().dtype(at::kInt));
  const at::Tensor counts = at::empty_like(words);
  const at::Tensor first_bad = at::full({1}, n, key.options());
  const auto* key_data = key.const_data_ptr<int64_t>();
  auto* word_data = reinterpret_cast<uint32_t*>(words.mutable_data_ptr<int32_t>());
  unique_voxels::mark_keys_cuda(key_data, n, num_keys, word_data,
                                first_bad.mutable_data_ptr<int64_t>(), stream);
  const bit_set::CountBits count{word_data, counts.mutable_data_ptr<int32_t>()};
  launch_cuda(count, num_words, stream);
  const at::Tensor up_to = at::cumsum(counts, 0, at::kLong);
  const at::Tensor status = at::cat({first_bad, up_to.narrow(0, num_words - 1, 1)}).cpu();
  const int64_t bad = status.const_data_ptr<int64_t>()[0];
  TORCH_CHECK_VALUE(bad == n, "keys[", bad, "] is ", key[bad].item<int64_t>(),
                    ", expected 0 <= key < num_keys=", num_keys);
  const int64_t num_unique = status.const_data_ptr<int64_t>()[1];
  at::Tensor unique = at::empty({num_unique}, key.options());
  at::Tensor inverse = at::empty({n}, key.options());
  const auto* ends = up_to.const_data_ptr<int64_t>();
  const bit_set::ListMembers list{word_data, ends, unique.mutable_data_ptr<int64_t>(), num_unique};
  launch_cuda(list, num_words, stream);
  const unique_voxels::RankKeys rank{key_data, word_data, ends,
                                     inverse.mutable_data_ptr<int64_t>()};
  launch_cuda(rank, n, stream);
  return {unique, inverse};
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CUDA, m) { m.impl("unique_voxels", &unique_voxels_cuda); }

}  // namespace opus
