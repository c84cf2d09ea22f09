// The search of nearest_neighbor.h in single precision on a CPU. Four boxes, or four points, are
// processed in parallel with the same operations in the same order. The visited nodes and their
// order differ, but the result does not.
#pragma once

#include "common/avx2.h"

#if defined(OPUS_HAS_AVX2_KERNELS)

#include <immintrin.h>

#include <array>
#include <cstdint>
#include <utility>

#include "nearest_neighbor/nearest_neighbor.h"

namespace opus {
namespace nearest_neighbor {
namespace avx2 {

#define OPUS_AVX2 __attribute__((target("avx2")))
#define OPUS_AVX2_INLINE inline __attribute__((always_inline, target("avx2")))

// Permutation for every mask of four lanes: moves the lanes whose bit is set to the front.
inline std::array<std::array<int32_t, 4>, 16> make_front_table() {
  std::array<std::array<int32_t, 4>, 16> table{};
  for (int mask = 0; mask < 16; ++mask) {
    int size = 0;
    for (int lane = 0; lane < 4; ++lane) {
      if (mask >> lane & 1) table[mask][size++] = lane;
    }
  }
  return table;
}

inline const std::array<std::array<int32_t, 4>, 16> kFront = make_front_table();

struct Query {
  __m128 x, y, z;
};

struct Best {
  Nearest<float> found;
  __m128 squared;
  __m128i index;
};

OPUS_AVX2_INLINE void set(Best& best, const Nearest<float>& found) {
  best.found = found;
  best.squared = _mm_set1_ps(found.squared);
  best.index = _mm_set1_epi32(found.index);
}

// See is_nearer; returns one bit per lane.
OPUS_AVX2_INLINE int nearer(__m128 squared, __m128i index, const Best& best) {
  const __m128 ties = _mm_and_ps(_mm_cmpeq_ps(squared, best.squared),
                                 _mm_castsi128_ps(_mm_cmpgt_epi32(best.index, index)));
  return _mm_movemask_ps(_mm_or_ps(_mm_cmplt_ps(squared, best.squared), ties));
}

OPUS_AVX2_INLINE __m128 squared_norm(__m128 x, __m128 y, __m128 z) {
  return _mm_add_ps(_mm_add_ps(_mm_mul_ps(x, x), _mm_mul_ps(y, y)), _mm_mul_ps(z, z));
}

OPUS_AVX2_INLINE __m128 gap(__m128 q, __m128 lo, __m128 hi) {
  return _mm_max_ps(_mm_max_ps(_mm_sub_ps(lo, q), _mm_sub_ps(q, hi)), _mm_setzero_ps());
}

// Transposes four structs of `stride` numbers: column k holds the k-th number of each.
OPUS_AVX2_INLINE void columns(const float* first, int stride, __m128* column) {
  for (int k = 0; k < 4; ++k) column[k] = _mm_loadu_ps(first + k * stride);
  _MM_TRANSPOSE4_PS(column[0], column[1], column[2], column[3]);
}

// Compares points `slot` ... `slot` + 3.
OPUS_AVX2_INLINE void scan_four(const Point<float>* points, int64_t slot, const Query& q,
                                Best& best) {
  static_assert(sizeof(Point<float>) == 4 * sizeof(float));
  __m128 column[4];
  columns(reinterpret_cast<const float*>(points + slot), 4, column);
  const __m128 squared =
      squared_norm(_mm_sub_ps(q.x, column[0]), _mm_sub_ps(q.y, column[1]),
                   _mm_sub_ps(q.z, column[2]));
  const __m128i index = _mm_castps_si128(column[3]);
  int mask = nearer(squared, index, best);
  if (__builtin_expect(mask == 0, 1)) return;
  float distance[4];
  _mm_storeu_ps(distance, squared);
  Nearest<float> found = best.found;
  for (; mask != 0; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    const int32_t own = points[slot + lane].index;
    if (is_nearer(distance[lane], own, found)) found = {distance[lane], own, slot + lane};
  }
  set(best, found);
}

// Compares points begin ... end - 1, at least four; some may be compared twice.
OPUS_AVX2_INLINE void scan(const Point<float>* points, int64_t begin, int64_t end, const Query& q,
                           Best& best) {
  for (int64_t slot = begin; slot + 4 <= end; slot += 4) scan_four(points, slot, q, best);
  if ((end - begin) % 4 != 0) scan_four(points, end - 4, q, best);
}

// Nodes still to be visited, with the bounds of their boxes.
struct Stack {
  static constexpr int kSize = 3 * kMaxDepth + 4;
  float bound[kSize];
  int32_t node[kSize];
  int size = 0;
};

// Checks the four grandchildren of a node. Returns the nearest one, or -1 if none can contain a
// nearer point. Other candidates are pushed onto the stack.
OPUS_AVX2_INLINE int32_t descend(const Box<float>* boxes, int32_t node, const Query& q,
                                 const Best& best, Stack& stack) {
  static_assert(sizeof(Box<float>) == 8 * sizeof(float));
  const int32_t first = 4 * node + 3;
  __m128 low[4], high[4];  // lo x, y, z, hi x; hi y, z, index
  const auto* numbers = reinterpret_cast<const float*>(boxes + first);
  columns(numbers, 8, low);
  columns(numbers + 4, 8, high);
  const __m128 bound = squared_norm(gap(q.x, low[0], low[3]), gap(q.y, low[1], high[0]),
                                    gap(q.z, low[2], high[1]));
  const int mask = nearer(bound, _mm_castps_si128(high[2]), best);
  if (mask == 0) return -1;
  // Lowest bound of the boxes in the mask; bounds outside the mask are not lower.
  const __m128 pairs = _mm_min_ps(bound, _mm_movehl_ps(bound, bound));
  const __m128 least = _mm_min_ss(pairs, _mm_shuffle_ps(pairs, pairs, 1));
  const int nearest = _mm_movemask_ps(_mm_cmpeq_ps(bound, _mm_shuffle_ps(least, least, 0))) & mask;
  const int lane = __builtin_ctz(nearest != 0 ? nearest : mask);
  const int rest = mask & ~(1 << lane);
  const __m128i front = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kFront[rest].data()));
  _mm_storeu_ps(stack.bound + stack.size, _mm_permutevar_ps(bound, front));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(stack.node + stack.size),
                   _mm_add_epi32(front, _mm_set1_epi32(first)));
  stack.size += __builtin_popcount(rest);
  return first + lane;
}

