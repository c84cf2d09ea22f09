// Contents of the segments before the scan of a baseline JPEG file (ITU-T T.81).
//
// Only the common case is read: 8 bits, three components YCbCr in one scan, chroma at the size of
// luma or at half of it. `read_header` returns false for all others, which a library decodes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace opus {
namespace jpeg_crop {

constexpr int kBlock = 8;
constexpr int kCoefficients = kBlock * kBlock;
constexpr int kComponents = 3;
constexpr int kTables = 4;
constexpr int kMaxSide = 1 << 15;

// A Huffman table as stored: number of codes by length, and the symbols in the order of codes.
struct HuffmanSpec {
  uint8_t counts[16];
  uint8_t symbols[256];
  bool is_there;
};

struct Component {
  int id;
  int h, v;  // blocks of a minimum coded unit (MCU) along x and y
  int quantisation, dc, ac;
};

struct Header {
  int height, width;
  Component components[kComponents];
  uint16_t quantisation[kTables][kCoefficients];  // in zigzag order
  bool has_quantisation[kTables];
  HuffmanSpec dc[kTables], ac[kTables];
  int restart_interval;  // MCUs between restart markers, 0: no markers
  size_t scan;           // first byte of the entropy-coded data

  int mcu_height() const { return kBlock * components[0].v; }
  int mcu_width() const { return kBlock * components[0].h; }
};

// A segment's content, read from front to back; `is_bad` after reading past its end.
class Segment {
 public:
  Segment(const uint8_t* from, size_t size) : at_(from), left_(size) {}

  size_t left() const { return left_; }
  bool is_bad() const { return is_bad_; }

  int byte() {
    if (left_ < 1) {
      is_bad_ = true;
      return 0;
    }
    --left_;
    return *at_++;
  }
  int word() {
    const int high = byte();
    return high << 8 | byte();
  }

 private:
  const uint8_t* at_;
  size_t left_;
  bool is_bad_ = false;
};

inline bool read_quantisation(Segment segment, Header& header) {
  while (segment.left() > 0) {
    const int first = segment.byte();
    const int table = first & 15;
    if (first >> 4 != 0 || table >= kTables) return false;
    for (uint16_t& step : header.quantisation[table]) step = static_cast<uint16_t>(segment.byte());
    header.has_quantisation[table] = true;
  }
  return !segment.is_bad();
}

inline bool read_huffman(Segment segment, Header& header) {
  while (segment.left() > 0) {
    const int first = segment.byte();
    if (first >> 4 > 1 || (first & 15) >= kTables) return false;
    HuffmanSpec& spec = (first >> 4 == 0 ? header.dc : header.ac)[first & 15];
    std::memset(&spec, 0, sizeof(spec));
    int number = 0;
    for (uint8_t& count : spec.counts) number += count = static_cast<uint8_t>(segment.byte());
    if (number > 256) return false;
    for (int i = 0; i < number; ++i) spec.symbols[i] = static_cast<uint8_t>(segment.byte());
    spec.is_there = true;
  }
  return !segment.is_bad();
}

inline bool read_frame(Segment segment, Header& header) {
  if (segment.byte() != 8) return false;  // bits of a sample
  header.height = segment.word();
  header.width = segment.word();
  if (segment.byte() != kComponents) return false;
  for (Component& component : header.components) {
    component.id = segment.byte();
    const int sampling = segment.byte();
    component.h = sampling >> 4;
    component.v = sampling & 15;
    component.quantisation = segment.byte();
    if (component.quantisation >= kTables) return false;
  }
  const Component *luma = header.components, *blue = luma + 1, *red = luma + 2;
  const bool is_common = luma->h >= 1 && luma->h <= 2 && luma->v >= 1 && luma->v <= 2 &&
                         blue->h == 1 && blue->v == 1 && red->h == 1 && red->v == 1;
  const bool is_sized = header.height > 0 && header.width > 0 && header.height <= kMaxSide &&
                        header.width <= kMaxSide;
  return is_common && is_sized && !segment.is_bad();
}

inline bool read_scan(Segment segment, Header& header) {
  if (segment.byte() != kComponents) return false;
  for (Component& component : header.components) {
    if (segment.byte() != component.id) return false;
    const int tables = segment.byte();
    component.dc = tables >> 4;
    component.ac = tables & 15;
    if (component.dc >= kTables || component.ac >= kTables) return false;
    if (!header.dc[component.dc].is_there || !header.ac[component.ac].is_there) return false;
    if (!header.has_quantisation[component.quantisation]) return false;
  }
  // All coefficients with all bits.
  return segment.byte() == 0 && segment.byte() == 63 && segment.byte() == 0 && !segment.is_bad();
}

// Reads up to the scan; returns false if the file is damaged or not of the common kind.
inline bool read_header(const uint8_t* data, size_t size, Header& header) {
  std::memset(&header, 0, sizeof(header));
  if (size < 4 || data[0] != 0xFF || data[1] != 0xD8) return false;
  bool has_frame = false, is_jfif = false;
  int transform = -1;  // colour transform from Adobe's segment
  for (size_t at = 2; at + 4 <= size;) {
    if (data[at] != 0xFF) return false;
    const int marker = data[at + 1];
    if (marker == 0xFF) {  // fill bytes may precede a marker
      ++at;
      continue;
    }
    const size_t length = static_cast<size_t>(data[at + 2]) << 8 | data[at + 3];
    if (length < 2 || length > size - at - 2) return false;
    const uint8_t* content = data + at + 4;
    const Segment segment(content, length - 2);
    at += 2 + length;
    bool is_read = true;
    switch (marker) {
      case 0xDB: is_read = read_quantisation(segment, header); break;
      case 0xC4: is_read = read_huffman(segment, header); break;
      case 0xC0:
        is_read = !has_frame && read_frame(segment, header);
        has_frame = true;
        break;
      case 0xDD: {
        Segment interval = segment;
        header.restart_interval = interval.word();
        is_read = !interval.is_bad();
        break;
      }
      case 0xE0:
        is_jfif = is_jfif || (length >= 7 && std::memcmp(content, "JFIF", 5) == 0);
        break;
      case 0xEE:
        if (length >= 14 && std::memcmp(content, "Adobe", 5) == 0) transform = content[11];
        break;
      case 0xDA: {
        header.scan = at;
        const Component* c = header.components;
        const bool has_usual_ids = c[0].id == 1 && c[1].id == 2 && c[2].id == 3;
        if (!is_jfif && transform != 1 && (transform == 0 || !has_usual_ids)) return false;
        return has_frame && read_scan(segment, header);
      }
      default:
        // Comments and application data.
        if (marker != 0xFE && (marker < 0xE0 || marker > 0xEF)) return false;
    }
    if (!is_read) return false;
  }
  return false;
}

}  // namespace jpeg_crop
}  // namespace opus
