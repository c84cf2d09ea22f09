// Voxel shading on the host. Rays are cast tile by tile; hits on faces of one axis are shaded
// together with vectors. No include guard.

namespace opus {
namespace OPUS_TARGET {
namespace shading {

using ray_cast::Hit;
using ray_cast::Masks;
using ray_cast::Ray;
using ray_cast::Walk;
using voxel_shading::Box;
using voxel_shading::kTile;
using voxel_shading::Picture;

// Sunlight and ambient light at the corners of a face, [light][along the second axis][the first].
struct Corners {
  float light[2][2][2];
};

// Returns the corners of the face with the cell `front` in front of it. `du` and `dv` are the
// strides to the cell's neighbours in the face's plane.
inline Corners corners_of(const float* front, int64_t du, int64_t dv, float occlusion) {
  float cell[3][3][2], free[3][3];  // [along v][along u]
  for (int j = 0; j < 3; ++j) {
    for (int i = 0; i < 3; ++i) {
      const float* at = front + (i - 1) * du + (j - 1) * dv;
      cell[j][i][0] = at[0];
      cell[j][i][1] = at[1];
      free[j][i] = at[1] > 0 ? 1.f : 0.f;  // ambient light reaches every free cell
    }
  }
  Corners corners;
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 2; ++i) {
      const float count = (free[j][i] + free[j][i + 1]) + (free[j + 1][i] + free[j + 1][i + 1]);
      const float inverse = 1.f / std::max(count, 1.f);
      const float crease = 1.f - occlusion * (1.f - 0.25f * count);
      float sum[2];
      for (int k = 0; k < 2; ++k) {
        sum[k] = (cell[j][i][k] + cell[j][i + 1][k]) + (cell[j + 1][i][k] + cell[j + 1][i + 1][k]);
      }
      corners.light[0][j][i] = sum[0] * inverse;
      corners.light[1][j][i] = sum[1] * (inverse * crease);
    }
  }
  return corners;
}

// Cache of the corners of faces, because neighbouring rays hit the same few faces.
class FaceLight {
 public:
  explicit FaceLight(const Scene& scene) : scene_(scene) { std::fill_n(kept_, kSlots, -1); }

  const Corners& of(const int* voxel, int number, const int* axes) {
    const int64_t* stride = scene_.stride;
    int64_t front = 0;  // of the cell in `light`, which has a border of one cell
    for (int a = 0; a < 3; ++a) front += (voxel[a] + 1) * stride[a];
    front += number % 2 ? stride[axes[0]] : -stride[axes[0]];
    const int64_t face = 8 * front + number;
    // Neighbours along any axis have different slots.
    const int slot = (voxel[0] + 8 * voxel[1] + 64 * voxel[2] + 89 * number) & (kSlots - 1);
    if (kept_[slot] != face) {
      kept_[slot] = face;
      corners_[slot] = corners_of(scene_.light + front, stride[axes[1]], stride[axes[2]],
                                  scene_.occlusion);
    }
    return corners_[slot];
  }

 private:
  static constexpr int kSlots = 256;
  const Scene& scene_;
  int64_t kept_[kSlots];
  Corners corners_[kSlots];
};

// Shades and empties a batch of faces of one axis.
inline void flush(const Scene& scene, const View& view, const Picture& picture, int axis,
                  Batch& batch) {
  const int axes[3] = {axis, (axis + 1) % 3, (axis + 2) % 3};
  float factor[Batch::kRoom], alpha[Batch::kRoom];
  for (int i = 0; i < batch.count; i += L::kWidth) {
    const Shade shade = shade_lanes(scene, view, batch, axes, i);
    L::store(factor + i, shade.colour);
    L::store(alpha + i, shade.alpha);
  }
  for (int i = 0; i < batch.count; ++i) {
    const float* albedo = scene.albedo + 3 * batch.label[i];
    float* colour = picture.colour + 4 * batch.ray[i];  // initially the background
    for (int k = 0; k < 3; ++k) colour[k] = factor[i] * albedo[k] + (1.f - alpha[i]) * colour[k];
    colour[3] = alpha[i];
  }
  batch.count = 0;
}

// Returns the face along the ray's main axis, for rays that start inside a voxel.
inline int face_looked_through(const float* d) {
  int main = 0;
  for (int a = 1; a < 3; ++a) main = std::fabs(d[a]) > std::fabs(d[main]) ? a : main;
  return 2 * main + (d[main] < 0);
}

// Casts and shades the tiles of one thread.
class Tiles {
 public:
  Tiles(const Scene& scene, const View& view, const Picture& picture)
      : scene_(scene), view_(view), picture_(picture), light_(scene) {
    for (int a = 0; a < 3; ++a) {
      origin_[a] = (static_cast<double>(view.position[a]) - scene.grid_min_m[a]) /
                   scene.voxel_size_m[a];
    }
  }

