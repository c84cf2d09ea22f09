// Tiles of distance-biased attention on the host. No include guard: included once for every
// instruction set, after common/lanes.h and distance_attention_body.h.
//
// A task is kTile queries (or kTile keys, for the gradients of keys) of a sample with all heads.
// Distances to a block of the other side are computed once for all heads. The lanes of a task form
// groups of NQ vectors. Blocks with negligible weights are skipped.

namespace opus {
namespace OPUS_TARGET {
namespace attention_tiles {

using namespace attention_body;
using distance_attention::Box;
using distance_attention::kTile;
using distance_attention::Rows;

constexpr int NQ = 2, NR = 4, ND = 4;

// Rows of a group of lanes, clamped to the last query: unused lanes repeat it.
template <typename T>
struct Group {
  using V = Pack<T>;
  static constexpr int kSize = NQ * V::kWidth;
  static constexpr int kPerTile = kTile / kSize;
  int64_t row[kSize];
  int count;  // number of lanes with a query
  V centre[3 * NQ];
  Box<T> box;

  void set(const Rows<T>& in, int64_t b, int64_t first) {
    count = static_cast<int>(std::max<int64_t>(0, std::min<int64_t>(kSize, in.queries - first)));
    T centres[3 * kSize];
    for (int i = 0; i < kSize; ++i) {
      row[i] = std::min(first + i, in.queries - 1);
      for (int a = 0; a < 3; ++a) centres[3 * i + a] = in.centre[3 * (b * in.rows + row[i]) + a];
    }
    box = distance_attention::box_of(centres, kSize);
    for (int a = 0; a < 3; ++a) {
      T* lanes = reinterpret_cast<T*>(centre) + a * kSize;
      for (int i = 0; i < kSize; ++i) lanes[i] = centres[3 * i + a];
    }
  }
  // lanes[d * kSize + i] = source[row i][d]
  void load(const T* source, int depth, V* lanes) const {
    for (int i = 0; i < kSize; ++i) {
      for (int d = 0; d < depth; ++d) {
        reinterpret_cast<T*>(lanes)[d * kSize + i] = source[row[i] * depth + d];
      }
    }
  }
  void store(const V* lanes, int depth, T factor, T* target) const {
    for (int i = 0; i < count; ++i) {
      for (int d = 0; d < depth; ++d) {
        target[row[i] * depth + d] = reinterpret_cast<const T*>(lanes)[d * kSize + i] * factor;
      }
    }
  }
  void load_words(const uint32_t* source, uint32_t* words) const {
    for (int i = 0; i < kSize; ++i) words[i] = source[row[i]];
  }
};

// State of one head of a group in the forward pass; the backward passes use a part of it.
template <typename T>
struct HeadState {
  using V = Pack<T>;
  static constexpr int kSize = Group<T>::kSize;
  V *first, *second;          // input lanes, [depth][NQ] each
  V *sum_first, *sum_second;  // output lanes
  V tau[NQ], log_sum[NQ], delta[NQ], d_tau[NQ];
  Softmax<NQ, V> softmax;
  alignas(OPUS_PACK_BYTES) uint32_t hash[kSize];
  T norm[kSize];
};

// Aligned storage for the states of one task.
template <typename T>
class States {
 public:
  using V = Pack<T>;
  States(int64_t heads, int depth)
      : heads_(heads), states_(heads * Group<T>::kPerTile),
        lanes_(heads * Group<T>::kPerTile * 4 * depth * NQ + 1) {
    auto address = reinterpret_cast<uintptr_t>(lanes_.data());
    V* next = reinterpret_cast<V*>(address + -address % OPUS_PACK_BYTES);
    for (HeadState<T>& state : states_) {
      for (V** part : {&state.first, &state.second, &state.sum_first, &state.sum_second}) {
        *part = next;
        next += depth * NQ;
      }
      for (int i = 0; i < depth * NQ; ++i) {
        state.sum_first[i] = state.sum_second[i] = Lanes<V>::fill(T(0));
      }
    }
  }
  HeadState<T>& at(int group, int64_t head) { return states_[group * heads_ + head]; }

