#include "isa.hpp"

#include <atomic>
#include <cstring>
#include <string>

namespace quire {

#if defined(QUIRE_X86)
namespace avx512_amx {
extern const LinearKernels kLinearKernels[5];
extern bool (*const kIsAvailable)();
}
namespace avx512_bf16 {
extern const LinearKernels kLinearKernels[5];
}
namespace avx512_vnni {
extern const LinearKernels kLinearKernels[5];
}
namespace avx512 {
extern const PagedKernels kPagedKernels;
extern const LinearKernels kLinearKernels[5];
extern const SamplerKernels kSamplerKernels;
extern const RowKernels kRowKernels;
}
namespace avx2 {
extern const PagedKernels kPagedKernels;
extern const LinearKernels kLinearKernels[5];
extern const SamplerKernels kSamplerKernels;
extern const RowKernels kRowKernels;
}
#endif
namespace portable {
extern const PagedKernels kPagedKernels;
extern const LinearKernels kLinearKernels[5];
extern const SamplerKernels kSamplerKernels;
extern const RowKernels kRowKernels;
}

namespace {

struct Isa {
    const char* name;
    bool (*supported)();
    const PagedKernels* paged;
    const LinearKernels* linear;
    const SamplerKernels* sampler;
    const RowKernels* rows;
};

#if defined(QUIRE_X86)
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

bool has_avx512_bf16() {
#if defined(QUIRE_EMULATE_AVX512_BF16)
    return has_avx512_vnni();
#else
    return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16");
#endif
}

bool has_amx() {
    // Asks the system for leave, once.
    static const bool available = has_avx512_bf16() && avx512_amx::kIsAvailable();
    return available;
}
#endif

// Best first.
const Isa kIsas[] = {
#if defined(QUIRE_X86)
    {"amx", has_amx, &avx512::kPagedKernels, avx512_amx::kLinearKernels, &avx512::kSamplerKernels, &avx512::kRowKernels},
    {"avx512_bf16", has_avx512_bf16, &avx512::kPagedKernels, avx512_bf16::kLinearKernels, &avx512::kSamplerKernels,
     &avx512::kRowKernels},
    {"avx512_vnni", has_avx512_vnni, &avx512::kPagedKernels, avx512_vnni::kLinearKernels, &avx512::kSamplerKernels,
     &avx512::kRowKernels},
    {"avx512", has_avx512, &avx512::kPagedKernels, avx512::kLinearKernels, &avx512::kSamplerKernels,
     &avx512::kRowKernels},
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }, &avx2::kPagedKernels,
     avx2::kLinearKernels, &avx2::kSamplerKernels, &avx2::kRowKernels},
#endif
    {"portable", [] { return true; }, &portable::kPagedKernels, portable::kLinearKernels, &portable::kSamplerKernels,
     &portable::kRowKernels},
};

const Isa* best() {
    for (const Isa& isa : kIsas) {
        if (isa.supported()) return &isa;
    }
    return nullptr;  // not reached: portable is always there
}

std::atomic<const Isa*>& current() {
    static std::atomic<const Isa*> isa{best()};
    return isa;
}

}  // namespace

const PagedKernels& paged_kernels() { return *current().load()->paged; }

const LinearKernels& linear_kernels(int32_t format) { return current().load()->linear[format]; }

const SamplerKernels& sampler_kernels() { return *current().load()->sampler; }

const RowKernels& row_kernels() { return *current().load()->rows; }

}  // namespace quire

int32_t quire_abi_version() { return QUIRE_ABI_VERSION; }

const char* quire_available_isas() {
    static const std::string names = [] {
        std::string joined;
        for (const auto& isa : quire::kIsas) {
            if (isa.supported()) joined += (joined.empty() ? "" : ",") + std::string(isa.name);
        }
        return joined;
    }();
    return names.c_str();
}

const char* quire_current_isa() { return quire::current().load()->name; }

int32_t quire_set_isa(const char* name) {
    for (const auto& isa : quire::kIsas) {
        if (std::strcmp(isa.name, name) == 0 && isa.supported()) {
            quire::current() = &isa;
            return 0;
        }
    }
    return 1;
}

void quire_exp(const float* in, float* out, int64_t count) {
    quire::paged_kernels().exp(in, out, count);
}