  // Draws rows [first, last), at most kTile.
  void draw_rows(int64_t first, int64_t last) {
    const int64_t begin = first * picture_.width, end = last * picture_.width;
    for (int64_t row = first; row < last; ++row) {
      const float* sky = picture_.background + 3 * row;
      float* colour = picture_.colour + 4 * row * picture_.width;
      for (int64_t i = 0; i < picture_.width; ++i, colour += 4) {
        colour[0] = sky[0];
        colour[1] = sky[1];
        colour[2] = sky[2];
        colour[3] = 0;
      }
    }
    std::fill(picture_.key + begin, picture_.key + end, -1);
    std::fill(picture_.distance + begin, picture_.distance + end,
              std::numeric_limits<float>::infinity());
    for (int64_t column = 0; column < picture_.width; column += kTile) {
      enter_tile(first, last, column, std::min(picture_.width, column + kTile));
      if (waiting_ + kTile * kTile > kRoom) walk_all();
    }
    walk_all();
    for (int axis = 0; axis < 3; ++axis) flush(scene_, view_, picture_, axis, batches_[axis]);
  }

 private:
  // Adds a tile's rays to the pending rays, without those that only pass through empty space.
  void enter_tile(int64_t top, int64_t bottom, int64_t left, int64_t right) {
    int count = waiting_;
    for (int64_t row = top; row < bottom; ++row) {
      for (int64_t index = row * picture_.width + left; index < row * picture_.width + right;
           ++index) {
        if (picture_.wanted != nullptr && !picture_.wanted[index]) continue;
        const float* local = picture_.directions + 3 * index;
        const auto& axes = view_.rotation;
        double d[3];
        for (int a = 0; a < 3; ++a) {
          const float along = local[0] * axes[0][a] + local[1] * axes[1][a] + local[2] * axes[2][a];
          direction_[count][a] = along;
          d[a] = static_cast<double>(along) / scene_.voxel_size_m[a];
        }
        index_[count] = index;
        count += init_ray(rays_[count], origin_, d, std::numeric_limits<double>::infinity(),
                          scene_.masks.size);
      }
    }
    const Ray* rays = rays_ + waiting_;
    if (count == waiting_) return;
    Box part;
    const voxel_shading::Beam beam = voxel_shading::beam_of(rays, count - waiting_);
    if (!part_to_walk(scene_.masks, beam, rays[0], part)) return;
    for (int i = waiting_; i < count; ++i) {
      if (!enter_part(rays_[i], part, scene_.masks.size)) continue;
      if (i != waiting_) {
        rays_[waiting_] = rays_[i];
        index_[waiting_] = index_[i];
        std::copy_n(direction_[i], 3, direction_[waiting_]);
      }
      ++waiting_;
    }
  }

  void walk_all() {
#if defined(OPUS_TARGET_HAS_AVX2)
    const int* size = scene_.masks.size;
    if (static_cast<int64_t>(size[0]) * size[1] * size[2] % 4 == 0) return walk_in_lanes();
#endif
    for (int i = 0; i < waiting_; ++i) {
      if (walk(rays_[i])) add(rays_[i], i);
    }
    waiting_ = 0;
  }

#if defined(OPUS_TARGET_HAS_AVX2)
  void walk_in_lanes() {
    using voxel_shading::kRayLanes;
    voxel_shading::RayLanes lanes;
    int ray_of[kRayLanes], next = 0, walking = 0;
    for (int lane = 0; lane < kRayLanes; ++lane) walking |= refill(lanes, lane, ray_of, next);
    while (walking) {
      int ended = advance(lanes, walking, scene_.labels, scene_.empty_label);
      for (; ended; ended &= ended - 1) {
        const int lane = __builtin_ctz(ended), i = ray_of[lane];
        get(lanes, lane, rays_[i]);
        const bool hit = scene_.labels[lanes.voxel[lane]] != scene_.empty_label;
        // A ray that is about to leave the grid takes its last steps separately.
        if (hit || walk(rays_[i])) add(rays_[i], i);
        walking &= ~(1 << lane);
        walking |= refill(lanes, lane, ray_of, next);
      }
    }
    waiting_ = 0;
  }