 private:
  struct alignas(OPUS_PACK_BYTES) Storage { unsigned char bytes[OPUS_PACK_BYTES]; };
  int64_t heads_;
  std::vector<HeadState<T>> states_;
  std::vector<Storage> lanes_;
};

template <typename T>
void load_norms(int depth, T scale, HeadState<T>& state) {
  for (int i = 0; i < Group<T>::kSize; ++i) {
    T square = 0;
    for (int d = 0; d < depth; ++d) {
      const T x = reinterpret_cast<const T*>(state.first)[d * Group<T>::kSize + i];
      square += x * x;
    }
    state.norm[i] = std::sqrt(square) * scale;
  }
}

// Returns whether all logits of a block are far below `level` (running maximum or log_sum).
template <typename T>
bool is_negligible(const HeadState<T>& state, const Pack<T>* level, T key_norm, T least, T largest,
                   T gap) {
  for (int i = 0; i < Group<T>::kSize; ++i) {
    const T tau = reinterpret_cast<const T*>(state.tau)[i];
    const T bound = distance_attention::logit_bound(state.norm[i] * key_norm, tau, least, largest);
    if (!(bound < reinterpret_cast<const T*>(level)[i] - gap)) return false;
  }
  return true;
}

// Block of step 0, 1, ...: the task's own block first, since its logits are likely the largest.
inline int64_t block_at(int64_t step, int64_t own) {
  return step == 0 ? own : (step <= own ? step - 1 : step);
}

// Calls visit(group index, head, block, first row, valid rows, distances) for all blocks that are
// not skipped.
template <typename T, typename Skip, typename Visit>
void for_each_block(const Rows<T>& in, int64_t b, int64_t own, const Group<T>* groups,
                    const std::vector<Box<T>>& boxes, const Skip& skip, const Visit& visit) {
  using V = Pack<T>;
  V distance[kTile * NQ];
  for (int64_t step = 0; step < in.blocks(); ++step) {
    const int64_t block = block_at(step, own), first = block * kTile;
    const int valid = static_cast<int>(std::min<int64_t>(kTile, in.queries - first));
    for (int g = 0; g < Group<T>::kPerTile && groups[g].count > 0; ++g) {
      bool known = false;
      T least, largest;
      distance_attention::box_distances(groups[g].box, boxes[b * in.blocks() + block], least,
                                        largest);
      for (int64_t h = 0; h < in.heads; ++h) {
        if (in.may_skip && skip(g, h, block, valid, least, largest)) continue;
        if (!known) {
          distances<NQ>(groups[g].centre, in.centre + 3 * (b * in.rows + first), kTile, distance);
          known = true;
        }
        visit(g, h, first, valid, distance);
      }
    }
  }
}

// Computes out [batch, heads, rows, depth] and log_sum [batch, heads, rows] for the queries of one
// task.
template <bool kDrop, typename T>
void forward_task(const Rows<T>& in, const std::vector<Box<T>>& boxes,
                  const distance_attention::Dropout& dropout, int64_t task, T* out, T* log_sum) {
  using V = Pack<T>;
  const int64_t b = task / in.blocks(), own = task % in.blocks();
  const T gap = distance_attention::negligible_gap<T>(in.queries);
  Group<T> groups[Group<T>::kPerTile];
  States<T> states(in.heads, in.depth);
  for (int g = 0; g < Group<T>::kPerTile; ++g) {
    groups[g].set(in, b, own * kTile + g * Group<T>::kSize);
    for (int64_t h = 0; h < in.heads; ++h) {
      HeadState<T>& state = states.at(g, h);
      groups[g].load(in.query + in.head_row(b, h, 0) * in.depth, in.depth, state.first);
      groups[g].load(in.tau + in.head_row(b, h, 0), 1, state.tau);
      groups[g].load_words(in.row_hash + in.head_row(b, h, 0), state.hash);
      load_norms(in.depth, in.scale, state);
      for (int i = 0; i < NQ; ++i) {
        state.softmax.max[i] = Lanes<V>::fill(-std::numeric_limits<T>::infinity());
        state.softmax.sum[i] = Lanes<V>::fill(T(0));
      }
    }
  }
  for_each_block(
      in, b, own, groups, boxes,
      [&](int g, int64_t h, int64_t block, int, T least, T largest) {
        const HeadState<T>& state = states.at(g, h);
        return is_negligible(state, state.softmax.max,
                             in.key_norm[(b * in.heads + h) * in.blocks() + block], least, largest,
                             gap);
      },
      [&](int g, int64_t h, int64_t first, int valid, const V* distance) {
        HeadState<T>& state = states.at(g, h);
        const int64_t row = in.head_row(b, h, first);
        typename Lanes<V>::Words hash[NQ];
        for (int i = 0; i < NQ; ++i) Lanes<V>::load_words(state.hash + i * V::kWidth, hash[i]);
        attend<NQ, NR, ND, kTile, kDrop>(
            state.first, in.key + row * in.depth, in.value + row * in.depth, distance, kTile,
            valid, in.depth, state.tau, in.scale, dropout, hash,
            in.key_hash + b * in.rows + first, state.softmax, state.sum_first);
      });
  for (int g = 0; g < Group<T>::kPerTile; ++g) {
    for (int64_t h = 0; h < in.heads; ++h) {
      HeadState<T>& state = states.at(g, h);
      T* sums = reinterpret_cast<T*>(state.softmax.sum);
      T* maxima = reinterpret_cast<T*>(state.softmax.max);
      for (int i = 0; i < in.depth * NQ; ++i) {
        state.sum_first[i] = state.sum_first[i] / state.softmax.sum[i % NQ];
      }
      groups[g].store(state.sum_first, in.depth, T(1), out + in.head_row(b, h, 0) * in.depth);
      for (int i = 0; i < groups[g].count; ++i) {
        log_sum[in.head_row(b, h, groups[g].row[i])] = maxima[i] + std::log(sums[i]);
      }
    }
  }
}

// Computes the gradients of the queries and of tau for one task.
template <bool kDrop, typename T>
void query_gradient_task(const Rows<T>& in, const std::vector<Box<T>>& boxes,
                         const distance_attention::Dropout& dropout, int64_t task, T* d_query,
                         T* d_tau) {
  using V = Pack<T>;
  const int64_t b = task / in.blocks(), own = task % in.blocks();
  const T gap = distance_attention::negligible_gap<T>(in.queries);
  Group<T> groups[Group<T>::kPerTile];
  States<T> states(in.heads, in.depth);
  for (int g = 0; g < Group<T>::kPerTile; ++g) {
    groups[g].set(in, b, own * kTile + g * Group<T>::kSize);
    for (int64_t h = 0; h < in.heads; ++h) {
      HeadState<T>& state = states.at(g, h);
      const int64_t start = in.head_row(b, h, 0);
      groups[g].load(in.query + start * in.depth, in.depth, state.first);
      groups[g].load(in.grad + start * in.depth, in.depth, state.second);
      groups[g].load(in.tau + start, 1, state.tau);
      groups[g].load(in.log_sum + start, 1, state.log_sum);
      groups[g].load(in.delta + start, 1, state.delta);
      groups[g].load_words(in.row_hash + start, state.hash);
      load_norms(in.depth, in.scale, state);
      for (int i = 0; i < NQ; ++i) state.d_tau[i] = Lanes<V>::fill(T(0));
    }
  }
  for_each_block(
      in, b, own, groups, boxes,
      [&](int g, int64_t h, int64_t block, int, T least, T largest) {
        const HeadState<T>& state = states.at(g, h);
        return is_negligible(state, state.log_sum,
                             in.key_norm[(b * in.heads + h) * in.blocks() + block], least, largest,
                             gap);
      },
      [&](int g, int64_t h, int64_t first, int valid, const V* distance) {
        HeadState<T>& state = states.at(g, h);
        const int64_t row = in.head_row(b, h, first);
        typename Lanes<V>::Words hash[NQ];
        for (int i = 0; i < NQ; ++i) Lanes<V>::load_words(state.hash + i * V::kWidth, hash[i]);
        query_gradient<NQ, NR, ND, kTile, kDrop>(
            state.first, state.second, in.key + row * in.depth, in.value + row * in.depth,
            distance, kTile, valid, in.depth, state.tau, in.scale, state.log_sum, state.delta,
            dropout, hash, in.key_hash + b * in.rows + first, state.sum_first, state.d_tau);
      });
  for (int g = 0; g < Group<T>::kPerTile; ++g) {
    for (int64_t h = 0; h < in.heads; ++h) {
      HeadState<T>& state = states.at(g, h);
      const int64_t start = in.head_row(b, h, 0);
      groups[g].store(state.sum_first, in.depth, in.scale, d_query + start * in.depth);
      groups[g].store(state.d_tau, 1, T(1), d_tau + start);
    }
  }
}

// Computes the gradients of keys and values for one task.
template <bool kDrop, typename T>
void key_gradient_task(const Rows<T>& in, const std::vector<Box<T>>& boxes,
                       const distance_attention::Dropout& dropout, int64_t task, T* d_key,
                       T* d_value) {
  using V = Pack<T>;
  const int64_t b = task / in.blocks(), own = task % in.blocks();
  const T gap = distance_attention::negligible_gap<T>(in.queries);
  Group<T> groups[Group<T>::kPerTile];
  States<T> states(in.heads, in.depth);
  for (int g = 0; g < Group<T>::kPerTile; ++g) {
    groups[g].set(in, b, own * kTile + g * Group<T>::kSize);
    for (int64_t h = 0; h < in.heads; ++h) {
      HeadState<T>& state = states.at(g, h);
      const int64_t start = in.head_row(b, h, 0) * in.depth;
      groups[g].load(in.key + start, in.depth, state.first);
      groups[g].load(in.value + start, in.depth, state.second);
      groups[g].load_words(in.key_hash + b * in.rows, state.hash);
      load_norms(in.depth, in.scale, state);
    }
  }
  for_each_block(
      in, b, own, groups, boxes,
      [&](int g, int64_t h, int64_t block, int valid, T least, T largest) {
        const HeadState<T>& state = states.at(g, h);
        const T norm = *std::max_element(state.norm, state.norm + Group<T>::kSize) *
                       in.query_norm[(b * in.heads + h) * in.blocks() + block];
        const int64_t row = in.head_row(b, h, block * kTile);
        for (int j = 0; j < valid; ++j) {
          const T bound =
              distance_attention::logit_bound(norm, in.tau[row + j], least, largest);
          if (!(bound < in.log_sum[row + j] - gap)) return false;
        }
        return true;
      },
      [&](int g, int64_t h, int64_t first, int valid, const V* distance) {
        HeadState<T>& state = states.at(g, h);
        const int64_t row = in.head_row(b, h, first);
        typename Lanes<V>::Words hash[NQ];
        for (int i = 0; i < NQ; ++i) Lanes<V>::load_words(state.hash + i * V::kWidth, hash[i]);
        key_gradient<NQ, NR, ND, kTile, kDrop>(
            state.first, state.second, in.query + row * in.depth, in.grad + row * in.depth,
            distance, kTile, valid, in.depth, in.tau + row, in.scale, in.log_sum + row,
            in.delta + row, dropout, in.row_hash + row, hash, state.sum_first, state.sum_second);
      });
  for (int g = 0; g < Group<T>::kPerTile; ++g) {
    for (int64_t h = 0; h < in.heads; ++h) {
      HeadState<T>& state = states.at(g, h);
      const int64_t start = in.head_row(b, h, 0) * in.depth;
      groups[g].store(state.sum_first, in.depth, in.scale, d_key + start);
      groups[g].store(state.sum_second, in.depth, T(1), d_value + start);
    }
  }
}

}  // namespace attention_tiles
}  // namespace OPUS_TARGET
}  // namespace opus
