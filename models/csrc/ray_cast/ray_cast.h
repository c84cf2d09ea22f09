// Traversal of a voxel grid by a ray, host and device.
//
// All quantities are in voxel units: voxel v covers [v, v + 1). A ray crosses the boundary k of an
// axis at t(k) = (k - o) * (1 / d), which depends only on k and is monotone in floating point too.
// The traversal is therefore the merge of three sorted lists of crossings, ordered by (t, axis).
// Several steps can be taken at once with exactly the same result as single steps, so skipping
// empty space leaves the result bitwise unchanged.
//
// Occupancy is stored in 64-bit masks of 4 x 4 x 4 children in three levels. A bit of level 0 is a
// voxel, a bit of level 1 a level-0 block (4 voxels wide), a bit of level 2 a level-1 block (16
// voxels wide).
#pragma once

#include <cstdint>

#include "common/defs.h"

namespace opus {
namespace ray_cast {

constexpr int kLevels = 3;
// Rays outside these bounds (in voxel units) count as missing the grid. The bounds keep every t(k)
// finite, so that crossings are always ordered. A component below kNoStep counts as no movement.
constexpr double kMaxOrigin = 1e9;
constexpr double kMinDirection = 1e-100;
constexpr double kMaxDirection = 1e100;
constexpr double kNoStep = 1e-200;
// A position o + d * t within the grid has an error of about 1e-6 voxels for the allowed origins.
// If it is farther than this from every boundary, it gives the voxel; otherwise crossings must be
// compared.
constexpr double kUnsure = 1e-5;

// Mask levels of grids of one size. Levels of a grid, and grids, are stored consecutively.
struct Masks {
  const uint64_t* words;
  int64_t offset[kLevels];  // offset of a level within a grid
  int64_t total;            // number of words of a grid
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
  double base[3];  // the origin for crossing()
  int step[3];
  int start[3];  // voxel of the origin, clipped to [-1, size]
  int v[3];      // current voxel
  double max_t;
};

// Occupancy of one grid, as an argument of walk_grid.
struct OneGrid {
  const uint64_t* words;  // masks of the grid
  OPUS_HD uint64_t operator()(int64_t word) const { return words[word]; }
};

struct EitherGrid {
  const uint64_t *first, *second;
  OPUS_HD uint64_t operator()(int64_t word) const { return first[word] | second[word]; }
};

OPUS_HD int bit_of(int x, int y, int z) { return ((x & 3) << 4) | ((y & 3) << 2) | (z & 3); }

// Returns the bits of the children lo..hi (each 0..3) along every axis.
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

// An axis without movement never crosses: its base is below every boundary and 1/d is infinite.
OPUS_HD double crossing(const Ray& ray, int axis, int boundary) {
  return (static_cast<double>(boundary) - ray.base[axis]) * ray.inv[axis];
}

// Returns whether a crossing of `axis` at t precedes the event (t_event, event_axis).
OPUS_HD bool precedes(double t, int axis, double t_event, int event_axis) {
  return t < t_event || (t == t_event && axis < event_axis);
}

// Returns the ray's index on `axis`, within lo..hi, just before the event.
OPUS_HD int index_before(const Ray& ray, int axis, double t_event, int event_axis, int lo, int hi) {
  if (ray.step[axis] == 0) return ray.v[axis];
  const double position = ray.o[axis] + ray.d[axis] * t_event;
  // Compare in double, because the estimate may not fit into an int.
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

// Returns the axis of the smallest t, the first of equals, without unpredictable branches.
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
  // Converted to unsigned, negative numbers are too large.
  return (static_cast<unsigned>(v[0]) < static_cast<unsigned>(masks.size[0])) &
         (static_cast<unsigned>(v[1]) < static_cast<unsigned>(masks.size[1])) &
         (static_cast<unsigned>(v[2]) < static_cast<unsigned>(masks.size[2]));
}

OPUS_HD bool is_bounded(double value, double bound) { return value >= -bound && value <= bound; }

// Initialises a ray from origin and direction in voxel units; returns false for an invalid ray.
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
    ray.base[a] = ray.step[a] == 0 ? -2. : o[a];  // -2 is below every boundary
    ray.inv[a] = 1. / ray.d[a];
  }
  ray.max_t = max_t;
  return longest >= kMinDirection;
}

// Moves a ray from outside to its first voxel of the grid; returns false if it misses the grid.
OPUS_HD bool enter_grid(Ray& ray, const int* size) {
  double t_event = -1;
  int event_axis = -1;
  for (int a = 0; a < 3; ++a) {
    if (ray.v[a] >= 0 && ray.v[a] < size[a]) continue;
    if (ray.step[a] != (ray.v[a] < 0 ? 1 : -1)) return false;  // moves away from the grid
    const double t = crossing(ray, a, ray.v[a] < 0 ? 0 : size[a]);
    if (t >= t_event) {
      t_event = t;
      event_axis = a;
    }
  }
  if (event_axis < 0) return ray.max_t >= 0;  // starts inside
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

// Computes entry time, entry face and exit time of the ray's current voxel.
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
    if (!moved || t >= out.t_enter) {  // of equal times, the later axis is the later event
      out.t_enter = t;
      out.face = 2 * a + (ray.step[a] < 0);
    }
    moved = true;
  }
  out.t_exit = t_exit[first_axis(t_exit)];
}

enum class Walk { kOn, kHit, kEnd };

// Steps voxel by voxel to an occupied voxel, the end of the ray or the first voxel outside the 4^3
// block with the mask `bits`. The grid's edge counts as the end.
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

// Crosses the ray's current block of `level` if no child on the ray is occupied; `walk` is then the
// new state. Otherwise returns false and does not move the ray.
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
  // If the ray ends within the block, all crossings up to max_t are applied.
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
  // On the exit axis the clipped index is correct for any rounding of the position.
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

// Moves the ray to the first occupied voxel or its end.
template <typename Grid>
OPUS_HD bool walk_grid(const Masks& masks, const Grid& grid, Ray& ray, bool skip_empty) {
  // Near the ground, top-level blocks are never empty, so start one level below.
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
    // Go up a level if the ray has also left the block above.
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

// Returns the result of a ray that misses the grid.
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

// Default traversal of `cast`; walk_avx2.h has an equivalent one.
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