// See nearest_neighbor::search.
OPUS_AVX2 inline void search(const Tree<float>& tree, const float* q, Nearest<float>& nearest) {
  if (tree.depth == 0) return nearest_neighbor::search(tree, q, nearest);
  const Query query{_mm_set1_ps(q[0]), _mm_set1_ps(q[1]), _mm_set1_ps(q[2])};
  Best best;
  set(best, nearest);
  Stack stack;
  stack.node[0] = 0;
  stack.bound[0] = squared_bound(q, tree.boxes[0]);
  stack.size = 1;
  if (tree.depth % 2 != 0) {  // leaves an even number of levels below the root's children
    for (int side = 0; side < 2; ++side) stack.node[side] = 1 + side;
    for (int side = 0; side < 2; ++side) stack.bound[side] = squared_bound(q, tree.boxes[1 + side]);
    if (stack.bound[0] < stack.bound[1]) {  // put the nearer one on top
      std::swap(stack.bound[0], stack.bound[1]);
      std::swap(stack.node[0], stack.node[1]);
    }
    stack.size = 2;
  }
  const auto first_leaf = static_cast<int32_t>(tree.first_leaf());
  while (stack.size > 0) {
    --stack.size;
    int32_t node = stack.node[stack.size];
    const float bound = stack.bound[stack.size];
    if (bound > best.found.squared) continue;
    if (!is_nearer(bound, tree.boxes[node].min_index, best.found)) continue;
    while (node >= 0 && node < first_leaf) node = descend(tree.boxes, node, query, best, stack);
    if (node < 0) continue;
    const int64_t leaf = node - first_leaf;
    scan(tree.points, tree.begin_of(tree.depth, leaf), tree.begin_of(tree.depth, leaf + 1), query,
         best);
  }
  nearest = best.found;
}

#undef OPUS_AVX2
#undef OPUS_AVX2_INLINE

}  // namespace avx2
}  // namespace nearest_neighbor
}  // namespace opus

#endif  // OPUS_HAS_AVX2_KERNELS
