// Decoding of a JPEG file to a crop of the resized image.
//
// Minimum coded units (MCUs) are decoded row by row into a strip, whose rows are resized along x at
// once. The rows of the output are computed from those. Blocks that the crop does not depend on are
// parsed, as the positions of blocks are not stored, but not transformed.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/avx2.h"
#include "jpeg_crop/header.h"
#include "jpeg_crop/huffman.h"
#include "jpeg_crop/inverse_dct.h"
#include "jpeg_crop/inverse_dct_avx2.h"
#include "jpeg_crop/planes.h"
#include "jpeg_crop/planes_avx2.h"
#include "resize_crop/resize_crop.h"
#include "resize_crop/resize_crop_avx2.h"

namespace opus {
namespace jpeg_crop {

using resize_crop::Method;

struct Request {
  const uint8_t* data;
  size_t size;
  int reduction;       // 1, 2, 4 or 8
  int64_t full[2];     // height and width of the whole image
  int64_t top;         // rows of it that the file lacks at its top
  int64_t resized[2];  // height and width of the resized image
  int64_t crop[2];     // first row and column that are kept of it
  bool flip;
  Method method;
  uint8_t* out;
  int64_t height, width, stride;
};

// An axis of a plane, with the parameters it was computed from.
struct CachedAxis {
  std::array<int64_t, 8> key{-1};
  Axis axis;
  ColumnTable table;

  void update(const Request& request, int dimension, int64_t pitch) {
    const bool is_row = dimension == 1;
    const int64_t outputs = is_row ? request.width : request.height;
    const bool reversed = is_row && request.flip;
    const std::array<int64_t, 8> wanted = {
        request.full[dimension], pitch, request.resized[dimension], request.crop[dimension],
        outputs, reversed, is_row, static_cast<int64_t>(request.method)};
    if (wanted == key) return;
    key = wanted;
    const double full = static_cast<double>(request.full[dimension]);
    const double scale = full / static_cast<double>(request.resized[dimension] * pitch);
    axis = resize_crop::make_axis(scale, (request.full[dimension] + pitch - 1) / pitch,
                                  request.resized[dimension], request.crop[dimension], outputs,
                                  reversed, resize_crop::kPair, request.method);
    if (is_row) table.make(axis, outputs);
  }
};

// One component of the image.
struct Plane {
  CachedAxis rows, columns;
  int points_y, points_x;  // pixels of a transformed block
  int blocks_y, blocks_x;  // of an MCU
  int64_t offset;          // rows of the whole plane that the file lacks
  int previous;            // first coefficient of the block before
  const HuffmanTable *dc, *ac;
  uint16_t steps[kCoefficients];     // quantisation steps, in zigzag order
  uint8_t places[kCoefficients];     // indices of coefficients in a block, kUnused if not needed
  int last;                          // index of the last needed one
  std::vector<uint8_t> strip, lines;
  int64_t strip_stride, line_stride;

  int height() const { return points_y * blocks_y; }
  int width() const { return points_x * blocks_x; }
};

// Blocks have extra space at the end for coefficients that are not needed.
constexpr int kUnused = 72;
constexpr int kBlockRoom = 96;

class Decoder {
 public:
  // Writes the crop; returns false for files and requests other than the common kind.
  bool run(const Request& request) {
    request_ = &request;
    if (!read_header(request.data, request.size, header_)) return false;
    if (header_.height != request.full[0] - request.top || header_.width != request.full[1]) {
      return false;
    }
    if (!prepare()) return false;
    if (!decode()) return false;
    for (int64_t row = 0; row < request.height; ++row) write_row(row);
    return true;
  }

