// Scene, camera and output of the host's voxel shading.
#pragma once

#include <cstdint>

#include "ray_cast/ray_cast.h"

namespace opus {
namespace voxel_shading {

// Dimensions: X, Y, Z voxels; H, W rays; C classes.
struct Scene {
  ray_cast::Masks masks;
  const uint8_t* labels;   // [X, Y, Z]
  uint8_t empty_label;
  const float* light;      // [Z + 2, X + 2, Y + 2, 2]: sunlight and ambient light; 0 in voxels
  int64_t stride[3];       // strides of `light` in x, y, z
  const float* albedo;     // [C, 3]
  int64_t num_classes;
  float brightness[6][2];  // factors of a face: sunlight, ambient light
  float occlusion;         // darkness of creases between two faces
  float grid_min[3], voxel_size[3];
  double grid_min_m[3], voxel_size_m[3];
};

struct View {
  float position[3];
  float rotation[3][3];  // rows: right, down, forward
  float focal_px;
  float edge_strength, edge_width_px, edge_scale;
  float fog_strength, fog_start_m, fog_length_m;
};

struct Picture {
  const float* directions;  // [H, W, 3], in the camera's axes
  const bool* wanted;       // [H, W]; null: all
  const float* background;  // [H, 3]
  int64_t height, width;
  float* colour;    // [H, W, 4]
  int32_t* key;     // [H, W]
  float* distance;  // [H, W]
};

// Side of a tile of pixels. A small tile makes a narrow beam.
constexpr int kTile = 5;

}  // namespace voxel_shading
}  // namespace opus
