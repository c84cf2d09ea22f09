// Nearest neighbours of one tree's points in another tree, in single precision on a CPU. No include
// guard: included once for every instruction set, after common/lanes.h.
//
// Consecutive points of a tree are close in space, so a packet of them, one per lane, is searched
// together. A node is visited if any lane needs it. Distances and bounds are computed by the
// operations of nearest_neighbor.h in the same order, so visiting more nodes does not change the
// result.

namespace opus {
namespace OPUS_TARGET {
namespace nearest_packets {

using nearest_neighbor::Box;
using nearest_neighbor::Point;
using nearest_neighbor::Tree;

using F = Pack<float>;
typedef int32_t Int __attribute__((vector_size(OPUS_PACK_BYTES)));
constexpr int kWidth = F::kWidth;

// Mask with one bit per lane.
#if defined(OPUS_TARGET_HAS_AVX512)
OPUS_BODY uint32_t not_above(const F& a, const F& b) {
  return _mm512_cmp_ps_mask((__m512)a.raw, (__m512)b.raw, _CMP_LE_OQ);
}
#elif defined(OPUS_TARGET_HAS_AVX2)
OPUS_BODY uint32_t not_above(const F& a, const F& b) {
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a.raw, (__m256)b.raw, _CMP_LE_OQ));
}
#else
OPUS_BODY uint32_t not_above(const F& a, const F& b) {
  uint32_t bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= uint32_t(a.raw[i] <= b.raw[i]) << i;
  return bits;
}
#endif

struct Packet {
  F x, y, z;
  F squared;  // squared distances of the nearest points so far
  Int index;
};

OPUS_BODY F squared_norm(const F& x, const F& y, const F& z) { return (x * x + y * y) + z * z; }

OPUS_BODY F gap(const F& q, float lo, float hi) {
  using L = Lanes<F>;
  return larger(larger(L::fill(lo) - q, q - L::fill(hi)), L::fill(0.0f));
}

OPUS_BODY F bound_of(const Packet& packet, const Box<float>& box) {
  return squared_norm(gap(packet.x, box.lo[0], box.hi[0]), gap(packet.y, box.lo[1], box.hi[1]),
                      gap(packet.z, box.lo[2], box.hi[2]));
}

// Returns the lanes whose best result may improve within the bound: a nearer point, or an equally
// near one with a lower index.
OPUS_BODY uint32_t lanes_within(const Packet& packet, const F& bound) {
  const F largest = Lanes<F>::fill(std::numeric_limits<float>::max());
  return not_above(bound, F{packet.squared.raw < largest.raw ? packet.squared.raw : largest.raw});
}

OPUS_BODY void scan(const Tree<float>& tree, int64_t leaf, Packet& packet) {
  using L = Lanes<F>;
  const int64_t end = tree.begin_of(tree.depth, leaf + 1);
  for (int64_t slot = tree.begin_of(tree.depth, leaf); slot < end; ++slot) {
    const Point<float>& point = tree.points[slot];
    const F squared = squared_norm(packet.x - L::fill(point.at[0]), packet.y - L::fill(point.at[1]),
                                   packet.z - L::fill(point.at[2]));
    const Int index = point.index - Int{};
    const Int nearer = (squared.raw < packet.squared.raw) |
                       ((squared.raw == packet.squared.raw) & (index < packet.index));
    packet.squared.raw = nearer ? squared.raw : packet.squared.raw;
    packet.index = nearer ? index : packet.index;
  }
}

// Updates `packet`. All its lanes must be finite.
OPUS_BODY void search(const Tree<float>& tree, Packet& packet) {
  int32_t stack[nearest_neighbor::kMaxDepth + 1] = {0};
  int size = 1;
  const auto first_leaf = static_cast<int32_t>(tree.first_leaf());
  while (size > 0) {
    int32_t node = stack[--size];
    if (lanes_within(packet, bound_of(packet, tree.boxes[node])) == 0) continue;
    while (node < first_leaf) {
      const int32_t left = 2 * node + 1;
      const F left_bound = bound_of(packet, tree.boxes[left]);
      const F right_bound = bound_of(packet, tree.boxes[left + 1]);
      const bool goes_left = lanes_within(packet, left_bound) != 0;
      const bool goes_right = lanes_within(packet, right_bound) != 0;
      if (!goes_left && !goes_right) break;
      // If both are needed, visit the one that is nearer to most lanes first.
      const bool left_first =
          goes_left && (!goes_right || 2 * __builtin_popcount(not_above(left_bound, right_bound)) >=
                                           kWidth);
      if (goes_left && goes_right) stack[size++] = left_first ? left + 1 : left;
      node = left_first ? left : left + 1;
    }
    if (node >= first_leaf) scan(tree, node - first_leaf, packet);
  }
}

// Writes the results of the points [begin, end) of a tree, by their index.
inline void nearest_of(const Tree<float>& queries, int64_t begin, int64_t end,
                       const Tree<float>& tree, int64_t first, int64_t* index, float* squared) {
  for (int64_t slot = begin; slot < end; slot += kWidth) {
    const Point<float>* points = queries.points + slot;
    const int count = static_cast<int>(std::min<int64_t>(kWidth, end - slot));
    int finite = 0;  // lanes without a finite point repeat a finite one
    while (finite < count && !is_finite(points[finite].at[0])) ++finite;
    Packet packet;
    packet.squared = Lanes<F>::fill(std::numeric_limits<float>::infinity());
    packet.index = Int{};
    if (finite < count) {
      for (int i = 0; i < kWidth; ++i) {
        const bool own = i < count && is_finite(points[i].at[0]);
        const float* at = points[own ? i : finite].at;
        packet.x.raw[i] = at[0];
        packet.y.raw[i] = at[1];
        packet.z.raw[i] = at[2];
      }
      search(tree, packet);
    }
    for (int i = 0; i < count; ++i) {
      const bool found = is_finite(points[i].at[0]);
      index[points[i].index] = first + (found ? packet.index[i] : 0);
      squared[points[i].index] =
          found ? packet.squared.raw[i] : std::numeric_limits<float>::infinity();
    }
  }
}

}  // namespace nearest_packets
}  // namespace OPUS_TARGET
}  // namespace opus