 private:
  bool prepare() {
    const Request& request = *request_;
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t kept = axis == 0 ? request.height : request.width;
      if (request.crop[axis] < 0 || request.crop[axis] + kept > request.resized[axis]) return false;
    }
    row_begin_ = column_begin_ = kMaxSide;
    row_end_ = column_end_ = 0;
    for (int c = 0; c < kComponents; ++c) {
      if (!prepare_plane(planes_[c], header_.components[c])) return false;
    }
    mcus_per_row_ = (header_.width + header_.mcu_width() - 1) / header_.mcu_width();
    const int mcu_rows = (header_.height + header_.mcu_height() - 1) / header_.mcu_height();
    if (row_end_ > mcu_rows || column_end_ > mcus_per_row_) return false;
    for (Plane& plane : planes_) {
      plane.strip_stride = (column_end_ - column_begin_) * plane.width() + kSlack;
      plane.strip.resize(plane.height() * plane.strip_stride + kSlack);
      plane.line_stride = (request.width + 31) / 32 * 32 + kSlack;
      const int64_t lines = (row_end_ - row_begin_) * plane.height() + plane.rows.axis.taps + 1;
      plane.lines.resize(lines * plane.line_stride);
    }
    mixed_.resize(kComponents * planes_[0].line_stride);
    return true;
  }

  bool prepare_plane(Plane& plane, const Component& component) {
    const int most_y = header_.components[0].v, most_x = header_.components[0].h;
    plane.blocks_y = component.v;
    plane.blocks_x = component.h;
    // Chroma of half the size is transformed to twice the points instead of being enlarged.
    const int points = kBlock / request_->reduction;
    plane.points_y = std::min(kBlock, points * most_y / component.v);
    plane.points_x = std::min(kBlock, points * most_x / component.h);
    const int64_t pitch_y = kBlock * most_y / plane.height();
    const int64_t pitch_x = kBlock * most_x / plane.width();
    if (request_->top % pitch_y != 0) return false;
    plane.offset = request_->top / pitch_y;
    plane.rows.update(*request_, 0, pitch_y);
    plane.columns.update(*request_, 1, pitch_x);
    const Axis &rows = plane.rows.axis, &columns = plane.columns.axis;
    if (rows.begin >= rows.end || columns.begin >= columns.end) return false;
    if (rows.begin < plane.offset) return false;
    row_begin_ = std::min(row_begin_, (rows.begin - plane.offset) / plane.height());
    row_end_ = std::max(row_end_, (rows.end - plane.offset - 1) / plane.height() + 1);
    column_begin_ = std::min(column_begin_, columns.begin / plane.width());
    column_end_ = std::max(column_end_, (columns.end - 1) / plane.width() + 1);
    HuffmanTable &dc = tables_[0][component.dc], &ac = tables_[1][component.ac];
    if (!dc.make(header_.dc[component.dc], true) || !ac.make(header_.ac[component.ac], false)) {
      return false;
    }
    plane.dc = &dc;
    plane.ac = &ac;
    find_places(plane);
    std::memcpy(plane.steps, header_.quantisation[component.quantisation], sizeof(plane.steps));
    return true;
  }

  // The zigzag goes through the diagonals, every other one upwards.
  static void find_places(Plane& plane) {
    int row = 0, column = 0;
    for (int k = 0; k < kCoefficients; ++k) {
      const bool is_needed = row < plane.points_y && column < plane.points_x;
      plane.places[k] = static_cast<uint8_t>(is_needed ? row * kStride + column : kUnused);
      if (is_needed) plane.last = k;
      const bool is_upwards = (row + column) % 2 == 0;
      int &ahead = is_upwards ? column : row, &back = is_upwards ? row : column;
      if (ahead == kBlock - 1) {
        ++back;
      } else {
        ++ahead;
        if (back > 0) --back;
      }
    }
  }

  bool decode() {
    const int64_t needed = row_end_ * mcus_per_row_;
    const int64_t interval = header_.restart_interval > 0 ? header_.restart_interval : needed;
    size_t at = header_.scan;
    for (int64_t begin = 0; begin < needed; begin += interval) {
      const int64_t end = std::min(needed, begin + interval);
      size_t length = 0;
      const size_t marker = unstuff(request_->data, at, request_->size, bytes_, length);
      if (end > row_begin_ * mcus_per_row_ && !decode_mcus(begin, end, length)) return false;
      if (end == needed) break;
      // Restart markers count to eight.
      const int number = static_cast<int>(begin / interval % 8);
      if (marker + 2 > request_->size || request_->data[marker + 1] != 0xD0 + number) return false;
      at = marker + 2;
    }
    return true;
  }

