// Sampling on the host. No include guard: included once for every instruction set, after
// common/lanes.h and multi_view_sampling_body.h.

namespace opus {
namespace OPUS_TARGET {
namespace sampling_rows {

using namespace sampling_body;

// The texels that a sample reads and their weights, level by level.
template <typename S, typename T>
struct Reads {
  static constexpr int kMost = 4 * kMaxLevels;
  const S* texels[kMost];
  T weights[kMost];
  int64_t strides[kMost];  // of channels
  int count;

  void find(const Shape& s, const Level<const S>* levels, int64_t b, int t, int g,
            const Projection<T>& at, const T* level_weights) {
    count = 0;
    if (at.camera < 0) return;
    for (int l = 0; l < s.levels; ++l) {
      Taps<T> taps;
      if (!taps_of(s, levels[l], at, taps)) continue;
      const int64_t stride = levels[l].channel_stride;
      for (int k = 0; k < 4; ++k, ++count) {
        texels[count] =
            levels[l].texel(b, t * s.cams + at.camera, taps.y[k >> 1], taps.x[k & 1]) +
            g * s.per_group * stride;
        weights[count] = level_weights[l] * (taps.wy[k >> 1] * taps.wx[k & 1]);
        strides[count] = stride;
      }
    }
  }
  // End of the run of reads from `begin` on with the same layout: channels adjacent or apart.
  int end_of_run(int begin) const {
    int end = begin;
    while (end < count && (strides[end] == 1) == (strides[begin] == 1)) ++end;
    return end;
  }
  void prefetch(int length) const {
    for (int i = 0; i < count; ++i) {
      if (strides[i] != 1) continue;
      const char* line = reinterpret_cast<const char*>(texels[i]);
      for (size_t at = 0; at < length * sizeof(S); at += 64) __builtin_prefetch(line + at);
    }
  }
};

// Calls visit(Fixed<number of vectors>, first channel) for whole vectors of `channels`; returns
// how many channels these are.
template <typename V, typename Visit>
OPUS_BODY int for_each_chunk(int channels, const Visit& visit) {
  constexpr int kWidth = Lanes<V>::kWidth;
  int first = 0;
  for (; first + 8 * kWidth <= channels; first += 8 * kWidth) visit(Fixed<8>(), first);
  for (; first + 2 * kWidth <= channels; first += 2 * kWidth) visit(Fixed<2>(), first);
  for (; first + kWidth <= channels; first += kWidth) visit(Fixed<1>(), first);
  return first;
}

// Adds the reads begin .. end, whose channels are adjacent, to `out`, or sets it to their sum.
template <typename S, typename T>
void read_adjacent(const Reads<S, T>& reads, int begin, int end, const Shape& s, T* out) {
  using V = Pack<T>;
  const int whole = for_each_chunk<V>(s.per_group, [&](auto vectors, int at) {
    constexpr int NV = decltype(vectors)::value;
    V sum[NV];
    for (int v = 0; v < NV; ++v) {
      sum[v] = begin == 0 ? Lanes<V>::fill(T(0)) : Lanes<V>::load(out + at + v * Lanes<V>::kWidth);
    }
    add_reads<NV>(reads.texels + begin, reads.weights + begin, end - begin, at, sum);
    for (int v = 0; v < NV; ++v) Lanes<V>::store(out + at + v * Lanes<V>::kWidth, sum[v]);
  });
  for (int c = whole; c < s.per_group; ++c) {
    if (begin == 0) out[c] = 0;
    for (int i = begin; i < end; ++i) {
      out[c] += reads.weights[i] * static_cast<T>(widen(reads.texels[i][c]));
    }
  }
}

// Sums are in the order of the levels for any memory layout, so overflow does not depend on it.
template <typename S, typename T>
void read(const Reads<S, T>& reads, const Shape& s, T* out) {
  const bool starts_apart = reads.count == 0 || reads.strides[0] != 1;
  if (starts_apart) std::fill_n(out, s.per_group, T(0));
  for (int begin = 0; begin < reads.count;) {
    const int end = reads.end_of_run(begin);
    if (reads.strides[begin] == 1) {
      read_adjacent(reads, begin, end, s, out);
    } else {
      for (int i = begin; i < end; ++i) {
        for (int c = 0; c < s.per_group; ++c) {
          out[c] += reads.weights[i] * static_cast<T>(widen(reads.texels[i][c * reads.strides[i]]));
        }
      }
    }
    begin = end;
  }
}

// Rows of the queries begin .. end of [B * Q].
template <typename S, typename T>
void forward_queries(const Shape& s, const Level<const S>* levels, const Inputs<T>& in,
                     int64_t begin, int64_t end, T* out) {
  const auto samples = static_cast<int>(s.samples_per_query());
  const int64_t total = (end - begin) * samples;
  // One sample is read while the texels of the next are prefetched.
  Reads<S, T> reads[2];
  const auto prepare = [&](int64_t index) {
    const int64_t bq = begin + index / samples, b = bq / s.queries;
    const Sample at = sample_at(s, static_cast<int>(index % samples));
    const T* point = in.point(s, bq, at.g * s.points + at.p);
    reads[index % 2].find(s, levels, b, at.t, at.g, in.camera(s, b, at.t, point),
                          in.weights + in.weight_row(s, bq, at.t, at.g, at.p));
    reads[index % 2].prefetch(s.per_group);
  };
  if (total > 0) prepare(0);
  for (int64_t index = 0; index < total; ++index) {
    if (index + 1 < total) prepare(index + 1);
    read(reads[index % 2], s, out + (begin * samples + index) * s.per_group);
  }
}

// Reads of all samples, [B * Q, samples of a query].
template <typename T>
void project_queries(const Shape& s, const Inputs<T>& in, int64_t begin, int64_t end,
                     Projection<T>* projections) {
  const auto samples = static_cast<int>(s.samples_per_query());
  for (int64_t bq = begin; bq < end; ++bq) {
    for (int i = 0; i < samples; ++i) {
      const Sample at = sample_at(s, i);
      projections[bq * samples + i] =
          in.camera(s, bq / s.queries, at.t, in.point(s, bq, at.g * s.points + at.p));
    }
  }
}

template <typename S, typename T>
void dots(const S* const* texels, const T* grad, const Shape& s, int64_t channel_stride, T* dot) {
  using V = Pack<T>;
  for (int k = 0; k < 4; ++k) dot[k] = 0;
  int first = 0;
  if (channel_stride == 1) {
    V sums[4];
    for (int k = 0; k < 4; ++k) sums[k] = Lanes<V>::fill(T(0));
    first = for_each_chunk<V>(s.per_group, [&](auto vectors, int at) {
      dot_adjacent<decltype(vectors)::value, V>(texels, grad, at, at, sums);
    });
    for (int k = 0; k < 4; ++k) dot[k] = sum_of_lanes(sums[k]);
  }
  for (int c = first; c < s.per_group; ++c) {
    for (int k = 0; k < 4; ++k) {
      dot[k] += grad[c] * static_cast<T>(widen(texels[k][c * channel_stride]));
    }
  }
}

// Gradients of points and level weights of the queries begin .. end: all frames and groups that
// share a point or a weight belong to one query.
template <typename S, typename T>
void backward_queries(const Shape& s, const Level<const S>* levels, const Inputs<T>& in,
                      const Projection<T>* projections, const T* grad, int64_t begin, int64_t end,
                      T* d_points, T* d_weights) {
  const auto samples = static_cast<int>(s.samples_per_query());
  for (int64_t row = begin * samples; row < end * samples; ++row) {
    const Projection<T>& at = projections[row];
    if (at.camera < 0) continue;
    const int64_t bq = row / samples, b = bq / s.queries;
    const Sample sample = sample_at(s, static_cast<int>(row % samples));
    const int64_t image = sample.t * s.cams + at.camera;
    const int64_t weight = in.weight_row(s, bq, sample.t, sample.g, sample.p);
    T du = 0, dv = 0;
    for (int l = 0; l < s.levels; ++l) {
      const Level<const S>& level = levels[l];
      Taps<T> taps;
      if (!taps_of(s, level, at, taps)) continue;
      const S* texels[4];
      for (int k = 0; k < 4; ++k) {
        texels[k] = level.texel(b, image, taps.y[k >> 1], taps.x[k & 1]) +
                    sample.g * s.per_group * level.channel_stride;
      }
      T dot[4];
      dots(texels, grad + row * s.per_group, s, level.channel_stride, dot);
      const PixelGradient<T> pixel = pixel_gradient(
          taps, dot, in.weights[weight + l], static_cast<T>(level.w - 1) / static_cast<T>(s.img_w),
          static_cast<T>(level.h - 1) / static_cast<T>(s.img_h));
      d_weights[weight + l] += pixel.weight;
      du += pixel.u;
      dv += pixel.v;
    }
    point_gradient(at, du, dv, in.matrices + 16 * (b * s.images + image),
                   d_points + 3 * (bq * s.points_per_query() + sample.g * s.points + sample.p));
  }
}

// Gradients of the maps from one sample b, frame t and group g, which share no texels with others.
template <typename T>
void backward_maps(const Shape& s, const Level<T>* d_levels, const Inputs<T>& in,
                   const Projection<T>* projections, const T* grad, int64_t b, int t, int g) {
  using V = Pack<T>;
  const int64_t samples = s.samples_per_query();
  for (int64_t bq = b * s.queries; bq < (b + 1) * s.queries; ++bq) {
    for (int p = 0; p < s.points; ++p) {
      const int64_t row = bq * samples + (static_cast<int64_t>(g) * s.frames + t) * s.points + p;
      const Projection<T>& at = projections[row];
      if (at.camera < 0) continue;
      const T* d_out = grad + row * s.per_group;
      const T* weights = in.weights + in.weight_row(s, bq, t, g, p);
      for (int l = 0; l < s.levels; ++l) {
        Taps<T> taps;
        if (!taps_of(s, d_levels[l], at, taps)) continue;
        for (int k = 0; k < 4; ++k) {
          if (!taps.exists(k)) continue;
          const T weight = weights[l] * (taps.wy[k >> 1] * taps.wx[k & 1]);
          T* texel = d_levels[l].texel(b, t * s.cams + at.camera, taps.y[k >> 1], taps.x[k & 1]) +
                     g * s.per_group;
          const int first = for_each_chunk<V>(s.per_group, [&](auto vectors, int channel) {
            add_adjacent<decltype(vectors)::value, V>(weight, d_out, channel, texel);
          });
          for (int c = first; c < s.per_group; ++c) texel[c] += weight * d_out[c];
        }
      }
    }
  }
}

}  // namespace sampling_rows
}  // namespace OPUS_TARGET
}  // namespace opus
