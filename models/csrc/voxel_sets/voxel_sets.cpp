// Chains of voxel sets, the outputs of successive convolutions, with at most one device
// synchronisation; and the neighbours of their voxels.
#include "voxel_sets/voxel_sets.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/launch.h"

namespace opus {
namespace {

using voxel_sets::Step;

constexpr int64_t kItemsPerTask = 8192;
constexpr int64_t kWordsPerTask = 1024;

void check_keys(const at::Tensor& keys, const char* name) {
  TORCH_CHECK_VALUE(keys.dim() == 1 && keys.scalar_type() == at::kLong, name,
                    " must be int64 [n], got ", keys.scalar_type(), " ", keys.sizes());
}

// Returns the number of voxels of all grids. The limit also applies to one grid if there are none.
int64_t checked_volume(const int64_t* shape, int64_t num_grids) {
  double voxels = static_cast<double>(std::max<int64_t>(num_grids, 1));
  for (int a = 0; a < 3; ++a) {
    TORCH_CHECK_VALUE(shape[a] >= 0, "extents must not be negative, got ", shape[a]);
    voxels *= static_cast<double>(shape[a]);
  }
  TORCH_CHECK_VALUE(voxels <= static_cast<double>(voxel_sets::kMaxVoxels),
                    "grids may have up to ", voxel_sets::kMaxVoxels, " voxels together, got ",
                    voxels);
  return num_grids * voxel_sets::volume(shape);
}

// Checked settings of one convolution; `shape` is that of its input.
Step make_step(at::IntArrayRef shape, at::IntArrayRef kernel, at::IntArrayRef stride,
               at::IntArrayRef padding) {
  Step step{};
  check_length(shape, 3, "shape");
  check_length(kernel, 3, "kernel_size");
  check_length(stride, 3, "stride");
  check_length(padding, 3, "padding");
  double positions = 1;
  for (int a = 0; a < 3; ++a) {
    TORCH_CHECK_VALUE(
        std::max({shape[a], kernel[a], stride[a], padding[a]}) <= voxel_sets::kMaxSetting &&
            shape[a] >= 0 && kernel[a] >= 1 && stride[a] >= 1 && padding[a] >= 0,
        "kernel_size and stride must be positive and padding not negative, none above ",
        voxel_sets::kMaxSetting, ", got ", kernel, ", ", stride, " and ", padding, " for a grid of ",
        shape);
    positions *= static_cast<double>(kernel[a]);
    step.in_shape[a] = shape[a];
    step.kernel[a] = kernel[a];
    step.stride[a] = stride[a];
    step.padding[a] = padding[a];
    const int64_t room = shape[a] + 2 * padding[a] - kernel[a];
    step.out_shape[a] = room < 0 ? 0 : room / stride[a] + 1;
  }
  TORCH_CHECK_VALUE(positions <= static_cast<double>(voxel_sets::kMaxPositions),
                    "a kernel may have up to ", voxel_sets::kMaxPositions, " positions, got ",
                    kernel);
  return step;
}

const uint32_t* words_of(const at::Tensor& words) {
  return reinterpret_cast<const uint32_t*>(words.const_data_ptr<int32_t>());
}

uint32_t* mutable_words_of(const at::Tensor& words) {
  return reinterpret_cast<uint32_t*>(words.mutable_data_ptr<int32_t>());
}

at::Tensor empty_set(int64_t num_keys, const at::TensorOptions& options) {
  return at::zeros({num_blocks(num_keys, bit_set::kWordBits) + 1}, options.dtype(at::kInt));
}

at::Tensor count_up_to(const at::Tensor& words) {
  const at::Tensor counts = at::empty_like(words);
  const bit_set::CountBits count{words_of(words), counts.mutable_data_ptr<int32_t>()};
  run(words.device(), count, words.size(0), kWordsPerTask);
  return at::cumsum(counts, 0, at::kLong);
}

// Without a capacity it synchronises with the device once, because shapes depend on the numbers of
// voxels.
std::tuple<std::vector<at::Tensor>, std::vector<at::Tensor>, std::vector<at::Tensor>, at::Tensor,
           at::Tensor>
voxel_sets_of_keys(const at::Tensor& keys, int64_t num_grids, at::IntArrayRef shape,
                   at::IntArrayRef kernels, at::IntArrayRef strides, at::IntArrayRef paddings,
                   at::OptionalIntArrayRef capacity) {
  check_keys(keys, "keys");
  TORCH_CHECK_VALUE(num_grids >= 0, "num_grids must not be negative, got ", num_grids);
  check_length(shape, 3, "shape");
  TORCH_CHECK_VALUE(kernels.size() % 3 == 0 && strides.size() == kernels.size() &&
                        paddings.size() == kernels.size(),
                    "kernels, strides and paddings must have three numbers a convolution, got ",
                    kernels, ", ", strides, " and ", paddings);
  const auto num_sets = static_cast<int64_t>(kernels.size() / 3 + 1);
  TORCH_CHECK_VALUE(!capacity || static_cast<int64_t>(capacity->size()) == num_sets,
                    "capacity must have ", num_sets, " entries");
  const c10::DeviceGuard guard(keys.device());
  const at::Tensor key = keys.contiguous();
  const auto device = key.device();
  const int64_t n = key.size(0), num_keys = checked_volume(shape.data(), num_grids);

  std::vector<at::Tensor> words{empty_set(num_keys, key.options())}, up_to;
  const voxel_sets::MarkKeys mark{key.const_data_ptr<int64_t>(), num_keys,
                                  mutable_words_of(words[0])};
  run(device, mark, n, kItemsPerTask);
  up_to.push_back(count_up_to(words[0]));
  std::vector<int64_t> volumes{voxel_sets::volume(shape.data())};
  std::vector<int64_t> current(shape.begin(), shape.end());
  for (int64_t s = 0; s + 1 < num_sets; ++s) {
    const Step step = make_step(current, kernels.slice(3 * s, 3), strides.slice(3 * s, 3),
                                paddings.slice(3 * s, 3));
    current.assign(step.out_shape, step.out_shape + 3);
    words.push_back(empty_set(checked_volume(step.out_shape, num_grids), key.options()));
    const voxel_sets::MarkReached reach{step, words_of(words[s]), mutable_words_of(words[s + 1])};
    run(device, reach, words[s].size(0), kWordsPerTask);
    up_to.push_back(count_up_to(words[s + 1]));
    volumes.push_back(voxel_sets::volume(step.out_shape));
  }
  at::Tensor ends = at::zeros({num_sets, num_grids}, key.options());
  for (int64_t s = 0; s < num_sets; ++s) {
    const voxel_sets::GridEnds body{words_of(words[s]), up_to[s].const_data_ptr<int64_t>(),
                                    volumes[s],
                                    ends.mutable_data_ptr<int64_t>() + s * num_grids};
    run(device, body, num_grids, kItemsPerTask);
  }
  if (!capacity) ends = ends.cpu();

  std::vector<at::Tensor> members;
  for (int64_t s = 0; s < num_sets; ++s) {
    int64_t size = capacity ? (*capacity)[s] : 0;
    if (!capacity && num_grids > 0) {
      size = ends.const_data_ptr<int64_t>()[(s + 1) * num_grids - 1];
    }
    TORCH_CHECK_VALUE(size >= 0 && size <= voxel_sets::kMaxSetting, "a set may have up to ",
                      voxel_sets::kMaxSetting, " voxels, got ", size);
    members.push_back(capacity ? at::full({size}, -1, key.options())
                               : at::empty({size}, key.options()));
    const bit_set::ListMembers list{words_of(words[s]), up_to[s].const_data_ptr<int64_t>(),
                                    members[s].mutable_data_ptr<int64_t>(), size};
    run(device, list, words[s].size(0), kWordsPerTask);
  }
  at::Tensor place = at::empty({n}, key.options());
  const voxel_sets::PlaceOfKeys body{key.const_data_ptr<int64_t>(), num_keys, words_of(words[0]),
                                     up_to[0].const_data_ptr<int64_t>(), members[0].size(0),
                                     place.mutable_data_ptr<int64_t>()};
  run(device, body, n, kItemsPerTask);
  return {members, words, up_to, ends, place};
}

// Returns int32 [rows, positions]; see voxel_sets::Neighbors. No synchronisation.
at::Tensor voxel_neighbors(const at::Tensor& rows, at::IntArrayRef shape, at::IntArrayRef kernel,
                           at::IntArrayRef stride, at::IntArrayRef padding, bool of_inputs,
                           int64_t num_grids, const at::Tensor& words, const at::Tensor& up_to,
                           int64_t first, int64_t size) {
  check_keys(rows, "rows");
  TORCH_CHECK_VALUE(num_grids >= 0, "num_grids must not be negative, got ", num_grids);
  const Step step = make_step(shape, kernel, stride, padding);
  const int64_t positions = step.kernel[0] * step.kernel[1] * step.kernel[2];
  if (checked_volume(of_inputs ? step.in_shape : step.out_shape, 1) == 0) {  // no valid keys
    return at::full({rows.size(0), positions}, size, rows.options().dtype(at::kInt));
  }
  const int64_t num_keys = checked_volume(of_inputs ? step.out_shape : step.in_shape, num_grids);
  const int64_t num_words = num_blocks(num_keys, bit_set::kWordBits) + 1;
  TORCH_CHECK_VALUE(words.dim() == 1 && words.size(0) == num_words &&
                        words.scalar_type() == at::kInt && words.is_contiguous(),
                    "words must be int32 [", num_words, "], got ", words.scalar_type(), " ",
                    words.sizes());
  TORCH_CHECK_VALUE(up_to.sizes() == words.sizes() && up_to.scalar_type() == at::kLong &&
                        up_to.is_contiguous(),
                    "up_to must be int64 [", num_words, "], got ", up_to.scalar_type(), " ",
                    up_to.sizes());
  TORCH_CHECK_VALUE(size >= 0 && size <= voxel_sets::kMaxSetting && first >= 0 &&
                        first <= voxel_sets::kMaxSetting,
                    "first and size must lie in [0, ", voxel_sets::kMaxSetting, "], got ", first,
                    " and ", size);
  check_same_device(words, "words", rows, "rows");
  check_same_device(up_to, "up_to", rows, "rows");
  const c10::DeviceGuard guard(rows.device());
  const at::Tensor row = rows.contiguous();
  at::Tensor table = at::empty({row.size(0), positions}, row.options().dtype(at::kInt));
  const voxel_sets::Neighbors body{step, row.const_data_ptr<int64_t>(), num_grids, of_inputs,
                                   words_of(words), up_to.const_data_ptr<int64_t>(), first, size,
                                   table.mutable_data_ptr<int32_t>()};
  run(row.device(), body, table.numel(), kItemsPerTask);
  return table;
}

}  // namespace

OPUS_REGISTER(m) {
  m.impl("voxel_sets", &voxel_sets_of_keys);
  m.impl("voxel_neighbors", &voxel_neighbors);
}

}  // namespace opus
