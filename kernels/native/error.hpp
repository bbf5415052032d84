// Messages for the caller of the C ABI.
#pragma once

#include <cstdint>
#include <cstdio>

namespace quire {

// Where a message goes; fail() returns the ABI's "failed".
struct ErrorBuffer {
    char* text;
    size_t size;

    template <class... Values>
    int32_t fail(const char* format, Values... values) const {
        std::snprintf(text, size, format, values...);
        return 1;
    }
};

}  // namespace quire
