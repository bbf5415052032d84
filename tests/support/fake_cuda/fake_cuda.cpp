// A stand-in for libcuda.so.1: "device memory" is a memfd, so that descriptors, mappings and the deaths of processes
// are real. It checks what the driver checks of arguments and order.
//
// The environment makes it another device: FAKE_CUDA_EXPORT=0 (the attribute denies that memory can be exported),
// FAKE_CUDA_EXPORT=fails (export fails with NOT_PERMITTED all the same), FAKE_CUDA_BYTES (size of its memory).

#include "cuda_abi.h"

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace {

enum : CUresult {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_PERMITTED = 800,
};

constexpr int kDevices = 2;
constexpr size_t kGranularity = 2 << 20;

struct Mapping {
    size_t size;
    bool is_mapped;
};

std::mutex mutex;
bool is_initialized;
int contexts[kDevices];
thread_local void *current;
std::map<CUmemGenericAllocationHandle, int> handles;  // to descriptors
CUmemGenericAllocationHandle next_handle = 1000;
std::map<CUdeviceptr, Mapping> reservations;

const char *setting(const char *name, const char *otherwise) {
    const char *found = getenv(name);
    return found ? found : otherwise;
}

bool is_device(int device) { return device >= 0 && device < kDevices; }

bool is_exportable(const CUmemAllocationProp *properties) {
    return properties->type == 1 && properties->requestedHandleTypes == 1 && properties->location.type == 1 &&
           is_device(properties->location.id) && !properties->win32HandleMetaData &&
           !properties->allocFlags.compressionType && !properties->allocFlags.usage;
}

CUmemGenericAllocationHandle add_handle(int descriptor) {
    handles[++next_handle] = descriptor;
    return next_handle;
}

// The mapped reservation that holds these bytes.
bool is_mapped(CUdeviceptr address, size_t size) {
    for (const auto &[start, mapping] : reservations)
        if (mapping.is_mapped && address >= start && address + size <= start + mapping.size)
            return true;
    return false;
}

}  // namespace

extern "C" {

CUresult cuInit(unsigned flags) {
    is_initialized = true;
    return flags ? INVALID_VALUE : SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **name) {
    *name = error == OUT_OF_MEMORY    ? "CUDA_ERROR_OUT_OF_MEMORY"
            : error == NOT_PERMITTED  ? "CUDA_ERROR_NOT_PERMITTED"
            : error == INVALID_VALUE  ? "CUDA_ERROR_INVALID_VALUE"
            : error == INVALID_HANDLE ? "CUDA_ERROR_INVALID_HANDLE"
                                      : nullptr;
    return *name ? SUCCESS : INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : nullptr;
    return *text ? SUCCESS : INVALID_VALUE;
}

CUresult cuDeviceGetCount(int *count) {
    *count = kDevices;
    return is_initialized ? SUCCESS : NOT_INITIALIZED;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return is_device(ordinal) ? SUCCESS : INVALID_DEVICE;
}

CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    memset(uuid->bytes, 'A' + device, sizeof uuid->bytes);
    return is_device(device) ? SUCCESS : INVALID_DEVICE;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    if (!is_device(device) || (attribute != 102 && attribute != 103))
        return INVALID_VALUE;
    *value = attribute == 102 || strcmp(setting("FAKE_CUDA_EXPORT", "1"), "0") != 0;
    return SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    if (!is_device(device))
        return INVALID_DEVICE;
    contexts[device]++;
    *context = &contexts[device];
    return SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    return is_device(device) && contexts[device]-- > 0 ? SUCCESS : INVALID_CONTEXT;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    current = context;
    return SUCCESS;
}

CUresult cuCtxSynchronize() { return current ? SUCCESS : INVALID_CONTEXT; }

CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
    *free = *total = strtoull(setting("FAKE_CUDA_BYTES", "1073741824"), nullptr, 10);
    return current ? SUCCESS : INVALID_CONTEXT;
}

