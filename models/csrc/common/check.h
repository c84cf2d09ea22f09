// Checks of arguments that several operations share.
#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <cstddef>

namespace opus {

// A schema such as float[3] promises no length: a list of any number of entries comes through.
template <typename T>
void check_length(c10::ArrayRef<T> list, size_t expected, const char* name) {
  TORCH_CHECK_VALUE(list.size() == expected, name, " must have ", expected, " entries, got ",
                    list.size());
}

}  // namespace opus
