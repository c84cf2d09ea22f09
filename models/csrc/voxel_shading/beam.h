// Beams: rays of one origin with similar directions, such as those of neighbouring pixels. Slabs
// that are empty around all rays are skipped once for the whole beam. Each ray is then traced from
// there by ray_cast.h, so results do not change.
#pragma once

#include <cstdint>

#include "ray_cast/ray_cast.h"

namespace opus {
namespace voxel_shading {

using ray_cast::Masks;
using ray_cast::Ray;

// A beam touches voxels within this distance, in voxels. It is at least 1000 times the rounding
// error of a ray (see ray_cast::kUnsure).
constexpr double kMargin = 1e-3;
// Largest movement across the beam per voxel along its axis; larger slopes make slabs too wide.
constexpr double kMaxSlope = 8;
// Preference for z as axis. Driving scenes are flat: along z a beam hits the ground within one
// slab. z is used unless the beam moves faster along x or y by more than this factor.
constexpr double kPreferZ = 5;

struct Beam {
  int axis, step;          // axis along which slabs are stacked; -1: the rays are too different
  double low[3], high[3];  // movement along the other axes per voxel along this one
};

// Voxels lower..upper-1.
struct Box {
  int lower[3], upper[3];
};

inline double magnitude(double x) { return x < 0 ? -x : x; }

// Returns the beam of rays [count], at least one, initialised by ray_cast::init_ray.
inline Beam beam_of(const Ray* rays, int count) {
  Beam beam{};
  const double* d = rays[0].d;
  const int flat = magnitude(d[1]) > magnitude(d[0]) ? 1 : 0;
  beam.axis = kPreferZ * magnitude(d[2]) > magnitude(d[flat]) ? 2 : flat;
  beam.step = rays[0].step[beam.axis];
  for (int a = 0; a < 3; ++a) {
    if (a == beam.axis) continue;
    double low = kMaxSlope, high = -kMaxSlope;
    bool same_step = true;
    for (int i = 0; i < count; ++i) {
      same_step &= rays[i].step[beam.axis] == beam.step;
      const double slope = rays[i].d[a] * rays[i].inv[beam.axis];
      low = slope < low ? slope : low;
      high = slope > high ? slope : high;
    }
    if (!same_step || beam.step == 0 || low < -kMaxSlope || high > kMaxSlope) {
      beam.axis = -1;
      return beam;
    }
    beam.low[a] = low;
    beam.high[a] = high;
  }
  return beam;
}

// Returns whether any of the children lo..hi (indices over the whole grid) of a mask level is
// occupied.
inline bool any_child(const Masks& masks, int level, const int* lo, const int* hi) {
  const int* n = masks.blocks[level];
  int block[3], low[3], high[3];
  const auto within_block = [&](int a) {
    low[a] = greatest_of(lo[a] - 4 * block[a], 0);
    high[a] = least_of(hi[a] - 4 * block[a], 3);
  };
  for (block[0] = lo[0] >> 2; block[0] <= hi[0] >> 2; ++block[0]) {
    within_block(0);
    for (block[1] = lo[1] >> 2; block[1] <= hi[1] >> 2; ++block[1]) {
      within_block(1);
      const int64_t row = (static_cast<int64_t>(block[0]) * n[1] + block[1]) * n[2];
      for (block[2] = lo[2] >> 2; block[2] <= hi[2] >> 2; ++block[2]) {
        within_block(2);
        const uint64_t bits = masks.words[masks.offset[level] + row + block[2]];
        if (bits & ray_cast::box_bits(low, high)) return true;
      }
    }
  }
  return false;
}

// Computes the voxels, along the other two axes, that a beam may touch between the boundaries
// `first` and `last` of its axis. Returns false if none are within the grid.
inline bool footprint(const Masks& masks, const Beam& beam, const double* origin, double first,
                      double last, int* lo, int* hi) {
  for (int a = 0; a < 3; ++a) {
    if (a == beam.axis) continue;
    const double from = first - origin[beam.axis], to = last - origin[beam.axis];
    const double ends[4] = {from * beam.low[a], from * beam.high[a], to * beam.low[a],
                            to * beam.high[a]};
    double low = ends[0], high = ends[0];
    for (int i = 1; i < 4; ++i) {
      low = ends[i] < low ? ends[i] : low;
      high = ends[i] > high ? ends[i] : high;
    }
    low += origin[a] - kMargin;
    high += origin[a] + kMargin;
    if (high < 0 || low >= masks.size[a]) return false;
    lo[a] = low < 0 ? 0 : static_cast<int>(low);
    hi[a] = high >= masks.size[a] ? masks.size[a] - 1 : static_cast<int>(high);
  }
  return true;
}

// Computes the part of the grid that the beam's rays must traverse: the grid without leading empty
// slabs. Returns false if all slabs are empty.
inline bool part_to_walk(const Masks& masks, const Beam& beam, const Ray& any, Box& part) {
  for (int a = 0; a < 3; ++a) {
    part.lower[a] = 0;
    part.upper[a] = masks.size[a];
  }
  const int axis = beam.axis;
  if (axis < 0) return true;
  const int size = masks.size[axis];
  const int start = any.start[axis];
  const bool up = beam.step > 0;
  int lo[3] = {}, hi[3] = {};
  for (int k = up ? greatest_of(start, 0) : least_of(start, size - 1); k >= 0 && k < size;) {
    // Start of the ray within the slab, or its entry into the slab.
    const double begin = up ? greatest_of<double>(k, any.o[axis])
                            : least_of<double>(k + 1, any.o[axis]);
    if ((k & 3) == (up ? 0 : 3)) {  // four slabs at once, by their blocks
      lo[axis] = k & ~3;
      hi[axis] = lo[axis] + 3;
      if (!footprint(masks, beam, any.o, begin, up ? lo[axis] + 4 : lo[axis], lo, hi)) {
        k += 4 * beam.step;
        continue;
      }
      for (int a = 0; a < 3; ++a) {
        lo[a] >>= 2;
        hi[a] >>= 2;
      }
      if (!any_child(masks, 1, lo, hi)) {
        k += 4 * beam.step;
        continue;
      }
    }
    lo[axis] = hi[axis] = k;
    if (footprint(masks, beam, any.o, begin, up ? k + 1 : k, lo, hi) &&
        any_child(masks, 0, lo, hi)) {
      if (up) part.lower[axis] = k;
      if (!up) part.upper[axis] = k + 1;
      return true;
    }
    k += beam.step;
  }
  return false;
}

// Like ray_cast::enter_grid, for a part of the grid.
inline bool enter_part(Ray& ray, const Box& part, const int* size) {
  double t_event = -1;
  int event_axis = -1;
  for (int a = 0; a < 3; ++a) {
    const bool before = ray.v[a] < part.lower[a];
    if (!before && ray.v[a] < part.upper[a]) continue;
    if (ray.step[a] != (before ? 1 : -1)) return false;  // moves away
    const double t = crossing(ray, a, before ? part.lower[a] : part.upper[a]);
    if (t >= t_event) {
      t_event = t;
      event_axis = a;
    }
  }
  if (event_axis < 0) return true;  // starts inside
  int entered[3];
  for (int a = 0; a < 3; ++a) {
    entered[a] = a == event_axis
                     ? (ray.step[a] > 0 ? part.lower[a] : part.upper[a] - 1)
                     : index_before(ray, a, t_event, event_axis, -1, size[a]);
    if (entered[a] < part.lower[a] || entered[a] >= part.upper[a]) return false;
  }
  for (int a = 0; a < 3; ++a) ray.v[a] = entered[a];
  return true;
}

}  // namespace voxel_shading
}  // namespace opus