CUresult cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *properties, int option) {
    *granularity = kGranularity;
    return is_exportable(properties) && option == 1 ? SUCCESS : INVALID_VALUE;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *properties,
                     unsigned long long flags) {
    std::lock_guard lock(mutex);
    if (!size || size % kGranularity || !is_exportable(properties) || flags)
        return INVALID_VALUE;
    if (size > strtoull(setting("FAKE_CUDA_BYTES", "1073741824"), nullptr, 10))
        return OUT_OF_MEMORY;
    int descriptor = memfd_create("fake-device-memory", MFD_CLOEXEC);
    if (descriptor < 0 || ftruncate(descriptor, static_cast<off_t>(size)))
        return OUT_OF_MEMORY;
    // What was there before, for all that the driver promises.
    void *memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    memset(memory, 0xA5, size < 4096 ? size : 4096);
    munmap(memory, size);
    *handle = add_handle(descriptor);
    return SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    std::lock_guard lock(mutex);
    auto found = handles.find(handle);
    if (found == handles.end())
        return INVALID_HANDLE;
    close(found->second);
    handles.erase(found);
    return SUCCESS;
}

CUresult cuMemExportToShareableHandle(void *descriptor, CUmemGenericAllocationHandle handle, int type,
                                      unsigned long long flags) {
    std::lock_guard lock(mutex);
    if (!strcmp(setting("FAKE_CUDA_EXPORT", "1"), "fails"))
        return NOT_PERMITTED;
    auto found = handles.find(handle);
    if (found == handles.end())
        return INVALID_HANDLE;
    *static_cast<int *>(descriptor) = dup(found->second);
    return type == 1 && !flags ? SUCCESS : INVALID_VALUE;
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *descriptor, int type) {
    std::lock_guard lock(mutex);
    int copy = fcntl(static_cast<int>(reinterpret_cast<intptr_t>(descriptor)), F_DUPFD_CLOEXEC, 0);
    if (copy < 0 || type != 1)
        return INVALID_VALUE;
    *handle = add_handle(copy);
    return SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr *address, size_t size, size_t alignment, CUdeviceptr wanted,
                             unsigned long long flags) {
    std::lock_guard lock(mutex);
    if (!size || size % kGranularity || alignment || wanted || flags)
        return INVALID_VALUE;
    void *start = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        return OUT_OF_MEMORY;
    *address = reinterpret_cast<CUdeviceptr>(start);
    reservations[*address] = {size, false};
    return SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr address, size_t size) {
    std::lock_guard lock(mutex);
    auto found = reservations.find(address);
    if (found == reservations.end() || found->second.size != size || found->second.is_mapped)
        return INVALID_VALUE;
    munmap(reinterpret_cast<void *>(address), size);
    reservations.erase(found);
    return SUCCESS;
}

CUresult cuMemMap(CUdeviceptr address, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
    std::lock_guard lock(mutex);
    auto reservation = reservations.find(address);
    auto found = handles.find(handle);
    struct stat status;
    if (reservation == reservations.end() || reservation->second.size != size || offset || flags)
        return INVALID_VALUE;
    if (found == handles.end() || fstat(found->second, &status) || static_cast<size_t>(status.st_size) != size)
        return INVALID_HANDLE;
    mmap(reinterpret_cast<void *>(address), size, PROT_NONE, MAP_SHARED | MAP_FIXED, found->second, 0);
    reservation->second.is_mapped = true;
    return SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr address, size_t size) {
    std::lock_guard lock(mutex);
    auto found = reservations.find(address);
    if (found == reservations.end() || found->second.size != size || !found->second.is_mapped)
        return INVALID_VALUE;
    mmap(reinterpret_cast<void *>(address), size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    found->second.is_mapped = false;
    return SUCCESS;
}

CUresult cuMemSetAccess(CUdeviceptr address, size_t size, const CUmemAccessDesc *access, size_t count) {
    std::lock_guard lock(mutex);
    if (!is_mapped(address, size) || count != 1 || access->location.type != 1 || access->flags != 3)
        return INVALID_VALUE;
    return mprotect(reinterpret_cast<void *>(address), size, PROT_READ | PROT_WRITE) ? INVALID_VALUE : SUCCESS;
}

CUresult cuMemsetD8_v2(CUdeviceptr address, unsigned char value, size_t size) {
    std::lock_guard lock(mutex);
    if (!current)
        return INVALID_CONTEXT;
    if (!is_mapped(address, size))
        return INVALID_VALUE;
    memset(reinterpret_cast<void *>(address), value, size);
    return SUCCESS;
}

CUresult cuLaunchHostFunc(CUstream, CUhostFn function, void *argument) {
    function(argument);
    return SUCCESS;
}

}  // extern "C"
