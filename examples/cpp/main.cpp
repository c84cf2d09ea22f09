// Predicts the occupied voxels of a frame with a package of scripts/export_program.py: no Python.
//
//   occupancy MODEL.pt2 OPERATIONS.so FRAME.npz VOXELS.npy [REPEATS]
//
// FRAME.npz: images uint8 [T, N, 3, H, W], occ2img float32 [T*N, 4, 4]; with a LiDAR branch also
// lidar_features, lidar_coords and lidar_sweep (docs/deployment.md).
// VOXELS.npy: float32 [voxels, 5], columns x, y, z, label, score.
#include "npz.h"

#include <ATen/ops/cat.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <chrono>
#include <iostream>

using Tensors = std::vector<at::Tensor>;
using Loader = torch::inductor::AOTIModelPackageLoader;

namespace {

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

// An array of the frame file.
const at::Tensor& array(const std::map<std::string, at::Tensor>& frame, const std::string& name,
                        at::ScalarType type) {
  const auto found = frame.find(name);
  if (found == frame.end()) throw std::runtime_error("the frame file has no array " + name);
  if (found->second.scalar_type() != type)
    throw std::runtime_error("the array " + name + " of the frame file has another type than " +
                             at::toString(type));
  return found->second;
}

// The maps of all frames, one behind the other. A stream keeps those of earlier frames and
// computes only the first.
Tensors features(Loader& image_network, const at::Tensor& images) {
  std::vector<Tensors> levels;
  for (std::int64_t t = 0; t < images.size(0); ++t) {
    const auto start = std::chrono::steady_clock::now();
    Tensors maps = image_network.run({images[t].contiguous()});
    std::cout << "image network, frame " << t << ": " << milliseconds_since(start) << " ms\n";
    levels.resize(maps.size());
    for (std::size_t l = 0; l < maps.size(); ++l) levels[l].push_back(maps[l]);
  }
  Tensors joined;
  for (const Tensors& maps : levels) joined.push_back(at::cat(maps));
  return joined;
}

void predict(int count, char** arguments) {
  const std::string package = arguments[1], operations = arguments[2];
  if (!dlopen(operations.c_str(), RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
  Loader image_network(package, "image"), decoder(package, "decoder");
  const auto frame = npz::read(arguments[3]);
  const c10::InferenceMode no_gradients;
  for (int repeat = count > 5 ? std::stoi(arguments[5]) : 1; repeat > 0; --repeat) {
    Tensors inputs = features(image_network, array(frame, "images", at::kByte));
    inputs.push_back(array(frame, "occ2img", at::kFloat));
    for (const char* name : {"lidar_features", "lidar_coords", "lidar_sweep"})
      if (frame.count(name)) inputs.push_back(frame.at(name));
    const auto start = std::chrono::steady_clock::now();
    const Tensors voxels = decoder.run(inputs);  // coords, labels, scores
    std::cout << "decoder: " << milliseconds_since(start) << " ms, " << voxels[0].size(0)
              << " voxels\n";
    const at::Tensor columns = at::cat({voxels[0].to(at::kFloat),
                                        voxels[1].to(at::kFloat).unsqueeze(1),
                                        voxels[2].unsqueeze(1)}, 1);
    npz::write(arguments[4], columns.contiguous());
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) {
    std::cerr << "usage: occupancy MODEL.pt2 OPERATIONS.so FRAME.npz VOXELS.npy [REPEATS]\n";
    return 2;
  }
  try {
    predict(count, arguments);
  } catch (const std::exception& error) {
    std::cerr << "occupancy: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
