// A CUDA driver for programs under test: whatever is asked of it is passed on, a line each, to the test that
// started the program, which has the emulator (test_launch_kernels.py).
#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

struct Function {
    long number;
    std::vector<size_t> sizes;  // of its parameters, in bytes
};

FILE *stream(const char *variable, const char *mode) {
    return fdopen(std::atoi(std::getenv(variable)), mode);
}
FILE *to() {
    static FILE *file = stream("DRIVER_TO", "wb");
    return file;
}
FILE *from() {
    static FILE *file = stream("DRIVER_FROM", "rb");
    return file;
}

long long number() {
    std::fflush(to());
    long long answer;
    if (std::fscanf(from(), "%lld", &answer) != 1 || std::fgetc(from()) != '\n') {
        std::exit(3);
    }
    return answer;
}

}  // namespace

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int) {
    *device = 0;
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) {
    *context = nullptr;
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult, const char **text) {
    *text = "refused";
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice) {
    std::fprintf(to(), "attribute %d\n", int(attribute));
    *value = int(number());
    return CUDA_SUCCESS;
}

CUresult cuModuleLoad(CUmodule *module, const char *path) {
    std::fprintf(to(), "load %s\n", path);
    const long long answer = number();
    *module = reinterpret_cast<CUmodule>(answer);
    return answer ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    std::fprintf(to(), "function %lld %s\n", reinterpret_cast<long long>(module), name);
    const long long count = number();
    auto *found = new Function{long(number()), {}};
    for (long long i = 0; i < count; ++i) {
        found->sizes.push_back(size_t(number()));
    }
    *function = reinterpret_cast<CUfunction>(found);
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr *pointer, size_t bytes) {
    std::fprintf(to(), "allocate %zu\n", bytes);
    *pointer = CUdeviceptr(number());
    return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr pointer) {
    std::fprintf(to(), "free %llu\n", pointer);
    return number() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemcpyHtoD(CUdeviceptr pointer, const void *source, size_t bytes) {
    std::fprintf(to(), "write %llu %zu\n", pointer, bytes);
    std::fwrite(source, 1, bytes, to());
    return number() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemcpyDtoH(void *target, CUdeviceptr pointer, size_t bytes) {
    std::fprintf(to(), "read %llu %zu\n", pointer, bytes);
    std::fflush(to());
    return std::fread(target, 1, bytes, from()) == bytes ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared, CUstream, void **parameters,
                        void **) {
    const auto *kernel = reinterpret_cast<const Function *>(function);
    std::fprintf(to(), "launch %ld %u %u %u %u %u %u %u\n", kernel->number, x, y, z, block_x, block_y,
                 block_z, shared);
    for (size_t i = 0; i < kernel->sizes.size(); ++i) {
        std::fwrite(parameters[i], 1, kernel->sizes[i], to());
    }
    return number() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
