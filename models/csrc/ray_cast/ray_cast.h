// Walking a ray through a voxel grid, host and device.
//
// Everything is in voxel units: voxel v covers [v, v + 1). A ray crosses the boundary k of an axis
// at t(k) = (k - o) * (1 / d), a function of k alone that is monotone in floating point too. The
// walk is therefore the merge of three sorted lists of crossings, ordered by (t, axis), and any
// number of steps can be taken at once with exactly the result of taking them singly. That is
// what lets empty space be skipped without changing a bit of the answer.
//
// Occupancy is kept as 64-bit masks of 4 x 4 x 4 children in three levels: level 0 has a bit a
// voxel, level 1 a bit a level-0 block (4 voxels wide), level 2 a bit a level-1 block (16 wide).
#pragma once

#include <cstdint>

#include "common/defs.h"

namespace opus {
namespace ray_cast {

constexpr int kLevels = 3;
// Rays outside these bounds (in voxel units) are treated as missing the grid: they keep every
// t(k) finite, so that crossings are always ordered. A component below kNoStep is no movement.
constexpr double kMaxOrigin = 1e9;
constexpr double kMinDirection = 1e-100;
constexpr double kMaxDirection = 1e100;
constexpr double kNoStep = 1e-200;
// A position o + d * t within the grid is known to about 1e-6 voxels for the origins allowed above.
// Further than this from every boundary it tells the voxel; nearer, crossings must be compared.
constexpr double kUnsure = 1e-5;

// The mask levels of grids of one size. Those of a grid lie behind one another, and so do grids.
struct Masks {
  const uint64_t* words;
  int64_t offset[kLevels];  // of a level within a grid
  int64_t total;            // words of a grid
  int blocks[kLevels][3];   // blocks along x, y, z
  int size[3];              // voxels along x, y, z
};

struct Hit {
  int voxel[3];
  bool hit;
  double t_enter, t_exit;
  int face;
};

struct Ray {
  double o[3], d[3], inv[3];
  double base[3];  // the origin as crossing() wants it
  int step[3];
  int start[3];  // voxel of the origin, clipped to [-1, size]
  int v[3];      // current voxel
  double max_t;
};

// What is occupied for a ray: one grid, or several whose walk is shared.
struct OneGrid {
  const uint64_t* words;  // of the grid
  OPUS_HD uint64_t operator()(int64_t word) const { return words[word]; }
};

struct EitherGrid {
  const uint64_t *first, *second;
  OPUS_HD uint64_t operator()(int64_t word) const { return first[word] | second[word]; }
};

OPUS_HD int bit_of(int x, int y, int z) { return ((x & 3) << 4) | ((y & 3) << 2) | (z & 3); }

// Bits of the children lo..hi (each 0..3) along every axis.
OPUS_HD uint64_t box_bits(const int* lo, const int* hi) {
  const uint64_t x = (~0ull >> (48 - 16 * hi[0])) & (~0ull << (16 * lo[0]));
  const uint64_t y = (((0xFFFFull >> (12 - 4 * hi[1])) >> (4 * lo[1])) << (4 * lo[1]));
  const uint64_t z = (((0xFull >> (3 - hi[2])) >> lo[2]) << lo[2]);
  return x & (y * 0x0001000100010001ull) & (z * 0x1111111111111111ull);
}

OPUS_HD int64_t block_index(const Masks& masks, int level, const int* v) {
  const int shift = 2 * (level + 1);
  const int* n = masks.blocks[level];
  return (static_cast<int64_t>(v[0] >> shift) * n[1] + (v[1] >> shift)) * n[2] + (v[2] >> shift);
}

// An axis without movement never crosses: its base is set below every boundary, 1/d is infinite.
OPUS_HD double crossing(const Ray& ray, int axis, int boundary) {
  return (static_cast<double>(boundary) - ray.base[axis]) * ray.inv[axis];
}

// Whether a crossing of `axis` at t comes before the event (t_event, event_axis).
OPUS_HD bool precedes(double t, int axis, double t_event, int event_axis) {
  return t < t_event || (t == t_event && axis < event_axis);
}

// Index on `axis`, within lo..hi, that the ray has reached just before the event.
OPUS_HD int index_before(const Ray& ray, int axis, double t_event, int event_axis, int lo, int hi) {
  if (ray.step[axis] == 0) return ray.v[axis];
  const double position = ray.o[axis] + ray.d[axis] * t_event;
  // Comparisons in double: the estimate may be far outside what an int holds.
  int e = position >= hi ? hi : (position <= lo ? lo : static_cast<int>(position));
  const int from = ray.v[axis];
  if (ray.step[axis] > 0) {
    if (e < from) e = from;
    while (e > from && !precedes(crossing(ray, axis, e), axis, t_event, event_axis)) --e;
    while (e < hi && precedes(crossing(ray, axis, e + 1), axis, t_event, event_axis)) ++e;
  } else {
    if (e > from) e = from;
    while (e < from && !precedes(crossing(ray, axis, e + 1), axis, t_event, event_axis)) ++e;
    while (e > lo && precedes(crossing(ray, axis, e), axis, t_event, event_axis)) --e;
  }
  return e;
}

// The axis of the least t, the lowest of equals; without branches, which would be unpredictable.
OPUS_HD int first_axis(const double* t) {
  const int axis = t[1] < t[0] ? 1 : 0;
  const double least = t[1] < t[0] ? t[1] : t[0];
  return t[2] < least ? 2 : axis;
}

OPUS_HD double least(const double* t) {
  const double first = t[1] < t[0] ? t[1] : t[0];
  return t[2] < first ? t[2] : first;
}

OPUS_HD bool inside(const Masks& masks, const int* v) {
  // As unsigned numbers negative ones are too large.
  return (static_cast<unsigned>(v[0]) < static_cast<unsigned>(masks.size[0])) &
         (static_cast<unsigned>(v[1]) < static_cast<unsigned>(masks.size[1])) &
         (static_cast<unsigned>(v[2]) < static_cast<unsigned>(masks.size[2]));
}

OPUS_HD bool is_bounded(double value, double bound) { return value >= -bound && value <= bound; }

// Fills the ray from origin and direction in voxel units; false where it cannot be walked.
OPUS_HD bool init_ray(Ray& ray, const double* o, const double* d, double max_t, const int* size) {
  double longest = 0;
  for (int a = 0; a < 3; ++a) {
    if (!is_bounded(o[a], kMaxOrigin) || !is_bounded(d[a], kMaxDirection)) return false;
    const double magnitude = d[a] < 0 ? -d[a] : d[a];
    longest = magnitude > longest ? magnitude : longest;
    ray.step[a] = magnitude < kNoStep ? 0 : (d[a] > 0 ? 1 : -1);
    ray.d[a] = ray.step[a] == 0 ? 0. : d[a];
    const int toward_zero = static_cast<int>(o[a]);
    const int v = toward_zero - (o[a] < toward_zero);
    ray.start[a] = v < -1 ? -1 : (v > size[a] ? size[a] : v);
    ray.v[a] = ray.start[a];
    ray.o[a] = o[a];
    ray.base[a] = ray.step[a] == 0 ? -2. : o[a];  // below every boundary, from -1 on
    ray.inv[a] = 1. / ray.d[a];
  }
  ray.max_t = max_t;
  return longest >= kMinDirection;
}

// Moves a ray that starts outside to the first voxel of the grid; false where it misses.
OPUS_HD bool enter_grid(Ray& ray, const int* size) {
  double t_event = -1;
  int event_axis = -1;
  for (int a = 0; a < 3; ++a) {
    if (ray.v[a] >= 0 && ray.v[a] < size[a]) continue;
    if (ray.step[a] != (ray.v[a] < 0 ? 1 : -1)) return false;  // looks away
    const double t = crossing(ray, a, ray.v[a] < 0 ? 0 : size[a]);
    if (t >= t_event) {
      t_event = t;
      event_axis = a;
    }
  }
  if (event_axis < 0) return ray.max_t >= 0;  // started inside
  if (!(t_event <= ray.max_t)) return false;
  int entered[3];
  for (int a = 0; a < 3; ++a) {
    entered[a] = a == event_axis ? (ray.step[a] > 0 ? 0 : size[a] - 1)
                                 : index_before(ray, a, t_event, event_axis, -1, size[a]);
  }
  for (int a = 0; a < 3; ++a) {
    if (entered[a] < 0 || entered[a] >= size[a]) return false;
    ray.v[a] = entered[a];
  }
  return true;
}

// When and through which face the ray came into its current voxel, and when it leaves.
OPUS_HD void finish(const Ray& ray, bool hit, Hit& out) {
  out.hit = hit;
  out.t_enter = 0;
  out.face = -1;
  bool moved = false;
  double t_exit[3];
  for (int a = 0; a < 3; ++a) {
    out.voxel[a] = ray.v[a];
    t_exit[a] = crossing(ray, a, ray.v[a] + (ray.step[a] > 0));
    if (ray.v[a] == ray.start[a]) continue;
    const double t = crossing(ray, a, ray.v[a] + (ray.step[a] < 0));
    if (!moved || t >= out.t_enter) {  // the later axis is the later event
      out.t_enter = t;
      out.face = 2 * a + (ray.step[a] < 0);
    }
    moved = true;
  }
  out.t_exit = t_exit[first_axis(t_exit)];
}

enum class Walk { kOn, kHit, kEnd };

// Steps voxel by voxel until an occupied voxel, the end of the ray, or the voxel's 4^3 block is
// left (with `bits` constant, the grid's edge counts as the end).
OPUS_HD Walk walk_block(const Masks& masks, Ray& ray, uint64_t bits) {
  double t[3];
  for (int a = 0; a < 3; ++a) t[a] = crossing(ray, a, ray.v[a] + (ray.step[a] > 0));
  while (true) {
    if (bits >> bit_of(ray.v[0], ray.v[1], ray.v[2]) & 1) return Walk::kHit;
    const int a = first_axis(t);
    const int next = ray.v[a] + ray.step[a];
    if (!(t[a] <= ray.max_t) || next < 0 || next >= masks.size[a]) return Walk::kEnd;
    const bool leaves = (next ^ ray.v[a]) & ~3;
    ray.v[a] = next;
    if (leaves) return Walk::kOn;
    t[a] = crossing(ray, a, next + (ray.step[a] > 0));
  }
}

// Crosses the block of `level` the ray is in if no child on its way is occupied.
// Returns false, and leaves the ray where it is, if one is. `walk` says whether the ray ended.
OPUS_HD bool skip_block(const Masks& masks, Ray& ray, int level, uint64_t bits, Walk& walk) {
  const int shift = 2 * (level + 1);
  int lo[3], hi[3];  // voxels of the block, clipped to the grid
  double t[3];
  for (int a = 0; a < 3; ++a) {
    lo[a] = (ray.v[a] >> shift) << shift;
    const int end = lo[a] + (1 << shift);
    hi[a] = (end < masks.size[a] ? end : masks.size[a]) - 1;
    t[a] = crossing(ray, a, ray.step[a] > 0 ? hi[a] + 1 : lo[a]);
  }
  // Where the ray ends within the block, all crossings up to max_t are done.
  double t_event = least(t);
  const bool ends = !(t_event <= ray.max_t);
  const int axis = ends ? 3 : first_axis(t);
  t_event = ends ? ray.max_t : t_event;
  int last[3], box_lo[3], box_hi[3];
  int unsure = 0;
  for (int a = 0; a < 3; ++a) {
    const double position = ray.o[a] + ray.d[a] * t_event;
    const double low = lo[a], high = hi[a];
    const double within = position < low ? low : (position > high ? high : position);
    last[a] = static_cast<int>(within);
    const double inset = position - last[a];
    unsure |= (inset < kUnsure || inset > 1 - kUnsure) << a;
  }
  // On the axis of the exit the clipped index is right however the position was rounded.
  if (unsure & ~(1 << axis)) {
    for (int a = 0; a < 3; ++a) {
      if (a != axis) last[a] = index_before(ray, a, t_event, axis, lo[a], hi[a]);
    }
  }
  for (int a = 0; a < 3; ++a) {
    const int from = (ray.v[a] - lo[a]) >> (shift - 2), to = (last[a] - lo[a]) >> (shift - 2);
    box_lo[a] = from < to ? from : to;
    box_hi[a] = from < to ? to : from;
  }
  if (bits & box_bits(box_lo, box_hi)) return false;
  int next[3];
  for (int a = 0; a < 3; ++a) next[a] = last[a] + (a == axis ? ray.step[a] : 0);
  const bool goes_on = !ends && inside(masks, next);
  for (int a = 0; a < 3; ++a) ray.v[a] = goes_on ? next[a] : last[a];
  walk = goes_on ? Walk::kOn : Walk::kEnd;
  return true;
}

// Walks from the current voxel to the first occupied one or the end of the ray.
template <typename Grid>
OPUS_HD bool walk_grid(const Masks& masks, const Grid& grid, Ray& ray, bool skip_empty) {
  // Near the ground blocks of the top level are never empty: it is tried once one has been crossed.
  int level = skip_empty ? kLevels - 2 : 0;
  Walk walk = Walk::kOn;
  while (walk == Walk::kOn) {
    const uint64_t bits = grid(masks.offset[level] + block_index(masks, level, ray.v));
    const int before[3] = {ray.v[0], ray.v[1], ray.v[2]};
    if (!skip_empty || !skip_block(masks, ray, level, bits, walk)) {
      if (level > 0) {
        --level;
        continue;
      }
      walk = walk_block(masks, ray, bits);
    }
    // Go up where the block above has been left as well.
    while (skip_empty && level < kLevels - 1) {
      const int shift = 2 * (level + 2);
      const int changed =
          (ray.v[0] ^ before[0]) | (ray.v[1] ^ before[1]) | (ray.v[2] ^ before[2]);
      if (changed >> shift == 0) break;
      ++level;
    }
  }
  return walk == Walk::kHit;
}

// A ray that has to be walked no further: it misses the grid.
OPUS_HD Hit missed() {
  Hit out;
  for (int a = 0; a < 3; ++a) out.voxel[a] = -1;
  out.hit = false;
  out.t_enter = out.t_exit = 0;
  out.face = -1;
  return out;
}

OPUS_HD bool start_ray(const Masks& masks, const double* origin, const double* direction,
                       double max_t, Ray& ray) {
  return init_ray(ray, origin, direction, max_t, masks.size) && enter_grid(ray, masks.size);
}

// How `cast` walks; walk_avx2.h has another way that gives the same.
struct PlainWalk {
  bool skip_empty;

  template <typename Grid>
  OPUS_HD bool operator()(const Masks& masks, const Grid& grid, Ray& ray) const {
    return walk_grid(masks, grid, ray, skip_empty);
  }
};

template <typename Grid, typename WalkGrid>
OPUS_HD Hit cast(const Masks& masks, const Grid& grid, const double* origin,
                 const double* direction, double max_t, const WalkGrid& walk) {
  Ray ray;
  if (!start_ray(masks, origin, direction, max_t, ray)) return missed();
  Hit out;
  finish(ray, walk(masks, grid, ray), out);
  return out;
}

}  // namespace ray_cast
}  // namespace opus
