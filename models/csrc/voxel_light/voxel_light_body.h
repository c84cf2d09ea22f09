// Arithmetic of a cell's light. No include guard.

namespace opus {
namespace OPUS_TARGET {
namespace light {

using voxel_light::kReach;

// Where to read, and how to weigh, for a layer seen through a slanted shift.
struct Shift {
  int64_t ix, iy;
  float fx, fy;

  Shift(double dx, double dy)
      : ix(static_cast<int64_t>(std::floor(dx))),
        iy(static_cast<int64_t>(std::floor(dy))),
        fx(static_cast<float>(dx - std::floor(dx))),
        fy(static_cast<float>(dy - std::floor(dy))) {}

  // Of the row whose first cell is at `from`; rows are `row` apart.
  OPUS_BODY float sample(const float* from, int64_t row, int64_t y) const {
    const float* at = from + ix * row + iy + y;
    const float near = at[0] + fx * (at[row] - at[0]);
    const float far = at[1] + fx * (at[row + 1] - at[1]);
    return near + fy * (far - near);
  }
};

// Ambient light from the wider neighbourhood, as a function of the surfaces in it.
OPUS_BODY float openness(uint16_t count) {
  constexpr int kSide = 2 * kReach + 1;
  const float share = static_cast<float>(count) / static_cast<float>(kSide * kSide * kSide);
  // One full layer of ground (or wall) beside a cell is the open country: no darkening.
  const float crowd = std::max(share - static_cast<float>(1.0 / kSide), 0.f);
  return std::min(std::max(1.f - 1.3f * crowd, 0.45f), 1.f);
}

}  // namespace light
}  // namespace OPUS_TARGET
}  // namespace opus
