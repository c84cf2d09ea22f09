// Arithmetic of distance-biased attention, for any lane vector. No include guard: included after
// common/lanes.h for every instruction set.
//
// A lane owns one query (forward pass, gradients of queries) or one key (gradients of keys and
// values) and iterates over the rows of the other side. Lanes do not exchange data. NQ lane vectors
// are processed together, so that each row is read once for all of them.

namespace opus {
namespace OPUS_TARGET {
namespace attention_body {

using distance_attention::Dropout;

// products[j * NQ + i] = dot product of lane vector i and row j. lanes is [depth][NQ]; rows is
// [.][depth] with a multiple of NR rows.
template <int NQ, int NR, typename V, typename T, typename Count, typename Depth>
OPUS_BODY void dot_rows(const V* lanes, const T* rows, Count count, Depth depth, V* products) {
  OPUS_UNROLL
  for (int first = 0; first < count; first += NR) {
    V sum[NR][NQ];
    OPUS_UNROLL
    for (int j = 0; j < NR; ++j) {
      OPUS_UNROLL
      for (int i = 0; i < NQ; ++i) sum[j][i] = Lanes<V>::fill(T(0));
    }
    const T* row[NR];
    OPUS_UNROLL
    for (int j = 0; j < NR; ++j) row[j] = rows + (first + j) * depth;
    const V* column = lanes;
    OPUS_UNROLL
    for (int d = 0; d < depth; ++d, column += NQ) {
      OPUS_UNROLL
      for (int j = 0; j < NR; ++j) {
        const V value = Lanes<V>::fill(row[j][d]);
        OPUS_UNROLL
        for (int i = 0; i < NQ; ++i) sum[j][i] = fmadd(value, column[i], sum[j][i]);
      }
    }
    OPUS_UNROLL
    for (int j = 0; j < NR; ++j) {
      OPUS_UNROLL
      for (int i = 0; i < NQ; ++i) products[(first + j) * NQ + i] = sum[j][i];
    }
  }
}

// sums[d * NQ + i] += sum over j < count of weights[j * NQ + i] * rows[j][d]; depth is a multiple
// of ND.
template <int NQ, int ND, typename V, typename T, typename Count, typename Depth>
OPUS_BODY void add_rows(const V* weights, const T* rows, Count count, Depth depth, V* sums) {
  OPUS_UNROLL
  for (int first = 0; first < depth; first += ND) {
    V sum[ND][NQ];
    OPUS_UNROLL
    for (int d = 0; d < ND; ++d) {
      OPUS_UNROLL
      for (int i = 0; i < NQ; ++i) sum[d][i] = sums[(first + d) * NQ + i];
    }
    const T* row = rows + first;
    OPUS_UNROLL
    for (int j = 0; j < count; ++j, row += depth) {
      OPUS_UNROLL
      for (int d = 0; d < ND; ++d) {
        const V value = Lanes<V>::fill(row[d]);
        OPUS_UNROLL
        for (int i = 0; i < NQ; ++i) sum[d][i] = fmadd(value, weights[j * NQ + i], sum[d][i]);
      }
    }
    OPUS_UNROLL
    for (int d = 0; d < ND; ++d) {
      OPUS_UNROLL
      for (int i = 0; i < NQ; ++i) sums[(first + d) * NQ + i] = sum[d][i];
    }
  }
}

// distance[j * NQ + i] = distance between lane i, with centres [3][NQ], and row j.
template <int NQ, typename V, typename T, typename Count>
OPUS_BODY void distances(const V* centre, const T* rows, Count count, V* distance) {
  OPUS_UNROLL
  for (int j = 0; j < count; ++j) {
    OPUS_UNROLL
    for (int i = 0; i < NQ; ++i) {
      V square = Lanes<V>::fill(T(0));
      OPUS_UNROLL
      for (int a = 0; a < 3; ++a) {
        const V delta = centre[a * NQ + i] - Lanes<V>::fill(rows[3 * j + a]);
        square = fmadd(delta, delta, square);
      }
      distance[j * NQ + i] = root(square);
    }
  }
}

template <bool kDrop, typename V>
OPUS_BODY V dropped(const Dropout& dropout, const typename Lanes<V>::Words& row_hash,
                    uint32_t key_hash, const V& weight) {
  if constexpr (kDrop) {
    typename Lanes<V>::Words words = row_hash ^ key_hash;
    distance_attention::mix_bits(words);
    const auto factor = static_cast<typename Lanes<V>::Scalar>(dropout.inverse_keep);
    return keep_from(words, dropout.threshold, weight * Lanes<V>::fill(factor));
  } else {
    return weight;
  }
}

// Running softmax, one query per lane.
template <int NQ, typename V>
struct Softmax {
  V max[NQ], sum[NQ];
};

// Adds `valid` keys to the softmax and the weighted sum of their values. `count` >= `valid` rows of
// keys and values are readable; rows past `valid` hold finite numbers.
template <int NQ, int NR, int ND, int kBlock, bool kDrop, typename V, typename T, typename Count,
          typename Depth>
OPUS_BODY void attend(const V* query, const T* keys, const T* values, const V* distance,
                      Count count, int valid, Depth depth, const V* tau, T scale,
                      const Dropout& dropout, const typename Lanes<V>::Words* row_hash,
                      const uint32_t* key_hash, Softmax<NQ, V>& softmax, V* sums) {
  V weights[kBlock * NQ];
  dot_rows<NQ, NR>(query, keys, count, depth, weights);
  V top[NQ];
  OPUS_UNROLL
  for (int i = 0; i < NQ; ++i) top[i] = softmax.max[i];
  OPUS_UNROLL
  for (int j = 0; j < count; ++j) {
    OPUS_UNROLL
    for (int i = 0; i < NQ; ++i) {
      V& logit = weights[j * NQ + i];
      logit = fmadd(-tau[i], distance[j * NQ + i], logit * Lanes<V>::fill(scale));
      if (j < valid) top[i] = larger(logit, top[i]);
    }
  }
  V total[NQ];
  OPUS_UNROLL
  for (int i = 0; i < NQ; ++i) {
    const V decay = exponential(softmax.max[i] - top[i]);
    softmax.max[i] = top[i];
    total[i] = softmax.sum[i] * decay;
    OPUS_UNROLL
    for (int d = 0; d < depth; ++d) sums[d * NQ + i] *= decay;
  }
  OPUS_UNROLL
  for (int j = 0; j < count; ++j) {
    OPUS_UNROLL
    for (int i = 0; i < NQ; ++i) {
      V& weight = weights[j * NQ + i];
      weight = j < valid ? exponential(weight - top[i]) : Lanes<V>::fill(T(0));
      total[i] += weight;
      weight = dropped<kDrop>(dropout, row_hash[i], key_hash[j], weight);
    }
  }
  OPUS_UNROLL
  for (int i = 0; i < NQ; ++i) softmax.sum[i] = total[i];
  add_rows<NQ, ND>(weights, values, count, depth, sums);
}

// Gradient of one logit: p * (dp - delta), where dp includes dropout.
template <typename V>
OPUS_BODY V logit_gradient(const V& p, const V& dp, const V& delta) {
  return p * (dp - delta);
}

// Adds the gradients of the query (without the scale) and of its tau, one query per lane.
template <int NQ, int NR, int ND, int kBlock, bool kDrop, typename V, typename T, typename Count,
          typename Depth>
OPUS_BODY void query_gradient(const V* query, const V* grad, const T* keys, const T* values,
                              const V* distance, Count count, int valid, Depth depth, const V* tau,
                              T scale, const V* log_sum, const V* delta, const Dropout& dropout,
                              const typename Lanes<V>::Words* row_hash, const uint32_t* key_hash,
                              V* d_query, V* d_tau) {
  V weights[kBlock * NQ], products[kBlock * NQ];
  dot_rows<NQ, NR>(query, keys, count, depth, weights);
  dot_rows<NQ, NR>(grad, values, count, depth, products);
  OPUS_UNROLL
  for (int j = 0; j < count; ++j) {
    OPUS_UNROLL
    for (int i = 0; i < NQ; ++i) {
      V& weight = weights[j * NQ + i];
      const V away = distance[j * NQ + i];
      const V logit = fmadd(-tau[i], away, weight * Lanes<V>::fill(scale));
      const V p = exponential(logit - log_sum[i]);
      const V dp = dropped<kDrop>(dropout, row_hash[i], key_hash[j], products[j * NQ + i]);
      weight = j < valid ? logit_gradient(p, dp, delta[i]) : Lanes<V>::fill(T(0));
      d_tau[i] = fmadd(-weight, j < valid ? away : Lanes<V>::fill(T(0)), d_tau[i]);
    }
  }
  read_anew();
  add_rows<NQ, ND>(weights, keys, count, depth, d_query);
}

// Adds the gradients of the key (without the scale) and of the value from `valid` queries, one key
// per lane. tau, log_sum and delta belong to the rows.
template <int NQ, int NR, int ND, int kBlock, bool kDrop, typename V, typename T, typename Count,
          typename Depth>
OPUS_BODY void key_gradient(const V* key, const V* value, const T* queries, const T* grads,
                            const V* distance, Count count, int valid, Depth depth, const T* tau,
                            T scale, const T* log_sum, const T* delta, const Dropout& dropout,
                            const uint32_t* row_hash, const typename Lanes<V>::Words* key_hash,
                            V* d_key, V* d_value) {
  V weights[kBlock * NQ], products[kBlock * NQ];
  dot_rows<NQ, NR>(key, queries, count, depth, weights);
  dot_rows<NQ, NR>(value, grads, count, depth, products);
  OPUS_UNROLL
  for (int j = 0; j < count; ++j) {
    const V rate = Lanes<V>::fill(-tau[j]), log_j = Lanes<V>::fill(log_sum[j]),
            delta_j = Lanes<V>::fill(delta[j]);
    OPUS_UNROLL
    for (int i = 0; i < NQ; ++i) {
      V &weight = weights[j * NQ + i], &product = products[j * NQ + i];
      const V logit = fmadd(rate, distance[j * NQ + i], weight * Lanes<V>::fill(scale));
      const V p = j < valid ? exponential(logit - log_j) : Lanes<V>::fill(T(0));
      const V dp = dropped<kDrop>(dropout, key_hash[i], row_hash[j], product);
      weight = j < valid ? logit_gradient(p, dp, delta_j) : Lanes<V>::fill(T(0));
      product = dropped<kDrop>(dropout, key_hash[i], row_hash[j], p);
    }
  }
  read_anew();
  add_rows<NQ, ND>(weights, queries, count, depth, d_key);
  add_rows<NQ, ND>(products, grads, count, depth, d_value);
}

}  // namespace attention_body
}  // namespace OPUS_TARGET
}  // namespace opus
