// Colours of ray hits on voxel faces: baked light, lines along voxel edges, fog.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "common/parallel.h"

namespace opus {
namespace {

constexpr int64_t kRaysPerTask = 4096;

struct Scene {
  const uint8_t* labels;
  const float* albedo;    // [C, 3]
  const float* light[3];  // [entries, 2] by the axis of the face's normal
  int64_t stride[3][3];   // entries per step in x, y, z, by the axis of the face's normal
  int64_t size[3];
  int64_t num_classes;
  float brightness[6][2];  // sun, ambient light
  float grid_min[3], voxel_size[3];
};

struct View {
  float position[3];
  float rotation[3][3];  // rows: right, down, forward
  float focal_px;
  float edge_strength, edge_width_px, edge_scale;
  float fog_strength, fog_start_m, fog_length_m;
};

struct Face {
  int number;   // 0 -x, 1 +x, 2 -y, 3 +y, 4 -z, 5 +z
  int axis[3];  // of the normal, and the two in the plane
  float place[2];
};

float clip(float value, float low, float high) { return std::min(std::max(value, low), high); }

Face face_of(const Scene& scene, const View& view, int number, const int32_t* voxel, float t,
             const float* d) {
  if (number < 0) {  // the ray starts inside: the face it looks through
    int main = 0;
    for (int a = 1; a < 3; ++a) main = std::fabs(d[a]) > std::fabs(d[main]) ? a : main;
    number = 2 * main + (d[main] < 0);
  }
  Face face{number, {number / 2, (number / 2 + 1) % 3, (number / 2 + 2) % 3}, {0, 0}};
  for (int i = 0; i < 2; ++i) {
    const int a = face.axis[1 + i];
    const float start = (view.position[a] - scene.grid_min[a]) / scene.voxel_size[a];
    face.place[i] = clip(t * d[a] / scene.voxel_size[a] + start - voxel[a], 0.f, 1.f);
  }
  return face;
}

// Sun and ambient light, bilinear between the corners of the face.
float light_on(const Scene& scene, const Face& face, const int32_t* voxel) {
  const int64_t* stride = scene.stride[face.axis[0]];
  int64_t entry = voxel[0] * stride[0] + voxel[1] * stride[1] + voxel[2] * stride[2];
  if (face.number % 2) entry += 2 * stride[face.axis[0]];
  const float* corner = scene.light[face.axis[0]] + 2 * entry;
  const int64_t du = 2 * stride[face.axis[1]], dv = 2 * stride[face.axis[2]];
  const float u = face.place[0], v = face.place[1];
  float shade = 0;
  for (int i = 0; i < 2; ++i) {
    const float low = corner[i] + u * (corner[i + du] - corner[i]);
    const float high = corner[i + dv] + u * (corner[i + du + dv] - corner[i + dv]);
    shade += scene.brightness[face.number][i] * (low + v * (high - low));
  }
  return shade;
}

// Lines along voxel edges: of one width on the screen wherever they are, none where voxels are
// but a few pixels.
float edge_shade(const Scene& scene, const View& view, const Face& face, float t, const float* d) {
  float local[3];
  for (int i = 0; i < 3; ++i) {
    const float* row = view.rotation[i];
    local[i] = row[0] * d[0] + row[1] * d[1] + row[2] * d[2];
  }
  const float x = local[0] / local[2], y = local[1] / local[2];
  const float px_per_m = view.focal_px * std::sqrt(x * x + y * y + 1.f) / std::max(t, 1e-3f);
  float step[2][2];  // pixels per voxel along the face's two axes
  for (int i = 0; i < 2; ++i) {
    const int a = face.axis[1 + i];
    const float edge = scene.voxel_size[a] * px_per_m, forward = view.rotation[2][a];
    step[i][0] = (view.rotation[0][a] - x * forward) * edge;
    step[i][1] = (view.rotation[1][a] - y * forward) * edge;
  }
  const float area = std::fabs(step[0][0] * step[1][1] - step[0][1] * step[1][0]);
  const float width = view.edge_width_px * view.edge_scale;
  float line = 0;
  for (int i = 0; i < 2; ++i) {
    const float* other = step[1 - i];
    const float length = std::sqrt(other[0] * other[0] + other[1] * other[1]);
    const float extent = area / std::max(length, 1e-6f);
    const float offset = std::min(face.place[i], 1.f - face.place[i]) * extent;
    const float cover = clip(0.5f * width + 0.5f - offset, 0.f, std::min(width, 1.f));
    line = std::max(line, cover * clip((extent / view.edge_scale - 3.f) / 8.f, 0.f, 1.f));
  }
  return 1.f - view.edge_strength * line;
}

float fog_share(const View& view, float t) {
  const float depth = clip((t - view.fog_start_m) / view.fog_length_m, 0.f, 1.f);
  return view.fog_strength * depth * depth;
}

void shade_ray(const Scene& scene, const View& view, const int32_t* voxel, float t, int number,
               const float* d, float* colour, int32_t* key) {
  const Face face = face_of(scene, view, number, voxel, t, d);
  const int label = scene.labels[(voxel[0] * scene.size[1] + voxel[1]) * scene.size[2] + voxel[2]];
  TORCH_CHECK_VALUE(label < scene.num_classes, "a ray hit label ", label, ", albedo has ",
                    scene.num_classes, " colours");
  const float shade = light_on(scene, face, voxel) * edge_shade(scene, view, face, t, d);
  const float alpha = 1.f - fog_share(view, t);
  for (int i = 0; i < 3; ++i) colour[i] = alpha * shade * scene.albedo[3 * label + i];
  colour[3] = alpha;
  *key = (voxel[face.axis[0]] * 8 + face.number) * 256 + label;
}

std::tuple<at::Tensor, at::Tensor> voxel_shading_cpu(
    const at::Tensor& labels, const at::Tensor& voxel, const at::Tensor& hit,
    const at::Tensor& distance, const at::Tensor& face, const at::Tensor& directions,
    const at::Tensor& light_x, const at::Tensor& light_y, const at::Tensor& light_z,
    const at::Tensor& albedo, at::IntArrayRef strides, at::ArrayRef<double> brightness,
    at::ArrayRef<double> grid, at::ArrayRef<double> camera, at::ArrayRef<double> edges,
    at::ArrayRef<double> fog) {
  Scene scene{};
  const at::Tensor light[3] = {light_x.contiguous(), light_y.contiguous(), light_z.contiguous()};
  const at::Tensor labels_c = labels.contiguous(), albedo_c = albedo.contiguous();
  scene.labels = labels_c.const_data_ptr<uint8_t>();
  scene.albedo = albedo_c.const_data_ptr<float>();
  scene.num_classes = albedo.size(0);
  View view{};
  for (int a = 0; a < 3; ++a) {
    scene.light[a] = light[a].const_data_ptr<float>();
    scene.size[a] = labels.size(a);
    scene.grid_min[a] = static_cast<float>(grid[a]);
    scene.voxel_size[a] = static_cast<float>(grid[3 + a]);
    view.position[a] = static_cast<float>(camera[a]);
    int64_t last = 0;  // the farthest entry that a face of this axis reads
    for (int b = 0; b < 3; ++b) {
      scene.stride[a][b] = strides[3 * a + b];
      view.rotation[a][b] = static_cast<float>(camera[3 + 3 * a + b]);
      last += scene.stride[a][b] * (labels.size(b) + (a == b ? 1 : 0));
    }
    TORCH_CHECK_VALUE(light[a].dim() == 2 && light[a].size(1) == 2 && light[a].size(0) > last,
                      "the light of axis ", a, " must be [more than ", last, ", 2], got ",
                      light[a].sizes());
  }
  view.focal_px = static_cast<float>(camera[12]);
  for (int f = 0; f < 6; ++f) {
    for (int i = 0; i < 2; ++i) {
      scene.brightness[f][i] = static_cast<float>(brightness[2 * f + i]);
    }
  }
  view.edge_strength = static_cast<float>(edges[0]);
  view.edge_width_px = static_cast<float>(edges[1]);
  view.edge_scale = static_cast<float>(edges[2]);
  view.fog_strength = static_cast<float>(fog[0]);
  view.fog_start_m = static_cast<float>(fog[1]);
  view.fog_length_m = static_cast<float>(fog[2]);

  const int64_t num_rays = directions.size(0);
  at::Tensor colour = at::empty({num_rays, 4}, directions.options());
  at::Tensor key = at::empty({num_rays}, directions.options().dtype(at::kInt));
  const at::Tensor v = voxel.contiguous(), h = hit.contiguous(), t = distance.contiguous();
  const at::Tensor f = face.contiguous(), d = directions.contiguous();
  const int32_t* v_p = v.const_data_ptr<int32_t>();
  const bool* h_p = h.const_data_ptr<bool>();
  const float* t_p = t.const_data_ptr<float>();
  const int8_t* f_p = f.const_data_ptr<int8_t>();
  const float* d_p = d.const_data_ptr<float>();
  float* colour_p = colour.data_ptr<float>();
  int32_t* key_p = key.data_ptr<int32_t>();
  parallel_tasks(num_blocks(num_rays, kRaysPerTask), [&](int64_t task) {
    const int64_t end = std::min(num_rays, (task + 1) * kRaysPerTask);
    for (int64_t r = task * kRaysPerTask; r < end; ++r) {
      if (h_p[r]) {
        shade_ray(scene, view, v_p + 3 * r, t_p[r], f_p[r], d_p + 3 * r, colour_p + 4 * r,
                  key_p + r);
        continue;
      }
      std::fill_n(colour_p + 4 * r, 4, 0.f);
      key_p[r] = -1;
    }
  });
  return {colour, key};
}

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) { m.impl("voxel_shading", &voxel_shading_cpu); }

}  // namespace opus
