// Maxima over the points of voxels on the host. No include guard: included once for every
// instruction set, after common/lanes.h and voxel_max.h.

namespace opus {
namespace OPUS_TARGET {
namespace voxel_maxima {

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"  // no vectors in the ABI: all functions are inlined

// Maxima of NV vectors of channels from `first` on, over points [begin, end) of a voxel; end > begin.
template <int NV, typename T>
OPUS_BODY void reduce_channels(const T* features, int64_t channels, int64_t first,
                               const int64_t* begin, const int64_t* end, T* maximum,
                               int64_t* winner) {
  using V = Pack<T>;
  using Numbers = decltype(V().raw > V().raw);  // integers as wide as T
  V best[NV];
  Numbers which[NV];  // numbers of the winning points within the voxel
  for (int v = 0; v < NV; ++v) {
    best[v] = Lanes<V>::load(features + *begin * channels + first + v * V::kWidth);
    which[v] = Numbers{};
  }
  Numbers number{};
  for (const int64_t* point = begin + 1; point < end; ++point) {
    number += 1;
    for (int v = 0; v < NV; ++v) {
      const V value = Lanes<V>::load(features + *point * channels + first + v * V::kWidth);
      // see voxel_max::beats
      const Numbers replaces = (value.raw > best[v].raw) |
                               ((value.raw != value.raw) & (best[v].raw == best[v].raw));
      best[v].raw = replaces ? value.raw : best[v].raw;
      which[v] = replaces ? number : which[v];
    }
  }
  for (int v = 0; v < NV; ++v) {
    Lanes<V>::store(maximum + first + v * V::kWidth, best[v]);
    if (winner == nullptr) continue;
    for (int i = 0; i < V::kWidth; ++i) winner[first + v * V::kWidth + i] = begin[which[v][i]];
  }
}

#pragma GCC diagnostic pop

template <typename T>
void reduce_voxel(const T* features, int64_t channels, const int64_t* begin, const int64_t* end,
                  T* maximum, int64_t* winner) {
  constexpr int kWidth = Pack<T>::kWidth;
  // point numbers must fit into a lane
  const int64_t by_vectors = end - begin <= std::numeric_limits<int32_t>::max() ? channels : 0;
  int64_t c = 0;
  for (; c + 4 * kWidth <= by_vectors; c += 4 * kWidth) {
    reduce_channels<4>(features, channels, c, begin, end, maximum, winner);
  }
  for (; c + kWidth <= by_vectors; c += kWidth) {
    reduce_channels<1>(features, channels, c, begin, end, maximum, winner);
  }
  for (; c < channels; ++c) {
    const int64_t* best = begin;
    for (const int64_t* point = begin + 1; point < end; ++point) {
      if (voxel_max::beats(features[*point * channels + c], features[*best * channels + c])) {
        best = point;
      }
    }
    maximum[c] = features[*best * channels + c];
    if (winner != nullptr) winner[c] = *best;
  }
}

// Computes voxels begin .. end. The points of voxel v are order[starts[v] .. starts[v + 1]), in
// ascending order. A voxel without points gets 0 and winner -1; winner may be null.
template <typename T>
void reduce_voxels(const T* features, int64_t channels, const int64_t* starts,
                   const int64_t* order, int64_t begin, int64_t end, T* maximum, int64_t* winner) {
  for (int64_t v = begin; v < end; ++v) {
    T* to = maximum + v * channels;
    int64_t* winners = winner == nullptr ? nullptr : winner + v * channels;
    if (starts[v] == starts[v + 1]) {
      std::fill_n(to, channels, T(0));
      if (winners != nullptr) std::fill_n(winners, channels, int64_t(-1));
    } else {
      reduce_voxel(features, channels, order + starts[v], order + starts[v + 1], to, winners);
    }
  }
}

}  // namespace voxel_maxima
}  // namespace OPUS_TARGET
}  // namespace opus
