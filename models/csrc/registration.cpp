// Schemas of all native operations. Kernels register beside their code, fake (shape) functions and
// gradients in models/ops/*.py.
#include <torch/library.h>

TORCH_LIBRARY(opus, m) {
  m.def("occupancy_masks(Tensor grids, int empty_label) -> Tensor");
  m.def(
      "occupancy_masks_update_(Tensor(a!) masks, Tensor grids, int empty_label, int[3] lower, "
      "int[3] upper) -> ()");
  m.def(
      "ray_cast(Tensor masks, int[3] grid_size, Tensor origins, Tensor directions, "
      "float[3] grid_min, float[3] voxel_size, float max_distance, bool skip_empty) "
      "-> (Tensor voxel, Tensor hit, Tensor t_enter, Tensor t_exit, Tensor face)");
}
