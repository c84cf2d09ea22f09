// Argument checks shared by several operations.
#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <cstddef>

namespace opus {

// Checks the length of a list: a schema such as float[3] accepts lists of any length.
template <typename T>
void check_length(c10::ArrayRef<T> list, size_t expected, const char* name) {
  TORCH_CHECK_VALUE(list.size() == expected, name, " must have ", expected, " entries, got ",
                    list.size());
}

}  // namespace opus
