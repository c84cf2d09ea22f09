// Vectorised colours of points on voxel faces. No include guard.

namespace opus {
namespace OPUS_TARGET {
namespace shading {

using voxel_shading::Scene;
using voxel_shading::View;

using V = Pack<float>;
using L = Lanes<V>;

OPUS_BODY V smaller(const V& a, const V& b) { return {a.raw < b.raw ? a.raw : b.raw}; }
OPUS_BODY V absolute(const V& a) { return larger(a, -a); }
OPUS_BODY V clip(const V& a, float low, float high) {
  return smaller(larger(a, L::fill(low)), L::fill(high));
}

// Pending hits on faces of one axis, shaded together.
struct Batch {
  static constexpr int kRoom = 64;
  int count = 0;
  float t[kRoom] = {};
  float local[3][kRoom] = {};   // direction in the camera's axes
  float across[2][kRoom] = {};  // direction along the two axes of the plane
  float voxel[2][kRoom] = {};   // voxel index along the two axes of the plane
  float brightness[2][kRoom] = {};
  float corner[8][kRoom] = {};  // [light][along the second axis of the plane][along the first]
  int64_t ray[kRoom] = {};
  uint8_t label[kRoom] = {};
};

struct Shade {
  V colour, alpha;  // factor of the class colour, and one minus the fog
};

// Sunlight and ambient light, interpolated bilinearly between the corners of the face.
OPUS_BODY V light_on(const Batch& batch, int i, const V& u, const V& v) {
  V shade = L::fill(0.f);
  for (int k = 0; k < 2; ++k) {
    V corner[4];
    for (int j = 0; j < 4; ++j) corner[j] = L::load(batch.corner[4 * k + j] + i);
    const V low = corner[0] + u * (corner[1] - corner[0]);
    const V high = corner[2] + u * (corner[3] - corner[2]);
    shade += L::load(batch.brightness[k] + i) * (low + v * (high - low));
  }
  return shade;
}

// Lines along voxel edges. They have a constant width on screen and fade out for voxels of a few
// pixels.
OPUS_BODY V edge_shade(const Scene& scene, const View& view, const int* axes, const V* place,
                       const V& t, const V* local) {
  const V x = local[0] / local[2], y = local[1] / local[2];
  const V px_per_m = L::fill(view.focal_px) * root(x * x + y * y + L::fill(1.f)) /
                     larger(t, L::fill(1e-3f));
  V step[2][2];  // pixels per voxel along the face's two axes
  for (int i = 0; i < 2; ++i) {
    const int a = axes[1 + i];
    const V edge = L::fill(scene.voxel_size[a]) * px_per_m;
    const V forward = L::fill(view.rotation[2][a]);
    step[i][0] = (L::fill(view.rotation[0][a]) - x * forward) * edge;
    step[i][1] = (L::fill(view.rotation[1][a]) - y * forward) * edge;
  }
  const V area = absolute(step[0][0] * step[1][1] - step[0][1] * step[1][0]);
  const float width = view.edge_width_px * view.edge_scale;
  V line = L::fill(0.f);
  for (int i = 0; i < 2; ++i) {
    const V* other = step[1 - i];
    const V length = root(other[0] * other[0] + other[1] * other[1]);
    const V extent = area / larger(length, L::fill(1e-6f));
    const V offset = smaller(place[i], L::fill(1.f) - place[i]) * extent;
    const V cover =
        clip(L::fill(0.5f * width + 0.5f) - offset, 0.f, std::min(width, 1.f));
    const V seen = (extent / L::fill(view.edge_scale) - L::fill(3.f)) / L::fill(8.f);
    line = larger(line, cover * clip(seen, 0.f, 1.f));
  }
  return L::fill(1.f) - L::fill(view.edge_strength) * line;
}

OPUS_BODY Shade shade_lanes(const Scene& scene, const View& view, const Batch& batch,
                            const int* axes, int i) {
  const V t = L::load(batch.t + i);
  const V local[3] = {L::load(batch.local[0] + i), L::load(batch.local[1] + i),
                      L::load(batch.local[2] + i)};
  V place[2];
  for (int k = 0; k < 2; ++k) {
    const int a = axes[1 + k];
    const V size = L::fill(scene.voxel_size[a]);
    const V start = L::fill((view.position[a] - scene.grid_min[a]) / scene.voxel_size[a]);
    const V along = t * L::load(batch.across[k] + i) / size;
    place[k] = clip(along + start - L::load(batch.voxel[k] + i), 0.f, 1.f);
  }
  const V depth =
      clip((t - L::fill(view.fog_start_m)) / L::fill(view.fog_length_m), 0.f, 1.f);
  const V alpha = L::fill(1.f) - L::fill(view.fog_strength) * depth * depth;
  const V light = light_on(batch, i, place[0], place[1]);
  return {alpha * (light * edge_shade(scene, view, axes, place, t, local)), alpha};
}

}  // namespace shading
}  // namespace OPUS_TARGET
}  // namespace opus