  // Assigns the next ray to a lane and returns the lane's bit; without rays left, returns 0 and
  // makes the lane idle.
  int refill(voxel_shading::RayLanes& lanes, int lane, int* ray_of, int& next) const {
    if (next == waiting_) {
      rest(lanes, lane);
      return 0;
    }
    set(lanes, lane, rays_[next], scene_.masks.size);
    ray_of[lane] = next++;
    return 1 << lane;
  }
#endif

  // Moves a ray to its first occupied voxel. Most hits are near, so the first blocks are traversed
  // with single steps.
  bool walk(Ray& ray) const {
    const Masks& masks = scene_.masks;
    for (int i = 0; i < kNearBlocks; ++i) {
      const int64_t block = ray_cast::block_index(masks, 0, ray.v);
      const Walk found = walk_block(masks, ray, masks.words[masks.offset[0] + block]);
      if (found != Walk::kOn) return found == Walk::kHit;
    }
    const ray_cast::OneGrid grid{masks.words};
#if defined(OPUS_TARGET_HAS_AVX2)
    return ray_cast::avx2::walk_grid(masks, grid, ray);
#else
    return walk_grid(masks, grid, ray, true);
#endif
  }

  // Adds the hit of a ray to its batch.
  void add(const Ray& ray, int place) {
    Hit hit;
    finish(ray, true, hit);
    const int64_t index = index_[place];
    const float* d = direction_[place];
    const int number = hit.face < 0 ? face_looked_through(d) : hit.face;
    const int axes[3] = {number / 2, (number / 2 + 1) % 3, (number / 2 + 2) % 3};
    const int* size = scene_.masks.size;
    const int64_t row = static_cast<int64_t>(hit.voxel[0]) * size[1] + hit.voxel[1];
    const uint8_t label = scene_.labels[row * size[2] + hit.voxel[2]];
    TORCH_CHECK_VALUE(label < scene_.num_classes, "a ray hit label ", static_cast<int>(label),
                      ", albedo has ", scene_.num_classes, " colours");
    picture_.key[index] = (hit.voxel[axes[0]] * 8 + number) * 256 + label;
    picture_.distance[index] = static_cast<float>(hit.t_enter);
    Batch& batch = batches_[axes[0]];
    const int i = batch.count++;
    batch.t[i] = static_cast<float>(hit.t_enter);
    batch.ray[i] = index;
    batch.label[i] = label;
    for (int k = 0; k < 2; ++k) {
      batch.across[k][i] = d[axes[1 + k]];
      batch.voxel[k][i] = static_cast<float>(hit.voxel[axes[1 + k]]);
    }
    for (int k = 0; k < 3; ++k) batch.local[k][i] = picture_.directions[3 * index + k];
    const float* corners = &light_.of(hit.voxel, number, axes).light[0][0][0];
    for (int k = 0; k < 8; ++k) batch.corner[k][i] = corners[k];
    for (int k = 0; k < 2; ++k) batch.brightness[k][i] = scene_.brightness[number][k];
    if (batch.count == Batch::kRoom) flush(scene_, view_, picture_, axes[0], batch);
  }

  static constexpr int kNearBlocks = 4, kRoom = 128;

  const Scene& scene_;
  const View& view_;
  const Picture& picture_;
  double origin_[3];
  FaceLight light_;
  Batch batches_[3];
  // Number of pending rays; the arrays have space for one more tile.
  int waiting_ = 0;
  Ray rays_[kRoom];
  float direction_[kRoom][3];  // ray directions in the grid's axes
  int64_t index_[kRoom];
};

inline void draw_rows(const Scene& scene, const View& view, const Picture& picture, int64_t first,
                      int64_t last) {
  Tiles tiles(scene, view, picture);
  for (int64_t row = first; row < last; row += kTile) {
    tiles.draw_rows(row, std::min(last, row + kTile));
  }
}

}  // namespace shading
}  // namespace OPUS_TARGET
}  // namespace opus
