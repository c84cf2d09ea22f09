// Decodes a window of a JPEG file with the machine's libjpeg-turbo. Rows above and below it and
// columns to its left and right are not transformed. The build needs libjpeg's header. The library
// is opened at the first use, so that the extension loads on machines without it.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <tuple>

#include "common/check.h"

#if defined(__linux__) && __has_include(<jpeglib.h>)
#include <jpeglib.h>
#endif
#if defined(LIBJPEG_TURBO_VERSION_NUMBER) && defined(JCS_EXTENSIONS)
#if LIBJPEG_TURBO_VERSION_NUMBER >= 2000000
#define OPUS_HAS_JPEG_WINDOW
#include <dlfcn.h>
#endif
#endif

namespace opus {
namespace {

// Image, its first row and its first column; an empty image if the file cannot be decoded here.
using Window = std::tuple<at::Tensor, int64_t, int64_t>;

Window nothing(const at::Tensor& data) {
  return {at::empty({0, 0, 3}, data.options()), 0, 0};
}

#if defined(OPUS_HAS_JPEG_WINDOW)

// Columns next to the window that are also decoded: chroma at the edge is interpolated from them.
constexpr int64_t kMargin = 16;

struct Library {
  decltype(&jpeg_std_error) std_error;
  decltype(&jpeg_CreateDecompress) create;
  decltype(&jpeg_mem_src) mem_src;
  decltype(&jpeg_read_header) read_header;
  decltype(&jpeg_start_decompress) start;
  decltype(&jpeg_crop_scanline) crop;
  decltype(&jpeg_skip_scanlines) skip;
  decltype(&jpeg_read_scanlines) read;
  decltype(&jpeg_destroy_decompress) destroy;
  bool is_there;
};

Library open_library() {
  Library library{};
  // The number is the ABI version of the header.
  void* handle = dlopen(JPEG_LIB_VERSION >= 80 ? "libjpeg.so.8" : "libjpeg.so.62",
                        RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return library;
  bool is_whole = true;
  const auto find = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    is_whole = is_whole && function != nullptr;
  };
  find("jpeg_std_error", library.std_error);
  find("jpeg_CreateDecompress", library.create);
  find("jpeg_mem_src", library.mem_src);
  find("jpeg_read_header", library.read_header);
  find("jpeg_start_decompress", library.start);
  find("jpeg_crop_scanline", library.crop);
  find("jpeg_skip_scanlines", library.skip);
  find("jpeg_read_scanlines", library.read);
  find("jpeg_destroy_decompress", library.destroy);
  library.is_there = is_whole;
  return library;
}

const Library& library() {
  static const Library opened = open_library();
  return opened;
}

// Errors of libjpeg leave it by longjmp. Its warnings end the decoding as well.
struct Errors {
  jpeg_error_mgr base;
  std::jmp_buf target;
};

[[noreturn]] void jump(j_common_ptr info) {
  std::longjmp(reinterpret_cast<Errors*>(info->err)->target, 1);
}

void on_message(j_common_ptr info, int level) {
  if (level < 0) jump(info);
}

struct Request {
  const uint8_t* data;
  size_t size;
  int64_t reduction, top, bottom, left, right;
};

// The decoded window: rows [top, bottom) and columns [left, left + width).
struct Place {
  int64_t top, left, height, width;
};

// Code after setjmp must not create objects with destructors.
struct Decoder {
  jpeg_decompress_struct info;
  Errors errors;
  bool is_open;
};

bool begin(Decoder& decoder, const Request& request, Place& place) {
  const Library& jpeg = library();
  jpeg_decompress_struct& info = decoder.info;
  decoder.is_open = false;
  info.err = jpeg.std_error(&decoder.errors.base);
  decoder.errors.base.error_exit = jump;
  decoder.errors.base.emit_message = on_message;
  if (setjmp(decoder.errors.target) != 0) return false;
  jpeg.create(&info, JPEG_LIB_VERSION, sizeof(info));
  decoder.is_open = true;
  jpeg.mem_src(&info, const_cast<unsigned char*>(request.data), request.size);
  if (jpeg.read_header(&info, TRUE) != JPEG_HEADER_OK) return false;
  // Other colour spaces, such as CMYK, are left to other decoders.
  if (info.jpeg_color_space != JCS_YCbCr && info.jpeg_color_space != JCS_GRAYSCALE) return false;
  if (info.progressive_mode) return false;
  info.out_color_space = JCS_EXT_BGR;
  info.scale_num = 1;
  info.scale_denom = static_cast<unsigned int>(request.reduction);
  if (!jpeg.start(&info)) return false;
  const int64_t height = info.output_height, width = info.output_width;
  place.top = std::clamp<int64_t>(request.top, 0, height);
  place.height = std::clamp<int64_t>(request.bottom, 0, height) - place.top;
  const int64_t first = std::clamp<int64_t>(request.left - kMargin, 0, width);
  const int64_t last = std::clamp<int64_t>(request.right + kMargin, 0, width);
  if (place.height <= 0 || last <= first) return false;
  JDIMENSION offset = static_cast<JDIMENSION>(first);
  JDIMENSION number = static_cast<JDIMENSION>(last - first);
  if (first > 0 || last < width) jpeg.crop(&info, &offset, &number);
  place.left = offset;
  place.width = number;
  if (place.top > 0) {
    const JDIMENSION rows = static_cast<JDIMENSION>(place.top);
    if (jpeg.skip(&info, rows) != rows) return false;
  }
  return true;
}

bool read_rows(Decoder& decoder, const Place& place, uint8_t* out) {
  if (setjmp(decoder.errors.target) != 0) return false;
  for (int64_t row = 0; row < place.height;) {
    JSAMPROW to = out + row * place.width * 3;
    const JDIMENSION number = library().read(&decoder.info, &to, 1);
    if (number == 0) return false;
    row += number;
  }
  return true;
}

void close(Decoder& decoder) {
  if (!decoder.is_open) return;
  if (setjmp(decoder.errors.target) != 0) return;
  library().destroy(&decoder.info);
}

#endif

bool is_available() {
#if defined(OPUS_HAS_JPEG_WINDOW)
  return library().is_there;
#else
  return false;
#endif
}

Window jpeg_window_cpu(const at::Tensor& data, int64_t reduction, at::IntArrayRef rows,
                       at::IntArrayRef columns) {
  TORCH_CHECK_VALUE(data.dim() == 1 && data.scalar_type() == at::kByte && data.is_contiguous(),
                    "data must be uint8 [n], got ", data.scalar_type(), " ", data.sizes());
  TORCH_CHECK_VALUE(reduction == 1 || reduction == 2 || reduction == 4 || reduction == 8,
                    "reduction must be 1, 2, 4 or 8, got ", reduction);
  check_length(rows, 2, "rows");
  check_length(columns, 2, "columns");
  for (const int64_t number : {rows[0], rows[1], columns[0], columns[1]}) {
    TORCH_CHECK_VALUE(number >= 0 && number <= 1 << 20, "rows and columns must lie in [0, 2^20], ",
                      "got ", rows, " and ", columns);
  }
  if (!is_available() || data.numel() == 0) return nothing(data);
#if defined(OPUS_HAS_JPEG_WINDOW)
  Decoder decoder;
  Place place{};
  const Request request{data.const_data_ptr<uint8_t>(), static_cast<size_t>(data.numel()),
                        reduction, rows[0], rows[1], columns[0], columns[1]};
  at::Tensor image;
  bool is_done = begin(decoder, request, place);
  if (is_done) {
    image = at::empty({place.height, place.width, 3}, data.options());
    is_done = read_rows(decoder, place, image.mutable_data_ptr<uint8_t>());
  }
  close(decoder);
  if (is_done) return {image, place.top, place.left};
#endif
  return nothing(data);
}

bool jpeg_window_available() { return is_available(); }

}  // namespace

TORCH_LIBRARY_IMPL(opus, CPU, m) { m.impl("jpeg_window", &jpeg_window_cpu); }
TORCH_LIBRARY_IMPL(opus, CompositeExplicitAutograd, m) {
  m.impl("jpeg_window_available", &jpeg_window_available);
}

}  // namespace opus