  bool decode_mcus(int64_t begin, int64_t end, size_t length) {
    BitReader reader(bytes_.data());
    for (Plane& plane : planes_) plane.previous = 0;
    for (int64_t mcu = begin; mcu < end; ++mcu) {
      const int64_t row = mcu / mcus_per_row_, column = mcu % mcus_per_row_;
      const bool is_needed = row >= row_begin_ && column >= column_begin_ && column < column_end_;
      for (Plane& plane : planes_) {
        const bool is_read = is_needed ? decode_blocks(reader, plane, column - column_begin_)
                                       : skip_blocks(reader, plane);
        if (!is_read) return false;
      }
      if (reader.position() > bytes_.data() + length) return false;
      if (row >= row_begin_ && column + 1 == mcus_per_row_) {
        for (Plane& plane : planes_) resize_strip(plane, row - row_begin_);
      }
    }
    return true;
  }

  static bool read_first(BitReader& reader, Plane& plane) {
    reader.refill();
    const Symbol symbol = plane.dc->read(reader);
    plane.previous += symbol.value;
    return symbol.step == 0;
  }

  static bool skip_blocks(BitReader& reader, Plane& plane) {
    for (int block = 0; block < plane.blocks_y * plane.blocks_x; ++block) {
      if (!read_first(reader, plane) || !skip_rest(reader, *plane.ac, 0)) return false;
    }
    return true;
  }

  // Returns the index of the last coefficient, -1 if the data are damaged.
  static int read_block(BitReader& from, Plane& plane, int16_t* block) {
    if (!read_first(from, plane)) return -1;
    block[0] = static_cast<int16_t>(plane.previous * plane.steps[0]);
    BitReader reader = from;
    const HuffmanTable& table = *plane.ac;
    int k = 0, most = 0;
    while (k < plane.last) {
      reader.refill();
      // The bits suffice for two symbols of any length.
      for (int i = 0; i < 2 && k < plane.last; ++i) {
        const Symbol symbol = table.read(reader);
        k += symbol.step;
        if (k >= kCoefficients) break;
        block[plane.places[k]] = static_cast<int16_t>(symbol.value * plane.steps[k]);
        most = k;
      }
    }
    from = reader;
    if (k >= kCoefficients) return k >= kEndOfBlock ? most : -1;
    return skip_rest(from, table, k) ? most : -1;
  }

  bool decode_blocks(BitReader& reader, Plane& plane, int64_t mcu) {
    uint8_t* to = plane.strip.data() + mcu * plane.width();
    const bool is_paired = plane.points_y == 4 && plane.points_x == 4;
    for (int y = 0; y < plane.blocks_y; ++y) {
      uint8_t* row = to + y * plane.points_y * plane.strip_stride;
      const bool is_read = is_paired ? decode_pair(reader, plane, row)
                                     : decode_row(reader, plane, row);
      if (!is_read) return false;
    }
    return true;
  }

  // One or two blocks of 4 x 4 pixels, which share the rows of one block of memory.
  static bool decode_pair(BitReader& reader, Plane& plane, uint8_t* to) {
    alignas(32) int16_t blocks[kBlockRoom];
    std::memset(blocks, 0, 4 * kStride * sizeof(int16_t));
    for (int x = 0; x < plane.blocks_x; ++x) {
      if (read_block(reader, plane, blocks + 4 * x) < 0) return false;
    }
#if defined(OPUS_HAS_AVX2_KERNELS)
    if (use_avx2()) {
      avx2::inverse_dct_4x4_twice(blocks, to, plane.strip_stride);
      return true;
    }
#endif
    for (int x = 0; x < plane.blocks_x; ++x) {
      inverse_dct(blocks + 4 * x, 4, 4, to + 4 * x, plane.strip_stride);
    }
    return true;
  }

