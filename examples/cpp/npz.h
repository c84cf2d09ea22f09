// Reads the arrays of an uncompressed .npz file and writes a .npy file: what the example needs.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace npz {

inline std::uint32_t number(const std::string& bytes, std::size_t at, int size) {
  std::uint32_t value = 0;
  if (at + size > bytes.size()) throw std::runtime_error("the file ends too early");
  std::memcpy(&value, bytes.data() + at, size);
  return value;
}

// An array of a .npy file, which starts at `at`: a header in Python's notation, then the values.
inline at::Tensor array(const std::string& bytes, std::size_t at) {
  const bool is_first_version = number(bytes, at + 6, 1) == 1;
  const std::size_t start = at + (is_first_version ? 10 : 12);
  const std::size_t length = number(bytes, at + 8, is_first_version ? 2 : 4);
  const std::string header = bytes.substr(start, length);
  at::ScalarType type;
  if (header.find("'|u1'") != header.npos) type = at::kByte;
  else if (header.find("'<f4'") != header.npos) type = at::kFloat;
  else if (header.find("'<i8'") != header.npos) type = at::kLong;
  else throw std::runtime_error("arrays must be uint8, float32 or int64: " + header);
  if (header.find("'fortran_order': False") == header.npos)
    throw std::runtime_error("arrays must be in C order");
  std::vector<std::int64_t> shape;
  const std::size_t open = header.find('(');
  const std::string sizes = header.substr(open + 1, header.find(')') - open - 1);
  std::int64_t total = static_cast<std::int64_t>(at::elementSize(type));
  for (std::size_t i = 0; i < sizes.size();) {
    std::size_t digits = 0;
    shape.push_back(std::stoll(sizes.substr(i), &digits));
    total *= shape.back();
    i = sizes.find_first_of("0123456789", i + digits);
  }
  if (start + length + total > bytes.size()) throw std::runtime_error("the file ends too early");
  void* values = const_cast<char*>(bytes.data() + start + length);
  return at::from_blob(values, shape, at::TensorOptions().dtype(type)).clone();
}

// All arrays of an archive, as numpy.savez writes it, by name.
inline std::map<std::string, at::Tensor> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  const std::size_t end = bytes.rfind("PK\x05\x06");
  if (end == bytes.npos) throw std::runtime_error(path + " is no .npz file");
  std::map<std::string, at::Tensor> arrays;
  std::size_t entry = number(bytes, end + 16, 4);  // of the central directory
  for (std::uint32_t left = number(bytes, end + 10, 2); left > 0; --left) {
    if (number(bytes, entry + 10, 2) != 0)
      throw std::runtime_error(path + " is compressed: write it with numpy.savez");
    const std::uint32_t length = number(bytes, entry + 28, 2);
    const std::string name = bytes.substr(entry + 46, length);
    const std::size_t local = number(bytes, entry + 42, 4);
    const std::size_t data = local + 30 + number(bytes, local + 26, 2) + number(bytes, local + 28, 2);
    arrays[name.substr(0, name.rfind(".npy"))] = array(bytes, data);
    entry += 46 + length + number(bytes, entry + 30, 2) + number(bytes, entry + 32, 2);
  }
  return arrays;
}

// A float32 matrix as a .npy file.
inline void write(const std::string& path, const at::Tensor& matrix) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" +
                       std::to_string(matrix.size(0)) + ", " + std::to_string(matrix.size(1)) +
                       "), }";
  header.resize((header.size() + 11 + 63) / 64 * 64 - 11, ' ');
  header += '\n';
  const std::uint16_t length = static_cast<std::uint16_t>(header.size());
  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8);
  file.write(reinterpret_cast<const char*>(&length), 2);
  file << header;
  file.write(static_cast<const char*>(matrix.const_data_ptr()), matrix.nbytes());
  if (!file) throw std::runtime_error("cannot write " + path);
}

}  // namespace npz
