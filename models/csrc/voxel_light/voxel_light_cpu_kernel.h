// Light in the cells of a grid on the host. No include guard.
//
// Volumes are stored as [Z, X, Y], so that the innermost loops run over a long axis. Planes have a
// border of zeros or ones, so that loops need no boundary checks.

namespace opus {
namespace OPUS_TARGET {
namespace light {

using voxel_light::Size;
using voxel_light::Slope;

// One number per cell, with a border on all sides and `border_z` extra planes below and above.
template <typename T>
class Volume {
 public:
  Volume(const Size& size, int border, T outside) : Volume(size, border, border, outside) {}
  Volume(const Size& size, int border, int border_z, T outside)
      : border_(border),
        border_z_(border_z),
        row_(size.y + 2 * border),
        plane_((size.x + 2 * border) * row_),
        cells_((size.z + 2 * border_z) * plane_, outside) {}

  // Returns the address of cell (x, 0) of a plane.
  T* at(int64_t z, int64_t x) {
    return cells_.data() + (z + border_z_) * plane_ + (x + border_) * row_ + border_;
  }
  const T* at(int64_t z, int64_t x) const { return const_cast<Volume*>(this)->at(z, x); }
  int64_t row() const { return row_; }
  int64_t plane() const { return plane_; }

 private:
  int64_t border_, border_z_, row_, plane_;
  std::vector<T> cells_;
};

// grid [X, Y, Z] -> [Z, X, Y].
inline void turn(const bool* grid, const Size& size, Volume<uint8_t>& out) {
  for (int64_t x = 0; x < size.x; ++x) {
    for (int64_t z = 0; z < size.z; ++z) {
      const bool* from = grid + x * size.y * size.z + z;
      uint8_t* to = out.at(z, x);
      for (int64_t y = 0; y < size.y; ++y) to[y] = from[y * size.z];
    }
  }
}

// Fraction of the sun visible from each cell: [Z, X, Y]. Light is propagated from layer to layer.
inline void sunlight(const Volume<uint8_t>& opaque, const Size& size, const Slope& slope,
                     float* light) {
  const int border = static_cast<int>(std::max(std::fabs(slope.x), std::fabs(slope.y))) + 2;
  const Size flat{size.x, size.y, 1};
  Volume<float> free(flat, border, 0, 1.f), above(flat, border, 0, 1.f);
  const Shift half(0.5 * slope.x, 0.5 * slope.y), whole(slope.x, slope.y);
  for (int64_t z = size.z - 1; z >= 0; --z) {
    for (int64_t x = 0; x < size.x; ++x) {
      const uint8_t* from = opaque.at(z, x);
      float* to = free.at(0, x);
      for (int64_t y = 0; y < size.y; ++y) to[y] = from[y] ? 0.f : 1.f;
    }
    float* layer = light + z * size.x * size.y;
    for (int64_t x = 0; x < size.x; ++x) {
      const float *here = free.at(0, x), *there = above.at(0, x);
      float* to = layer + x * size.y;
      // A ray passes through neighbours in its layer before it reaches the layer above.
      for (int64_t y = 0; y < size.y; ++y) {
        to[y] = half.sample(here, free.row(), y) * whole.sample(there, above.row(), y);
      }
    }
    for (int64_t x = 0; x < size.x; ++x) {
      const float *from = layer + x * size.y, *here = free.at(0, x);
      float* to = above.at(0, x);
      for (int64_t y = 0; y < size.y; ++y) to[y] = from[y] * here[y];
    }
  }
}

// Marks opaque cells with at least one free cell among their 26 neighbours; `out` is 0 elsewhere.
inline void surface(const Volume<uint8_t>& opaque, const Size& size, Volume<uint8_t>& out) {
  const int64_t row = opaque.row(), plane = opaque.plane();
  std::vector<uint8_t> column(size.y + 2);  // whether all nine of the same y are opaque
  for (int64_t z = 0; z < size.z; ++z) {
    for (int64_t x = 0; x < size.x; ++x) {
      const uint8_t* from = opaque.at(z, x);
      for (int64_t y = 0; y < size.y + 2; ++y) {
        const uint8_t *at = from + y - 1, *below = at - plane, *above = at + plane;
        column[y] = below[-row] & below[0] & below[row] & at[-row] & at[0] & at[row] &
                    above[-row] & above[0] & above[row];
      }
      uint8_t* to = out.at(z, x);
      for (int64_t y = 0; y < size.y; ++y) {
        const uint8_t buried = column[y] & column[y + 1] & column[y + 2];
        to[y] = from[y] & static_cast<uint8_t>(buried ^ 1);
      }
    }
  }
}

// Sums over the cells within kReach along an axis with the memory stride `step`.
template <typename From, typename To>
void box_sums(const From* from, int64_t step, int64_t count, To* to) {
  for (int64_t i = 0; i < count; ++i) {
    To sum = 0;
    for (int64_t k = -kReach; k <= kReach; ++k) sum = static_cast<To>(sum + from[i + k * step]);
    to[i] = sum;
  }
}

// Number of surface cells within kReach along y and x: [Z, X, Y] with a border in z.
inline void count_across(const Volume<uint8_t>& opaque, const Size& size, Volume<uint8_t>& counts) {
  Volume<uint8_t> faces(size, kReach, 0), along_y(size, kReach, 0);
  surface(opaque, size, faces);
  for (int64_t z = 0; z < size.z; ++z) {
    for (int64_t x = 0; x < size.x; ++x) box_sums(faces.at(z, x), 1, size.y, along_y.at(z, x));
    for (int64_t x = 0; x < size.x; ++x) {
      box_sums(along_y.at(z, x), along_y.row(), size.y, counts.at(z, x));
    }
  }
}

// drawn, opaque: [X, Y, Z]. out: [Z + 2, X + 2, Y + 2, 2], initially ones.
inline void light_cells(const bool* drawn, const bool* opaque, const Size& size,
                        const Slope& slope, float* out) {
  Volume<uint8_t> solid(size, 1, 0), shown(size, 0, 0), counts(size, kReach, 0);
  turn(opaque, size, solid);
  turn(drawn, size, shown);
  count_across(solid, size, counts);
  std::vector<float> sun(size.x * size.y * size.z);
  sunlight(solid, size, slope, sun.data());
  std::vector<uint16_t> around(size.y);
  for (int64_t z = 0; z < size.z; ++z) {
    for (int64_t x = 0; x < size.x; ++x) {
      box_sums(counts.at(z, x), counts.plane(), size.y, around.data());
      const float* sunny = sun.data() + (z * size.x + x) * size.y;
      const uint8_t* hidden = shown.at(z, x);
      float* to = out + 2 * (((z + 1) * (size.x + 2) + x + 1) * (size.y + 2) + 1);
      for (int64_t y = 0; y < size.y; ++y) {
        const float free = hidden[y] ? 0.f : 1.f;
        to[2 * y] = sunny[y] * free;
        to[2 * y + 1] = openness(around[y]) * free;
      }
    }
  }
}

}  // namespace light
}  // namespace OPUS_TARGET
}  // namespace opus
