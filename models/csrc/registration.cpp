// Schemas of all native operations. Kernels are registered in their source files, fake (shape)
// functions and gradients in models/ops/*.py. Data-dependent sizes in exported models are SymInt,
// because they have no fixed value in a trace.
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

  // out_coords is empty for a submanifold map (equal to the input's); pairs is empty if equal to
  // pairs_by_in. Results of an operation must not share memory.
  m.def(
      "kernel_map(Tensor coords, int[3] spatial_shape, int[3] kernel_size, int[3] stride, "
      "int[3] padding, bool subm) "
      "-> (Tensor out_coords, Tensor pairs, Tensor pairs_by_in, Tensor starts)");
  m.def(
      "sparse_conv(Tensor features, Tensor weight, Tensor? bias, Tensor pairs, "
      "Tensor pairs_by_in, Tensor starts, SymInt num_out) -> Tensor");
  m.def(
      "sparse_conv_backward(Tensor grad, Tensor features, Tensor weight, Tensor pairs, "
      "Tensor pairs_by_in, Tensor starts, bool need_features, bool need_weight) "
      "-> (Tensor, Tensor)");

  m.def(
      "multi_view_sampling(Tensor[] feats, Tensor points, Tensor occ2img, Tensor level_weights, "
      "int img_h, int img_w, int num_cams, bool permuted) -> Tensor");
  m.def(
      "multi_view_sampling_backward(Tensor grad, Tensor[] feats, Tensor points, Tensor occ2img, "
      "Tensor level_weights, int img_h, int img_w, int num_cams, bool permuted, bool need_feats, "
      "bool need_points) -> (Tensor[], Tensor, Tensor)");
  // Adds the gradients of the maps to `sums`, which are channels-last and have the points' dtype.
  m.def(
      "multi_view_sampling_backward_into(Tensor grad, Tensor[] feats, Tensor points, "
      "Tensor occ2img, Tensor level_weights, int img_h, int img_w, int num_cams, bool permuted, "
      "bool need_points, Tensor(a!)[] sums) -> (Tensor, Tensor)");

  // log_sum [B, H, Q] of the softmax is saved for the backward pass.
  m.def(
      "distance_attention(Tensor query, Tensor key, Tensor value, Tensor tau, Tensor centres, "
      "float dropout_p, Tensor? seeds, Tensor? order) -> (Tensor out, Tensor log_sum)");
  m.def(
      "distance_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, "
      "Tensor tau, Tensor centres, Tensor out, Tensor log_sum, float dropout_p, Tensor? seeds, "
      "Tensor? order) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("attention_order(Tensor centres) -> Tensor");

  m.def("adaptive_mixing(Tensor sampled, Tensor parameters, int out_points) -> Tensor");
  m.def(
      "adaptive_mixing_backward(Tensor grad, Tensor sampled, Tensor parameters, int out_points) "
      "-> (Tensor, Tensor)");

  // Trees are bytes in the layout of nearest_neighbor.h, stored one after another.
  m.def("point_tree(Tensor points, int[] lengths, bool along_curve) -> Tensor");
  m.def(
      "nearest_in_tree(Tensor query, int[] query_lengths, Tensor tree, int[] lengths) "
      "-> (Tensor index, Tensor squared)");
  m.def(
      "nearest_between_trees(Tensor query, int[] query_lengths, Tensor tree, int[] lengths, "
      "ScalarType dtype) -> (Tensor index, Tensor squared)");
  m.def("nearest_by_brute_force(Tensor query, Tensor reference) -> (Tensor index, Tensor squared)");

  m.def("chamfer_terms(Tensor query, Tensor reference, Tensor index, float beta) -> Tensor");
  m.def(
      "chamfer_terms_backward(Tensor grad, Tensor query, Tensor reference, Tensor index, "
      "float beta, bool need_query, bool need_reference) -> (Tensor, Tensor)");

  m.def("farthest_point_sampling(Tensor points, SymInt[] lengths, int num_samples) -> Tensor");

  m.def(
      "label_rays(Tensor grids, Tensor origins, Tensor sample_of_origin, Tensor directions, "
      "float[3] grid_min, float voxel_size, int empty_label) -> (Tensor label, Tensor depth)");
  // Pass gt or its rays, not both; rays are returned if they were cast.
  m.def(
      "ray_iou_counts(Tensor pred, Tensor? gt, Tensor origins, Tensor sample_of_origin, "
      "Tensor directions, float[3] grid_min, float voxel_size, int empty_label, int num_classes, "
      "float[] thresholds, Tensor? gt_label, Tensor? gt_depth) "
      "-> (Tensor counts, Tensor gt_label, Tensor gt_depth)");

  m.def(
      "sigmoid_focal_loss(Tensor logits, Tensor labels, Tensor class_weights, "
      "Tensor? row_weights, float gamma, float alpha) -> Tensor");
  m.def(
      "sigmoid_focal_loss_backward(Tensor grad, Tensor logits, Tensor labels, "
      "Tensor class_weights, Tensor? row_weights, float gamma, float alpha) -> Tensor");

  // `ends` is on the CPU without a capacity, else on the keys' device.
  m.def(
      "voxel_sets(Tensor keys, int num_grids, int[3] shape, int[] kernels, int[] strides, "
      "int[] paddings, int[]? capacity) "
      "-> (Tensor[] members, Tensor[] words, Tensor[] up_to, Tensor ends, Tensor place)");
  m.def(
      "voxel_neighbors(Tensor rows, int[3] shape, int[3] kernel_size, int[3] stride, "
      "int[3] padding, bool of_inputs, int num_grids, Tensor words, Tensor up_to, int first, "
      "int size) -> Tensor");

  m.def("unique_voxels(Tensor keys, int num_keys) -> (Tensor unique, Tensor inverse)");

  m.def(
      "voxel_max(Tensor features, Tensor voxel_index, SymInt num_voxels, bool with_winner) "
      "-> (Tensor maximum, Tensor winner)");
  m.def("voxel_max_backward(Tensor grad, Tensor winner, int num_points) -> Tensor");

  // out [h, w, 3] of a JPEG file; false if the file is not a baseline YCbCr file.
  m.def(
      "jpeg_crop(Tensor(a!) out, Tensor data, int reduction, int[2] full, int top, "
      "int[2] resized, int[2] crop, bool flip, int method) -> bool");

  // The image is empty if libjpeg-turbo is missing or the file is not supported.
  m.def(
      "jpeg_window(Tensor data, int reduction, int[2] rows, int[2] columns) "
      "-> (Tensor image, int top, int left)");
  m.def("jpeg_window_available() -> bool");

  // out is [h, w, 3]; image [H, W, 3] is the part at `offset` of an image of size `full`.
  m.def(
      "resize_crop(Tensor(a!) out, Tensor image, int[2] full, int[2] offset, int[2] resized, "
      "int[2] crop, bool flip, int method) -> ()");

  m.def("voxel_light(Tensor drawn, Tensor opaque, float[2] sun_slope) -> Tensor");
  m.def(
      "voxel_shading(Tensor masks, Tensor labels, int empty_label, Tensor light, Tensor albedo, "
      "Tensor directions, Tensor? wanted, Tensor background, float[12] brightness, "
      "float occlusion, float[6] grid, float[13] camera, float[3] edges, float[3] fog) "
      "-> (Tensor colour, Tensor key, Tensor distance)");

  // weight [36, C, K] as models/ops/winograd_conv.py transforms it; its gradient likewise.
  m.def("winograd_conv(Tensor input, Tensor weight, Tensor? bias) -> Tensor");
  m.def("winograd_weight_grad(Tensor input, Tensor grad) -> Tensor");
}