  static bool decode_row(BitReader& reader, Plane& plane, uint8_t* to) {
    alignas(32) int16_t block[kBlockRoom];
    for (int x = 0; x < plane.blocks_x; ++x, to += plane.points_x) {
      std::memset(block, 0, kCoefficients * sizeof(int16_t));
      const int most = read_block(reader, plane, block);
      if (most < 0) return false;
      transform(block, most, plane, to);
    }
    return true;
  }

  static void transform(const int16_t* block, int most, const Plane& plane, uint8_t* to) {
    if (most == 0) {
      const uint8_t pixel = flat_pixel(block[0]);
      for (int y = 0; y < plane.points_y; ++y) {
        std::memset(to + y * plane.strip_stride, pixel, plane.points_x);
      }
      return;
    }
#if defined(OPUS_HAS_AVX2_KERNELS)
    if (use_avx2() && plane.points_y == 8 && plane.points_x == 8) {
      // The first ten coefficients lie in the first four rows and columns.
      if (most < 10) return avx2::inverse_dct_8x8<true>(block, to, plane.strip_stride);
      return avx2::inverse_dct_8x8<false>(block, to, plane.strip_stride);
    }
#endif
    inverse_dct(block, plane.points_y, plane.points_x, to, plane.strip_stride);
  }

  // Resizes the rows of a strip along x.
  void resize_strip(Plane& plane, int64_t mcu_row) {
    const int64_t first = mcu_row * plane.height(), skipped = column_begin_ * plane.width();
    const uint8_t* from = plane.strip.data();
    uint8_t* to = plane.lines.data() + first * plane.line_stride;
    int row = 0;
#if defined(OPUS_HAS_AVX2_KERNELS)
    if (use_avx2() && plane.columns.table.fits) {
      for (; row + avx2::kRows <= plane.height(); row += avx2::kRows) {
        const uint8_t* rows[avx2::kRows];
        uint8_t* lines[avx2::kRows];
        for (int r = 0; r < avx2::kRows; ++r) {
          rows[r] = from + (row + r) * plane.strip_stride;
          lines[r] = to + (row + r) * plane.line_stride;
        }
        avx2::resize_plane_rows(plane.columns.table, plane.columns.axis.shift, skipped, rows,
                                lines);
      }
    }
#endif
    for (; row < plane.height(); ++row) {
      resize_plane_row(plane.columns.axis, skipped, from + row * plane.strip_stride,
                       request_->width, to + row * plane.line_stride);
    }
  }

  void write_row(int64_t output) {
    const int64_t width = request_->width;
    uint8_t* mixed[kComponents];
    for (int c = 0; c < kComponents; ++c) {
      const Plane& plane = planes_[c];
      mixed[c] = mixed_.data() + c * plane.line_stride;
      const Axis& axis = plane.rows.axis;
      const int64_t first = axis.first[output] - plane.offset - row_begin_ * plane.height();
      const uint8_t* from = plane.lines.data() + first * plane.line_stride;
#if defined(OPUS_HAS_AVX2_KERNELS)
      if (use_avx2()) {
        resize_crop::avx2::mix_rows<false>(axis, output, from, plane.line_stride, width, mixed[c]);
        continue;
      }
#endif
      resize_crop::mix_rows(axis, output, from, plane.line_stride, width, mixed[c]);
    }
    uint8_t* to = request_->out + output * request_->stride;
    int64_t done = 0;
#if defined(OPUS_HAS_AVX2_KERNELS)
    if (use_avx2()) done = avx2::convert_row(mixed[0], mixed[1], mixed[2], width, to);
#endif
    convert_row(mixed[0], mixed[1], mixed[2], done, width, to);
  }

  const Request* request_ = nullptr;
  Header header_;
  HuffmanTable tables_[2][kTables];
  Plane planes_[kComponents];
  std::vector<uint8_t> bytes_, mixed_;
  // MCUs that the crop depends on.
  int64_t row_begin_ = 0, row_end_ = 0, column_begin_ = 0, column_end_ = 0;
  int64_t mcus_per_row_ = 0;
};

}  // namespace jpeg_crop
}  // namespace opus
