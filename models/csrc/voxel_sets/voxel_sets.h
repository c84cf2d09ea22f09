// Sets of voxels as bitmaps, the output sets of sparse convolutions on them, and tables of
// neighbours; host and device.
#pragma once

#include <cstdint>
#include <limits>

#include "common/bit_set.h"
#include "common/defs.h"

namespace opus {
namespace voxel_sets {

constexpr int64_t kMaxVoxels = int64_t(1) << 34;  // 2 GiB of bits
constexpr int64_t kMaxSetting = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxPositions = int64_t(1) << 12;  // positions of a kernel

// Convolution between two grids; the grids of a batch are stored one after another.
struct Step {
  int64_t in_shape[3], out_shape[3], kernel[3], stride[3], padding[3];
};

OPUS_HD void set_bits(uint32_t* word, uint32_t bits) {
#if defined(__CUDA_ARCH__)
  atomicOr(word, bits);
#else
  __atomic_fetch_or(word, bits, __ATOMIC_RELAXED);  // host threads also share words
#endif
}

OPUS_HD int64_t volume(const int64_t* shape) { return shape[0] * shape[1] * shape[2]; }

// Splits a key into (grid, d0, d1, d2).
OPUS_HD void split_key(const int64_t* shape, int64_t key, int64_t* v) {
  v[3] = key % shape[2];
  key /= shape[2];
  v[2] = key % shape[1];
  key /= shape[1];
  v[1] = key % shape[0];
  v[0] = key / shape[0];
}

OPUS_HD int64_t join_key(const int64_t* shape, int64_t grid, int64_t d0, int64_t d1, int64_t d2) {
  return ((grid * shape[0] + d0) * shape[1] + d1) * shape[2] + d2;
}

struct MarkKeys {
  const int64_t* keys;
  int64_t num_keys;  // keys outside [0, num_keys) are ignored
  uint32_t* words;

  OPUS_HD void operator()(int64_t i) const {
    const int64_t key = keys[i];
    if (key < 0 || key >= num_keys) return;
    set_bits(words + key / bit_set::kWordBits, 1u << (key % bit_set::kWordBits));
  }
};

// Marks the outputs of the voxels of word w: a box per voxel, whose rows are runs of bits.
struct MarkReached {
  Step step;
  const uint32_t* words;
  uint32_t* reached;

  OPUS_HD void operator()(int64_t w) const {
    for (uint32_t rest = words[w]; rest != 0; rest &= rest - 1) {
      const int64_t bit = bit_set::count_ones((rest & (~rest + 1)) - 1);
      mark_box(w * bit_set::kWordBits + bit);
    }
  }

 private:
  OPUS_HD void mark_box(int64_t key) const {
    int64_t v[4], low[3], high[3];
    split_key(step.in_shape, key, v);
    for (int a = 0; a < 3; ++a) {  // outputs o with 0 <= in + padding - o * stride < kernel
      const int64_t last = v[1 + a] + step.padding[a], first = last - step.kernel[a] + 1;
      low[a] = first <= 0 ? 0 : (first + step.stride[a] - 1) / step.stride[a];
      high[a] = least_of(last / step.stride[a], step.out_shape[a] - 1);
    }
    for (int64_t d0 = low[0]; d0 <= high[0]; ++d0) {
      for (int64_t d1 = low[1]; d1 <= high[1]; ++d1) {
        const int64_t row = join_key(step.out_shape, v[0], d0, d1, 0);
        mark_run(row + low[2], row + high[2]);
      }
    }
  }

  OPUS_HD void mark_run(int64_t first, int64_t last) const {
    while (first <= last) {
      const int64_t w = first / bit_set::kWordBits, shift = first % bit_set::kWordBits;
      const int64_t count = least_of(last - first + 1, bit_set::kWordBits - shift);
      const uint32_t ones = count == bit_set::kWordBits ? ~0u : (1u << count) - 1;
      set_bits(reached + w, ones << shift);
      first += count;
    }
  }
};

// End of the members of grid g in the list of all members.
struct GridEnds {
  const uint32_t* words;
  const int64_t* up_to;
  int64_t voxels;  // per grid
  int64_t* ends;

  OPUS_HD void operator()(int64_t g) const {
    ends[g] = bit_set::rank(words, up_to, (g + 1) * voxels);
  }
};

// Index of every key in the list of members; -1 for an invalid key or an index from `limit` on.
struct PlaceOfKeys {
  const int64_t* keys;
  int64_t num_keys;
  const uint32_t* words;
  const int64_t* up_to;
  int64_t limit;
  int64_t* place;

  OPUS_HD void operator()(int64_t i) const {
    const int64_t key = keys[i];
    place[i] = -1;
    if (key < 0 || key >= num_keys) return;
    const int64_t rank = bit_set::rank(words, up_to, key);
    if (rank < limit) place[i] = rank;
  }
};

// Entry (row, position) of a table [rows, positions]: index, relative to `first`, of the voxel that
// the convolution connects with the row's voxel; `size` if there is none in first ... first + size.
struct Neighbors {
  Step step;
  const int64_t* rows;  // keys; keys outside the grids have no neighbours
  int64_t num_grids;
  bool of_inputs;       // true: rows are inputs and neighbours are outputs; false: the reverse
  const uint32_t* words;
  const int64_t* up_to;
  int64_t first, size;
  int32_t* table;

  OPUS_HD void operator()(int64_t i) const {
    const int64_t positions = step.kernel[0] * step.kernel[1] * step.kernel[2];
    const int64_t row = i / positions, position = i % positions;
    table[i] = static_cast<int32_t>(place(rows[row], position));
  }

 private:
  OPUS_HD int64_t place(int64_t key, int64_t position) const {
    if (key < 0) return size;
    const int64_t k[3] = {position / (step.kernel[1] * step.kernel[2]),
                          position / step.kernel[2] % step.kernel[1], position % step.kernel[2]};
    const int64_t* shape = of_inputs ? step.out_shape : step.in_shape;
    int64_t v[4], d[3];
    split_key(of_inputs ? step.in_shape : step.out_shape, key, v);
    if (v[0] >= num_grids) return size;
    for (int a = 0; a < 3; ++a) {
      if (of_inputs) {
        const int64_t shifted = v[1 + a] + step.padding[a] - k[a];
        d[a] = shifted / step.stride[a];
        if (shifted < 0 || d[a] * step.stride[a] != shifted) return size;
      } else {
        d[a] = v[1 + a] * step.stride[a] - step.padding[a] + k[a];
      }
      if (d[a] < 0 || d[a] >= shape[a]) return size;
    }
    const int64_t neighbor = join_key(shape, v[0], d[0], d[1], d[2]);
    if (!bit_set::test(words, neighbor)) return size;
    const int64_t rank = bit_set::rank(words, up_to, neighbor);
    return rank >= first && rank - first < size ? rank - first : size;
  }
};

}  // namespace voxel_sets
}  // namespace opus
