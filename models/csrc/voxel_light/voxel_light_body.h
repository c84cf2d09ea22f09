// Arithmetic of the light in a cell. No include guard.

namespace opus {
namespace OPUS_TARGET {
namespace light {

using voxel_light::kReach;

// Offsets and weights for sampling a layer at a fractional shift.
struct Shift {
  int64_t ix, iy;
  float fx, fy;

  Shift(double dx, double dy)
      : ix(static_cast<int64_t>(std::floor(dx))),
        iy(static_cast<int64_t>(std::floor(dy))),
        fx(static_cast<float>(dx - std::floor(dx))),
        fy(static_cast<float>(dy - std::floor(dy))) {}

  // Samples the row whose first cell is at `from`; `row` is the row stride.
  OPUS_BODY float sample(const float* from, int64_t row, int64_t y) const {
    const float* at = from + ix * row + iy + y;
    const float near = at[0] + fx * (at[row] - at[0]);
    const float far = at[1] + fx * (at[row + 1] - at[1]);
    return near + fy * (far - near);
  }
};

// Ambient light as a function of the number of surface cells in the neighbourhood.
OPUS_BODY float openness(uint16_t count) {
  constexpr int kSide = 2 * kReach + 1;
  const float share = static_cast<float>(count) / static_cast<float>(kSide * kSide * kSide);
  // One full layer of ground (or wall) next to a cell is open space and does not darken it.
  const float crowd = std::max(share - static_cast<float>(1.0 / kSide), 0.f);
  return std::min(std::max(1.f - 1.3f * crowd, 0.45f), 1.f);
}

}  // namespace light
}  // namespace OPUS_TARGET
}  // namespace opus
