// A deformable convolution with kernels that were built ahead, by the CUDA driver alone.
//
//   python -m cupy_dcn build-kernels --arch sm_80,sm_90 --channels 16 --no-backward --out dcn
//   nvcc -std=c++17 -Idcn examples/launch_kernels.cpp -lcuda -o launch_kernels
//   ./launch_kernels dcn
//
// out[n, o](p) = sum_c,k weight[o, c, k] * mask_k(p) * x[n, c](p + p_k + offset_k(p)): one kernel copies
// x with its channels last and a border of zeros, another samples the copy into columns. The product with
// the weight is plain loops here, a call of cuBLAS elsewhere. The result is compared with the formula.
#include <cuda.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "cupy_dcn_kernels.h"

using cupy_dcn::Geometry32;
using cupy_dcn::Kernel;

namespace {

[[noreturn]] void fail(const std::string &message) {
    std::fprintf(stderr, "launch_kernels: error: %s\n", message.c_str());
    std::exit(1);
}

void check(CUresult result, const char *what) {
    if (result != CUDA_SUCCESS) {
        const char *text = nullptr;
        cuGetErrorString(result, &text);
        fail(std::string(what) + ": " + (text ? text : "unknown error"));
    }
}

// The first kernel of a name for float32 arrays with fewer than 2^31 elements.
const Kernel &find(const char *name) {
    for (const Kernel &kernel : cupy_dcn::kernels) {
        if (!std::strcmp(kernel.name, name) && !std::strcmp(kernel.data, "float") &&
            !std::strcmp(kernel.index, "int32")) {
            return kernel;
        }
    }
    fail(std::string("no ") + name + " for float32 in cupy_dcn_kernels.h");
}

bool exists(const std::string &path) { return std::ifstream(path).good(); }

// Machine code for X.Y runs on every X.Z with Z >= Y; a driver compiles PTX for what is newer.
CUfunction load(const Kernel &kernel, const std::string &folder, int major, int minor) {
    std::string path = folder + "/" + kernel.ptx;
    for (int each = minor; each >= 0; --each) {
        const std::string code = folder + "/" + kernel.stem + ".sm_" + std::to_string(major) +
                                 std::to_string(each) + ".cubin";
        if (exists(code)) {
            path = code;
            break;
        }
    }
    CUmodule module;
    CUfunction function;
    check(cuModuleLoad(&module, path.c_str()), path.c_str());
    check(cuModuleGetFunction(&function, module, kernel.name), kernel.name);
    return function;
}

unsigned blocks(int size, int each) { return (size + each - 1) / each; }

CUdeviceptr allocate(size_t count) {
    CUdeviceptr pointer;
    check(cuMemAlloc(&pointer, count * sizeof(float)), "cuMemAlloc");
    return pointer;
}

CUdeviceptr copied(const std::vector<float> &values) {
    const CUdeviceptr pointer = allocate(values.size());
    check(cuMemcpyHtoD(pointer, values.data(), values.size() * sizeof(float)), "cuMemcpyHtoD");
    return pointer;
}

std::vector<float> random_values(size_t count, float low, float high) {
    static std::uint32_t state = 1;
    std::vector<float> values(count);
    for (float &value : values) {
        state = state * 1664525u + 1013904223u;
        value = low + (high - low) * float(state >> 8) / float(1 << 24);
    }
    return values;
}

// One layer on some images, without stride and dilation, padded to the size of the images.
struct Layer {
    int images, height, width;
    int channels, out_channels, groups, deformable_groups, kernel_height, kernel_width;
    bool masked;
    std::vector<float> x, offset, mask, weight;

    int taps() const { return kernel_height * kernel_width; }
    int pad_y() const { return (kernel_height - 1) / 2; }
    int pad_x() const { return (kernel_width - 1) / 2; }
    int out_height() const { return height + 2 * pad_y() - kernel_height + 1; }
    int out_width() const { return width + 2 * pad_x() - kernel_width + 1; }
    int pixels() const { return out_height() * out_width(); }
    int group_channels() const { return channels / groups; }
};

Layer make_layer(const Kernel &kernel) {
    Layer layer{2, 13, 11, kernel.channels, 3 * kernel.groups, kernel.groups, kernel.deformable_groups,
                kernel.kernel_height, kernel.kernel_width, kernel.masked != 0, {}, {}, {}, {}};
    const size_t points =
        size_t(layer.images) * layer.deformable_groups * layer.taps() * layer.pixels();
    layer.x = random_values(size_t(layer.images) * layer.channels * layer.height * layer.width, -1, 1);
    layer.offset = random_values(2 * points, -2, 2);
    layer.mask = random_values(points, 0, 1);
    layer.weight =
        random_values(size_t(layer.out_channels) * layer.group_channels() * layer.taps(), -1, 1);
    return layer;
}

Geometry32 geometry_of(const Layer &layer, const Kernel &kernel) {
    const int plane = layer.height * layer.width, points = layer.deformable_groups * layer.taps();
    Geometry32 geometry{};
    geometry.height = layer.height;
    geometry.width = layer.width;
    geometry.rows = layer.out_height();  // all pixels of the output in one launch
    geometry.columns = layer.out_width();
    geometry.origin_y = -layer.pad_y();
    geometry.origin_x = -layer.pad_x();
    geometry.stride_y = geometry.stride_x = 1;
    geometry.dilation_y = geometry.dilation_x = 1;
    geometry.out_height = layer.out_height();
    geometry.out_width = layer.out_width();
    geometry.column_pixels = layer.pixels();
    geometry.copy_pitch = (layer.width + 1) * kernel.copy_channels;
    geometry.copy_size = (layer.height + 3) * geometry.copy_pitch;
    geometry.planes = {layer.channels * plane, plane, layer.width, 1};
    geometry.offset = {2 * points * layer.pixels(), layer.pixels(), layer.out_width(), 1};
    geometry.mask = {points * layer.pixels(), layer.pixels(), layer.out_width(), 1};
    return geometry;
}

// The columns: (images, groups, pixels, taps, C_in/G); planes of pixels where a thread is alone with a
// sampling point, (images, groups, taps, C_in/G, pixels).
std::vector<float> sample(const Layer &layer, const std::string &folder, int major, int minor) {
    const Kernel &copy = find("to_channels_last"), &im2col = find("deform_im2col");
    const CUfunction copying = load(copy, folder, major, minor);
    const CUfunction sampling = load(im2col, folder, major, minor);
    Geometry32 geometry = geometry_of(layer, im2col);
    const size_t count =
        size_t(layer.images) * layer.channels * layer.taps() * layer.pixels();
    CUdeviceptr x = copied(layer.x), offset = copied(layer.offset), mask = copied(layer.mask);
    CUdeviceptr image = allocate(size_t(layer.images) * geometry.copy_size), columns = allocate(count);

    void *to_copy[] = {&geometry, &x, &image};
    const int cells = (layer.height + 3) * (layer.width + 1);
    check(cuLaunchKernel(copying, blocks(cells, copy.per_block) * copy.parts, 1, layer.images,
                         copy.threads, 1, 1, 0, nullptr, to_copy, nullptr),
          "to_channels_last");

    void *to_columns[] = {&geometry, &image, &offset, &mask, &columns};
    check(cuLaunchKernel(sampling,
                         blocks(geometry.columns, im2col.tile_columns) * layer.deformable_groups,
                         blocks(geometry.rows, im2col.tile_rows), layer.images, im2col.threads, 1, 1,
                         0, nullptr, to_columns, nullptr),
          "deform_im2col");

    std::vector<float> found(count);
    check(cuMemcpyDtoH(found.data(), columns, count * sizeof(float)), "cuMemcpyDtoH");
    for (CUdeviceptr each : {x, offset, mask, image, columns}) {
        check(cuMemFree(each), "cuMemFree");
    }
    return found;
}

std::vector<double> multiply(const Layer &layer, const std::vector<float> &columns, bool planes) {
    const int channels = layer.group_channels(), taps = layer.taps(), pixels = layer.pixels();
    const int group_outputs = layer.out_channels / layer.groups;
    std::vector<double> out;
    for (int n = 0; n < layer.images; ++n) {
        for (int o = 0; o < layer.out_channels; ++o) {
            const size_t part = size_t(n * layer.groups + o / group_outputs) * pixels * taps * channels;
            for (int p = 0; p < pixels; ++p) {
                double sum = 0;
                for (int k = 0; k < taps; ++k) {
                    for (int c = 0; c < channels; ++c) {
                        const size_t at = planes ? size_t(k * channels + c) * pixels + p
                                                 : size_t(p * taps + k) * channels + c;
                        sum += double(layer.weight[size_t(o * channels + c) * taps + k]) *
                               columns[part + at];
                    }
                }
                out.push_back(sum);
            }
        }
    }
    return out;
}

// Bilinear, with zeros outside of the image.
double sampled(const Layer &layer, const float *plane, double y, double x) {
    double sum = 0;
    const int top = int(std::floor(y)), left = int(std::floor(x));
    for (int row = top; row <= top + 1; ++row) {
        for (int column = left; column <= left + 1; ++column) {
            if (row >= 0 && row < layer.height && column >= 0 && column < layer.width) {
                sum += (1 - std::fabs(y - row)) * (1 - std::fabs(x - column)) *
                       plane[row * layer.width + column];
            }
        }
    }
    return sum;
}

// The formula at the top, term by term.
std::vector<double> expected(const Layer &layer) {
    const int channels = layer.group_channels(), taps = layer.taps(), pixels = layer.pixels();
    const int group_outputs = layer.out_channels / layer.groups;
    const int shared = layer.channels / layer.deformable_groups;
    std::vector<double> out;
    for (int n = 0; n < layer.images; ++n) {
        for (int o = 0; o < layer.out_channels; ++o) {
            for (int p = 0; p < pixels; ++p) {
                double sum = 0;
                for (int i = 0; i < channels; ++i) {
                    const int c = o / group_outputs * channels + i;
                    const float *plane =
                        &layer.x[size_t(n * layer.channels + c) * layer.height * layer.width];
                    for (int k = 0; k < taps; ++k) {
                        const size_t point =
                            size_t(n * layer.deformable_groups + c / shared) * taps + k;
                        const double dy = layer.offset[2 * point * pixels + p];
                        const double dx = layer.offset[(2 * point + 1) * pixels + p];
                        const double y = p / layer.out_width() - layer.pad_y() +
                                         k / layer.kernel_width + dy;
                        const double x = p % layer.out_width() - layer.pad_x() +
                                         k % layer.kernel_width + dx;
                        const double factor = layer.masked ? layer.mask[point * pixels + p] : 1;
                        sum += layer.weight[size_t(o * channels + i) * taps + k] * factor *
                               sampled(layer, plane, y, x);
                    }
                }
                out.push_back(sum);
            }
        }
    }
    return out;
}

}  // namespace

int main(int count, char **arguments) {
    if (count != 2) {
        fail("expected the folder that build-kernels wrote");
    }
    CUdevice device;
    CUcontext context;
    int major = 0, minor = 0;
    check(cuInit(0), "cuInit");
    check(cuDeviceGet(&device, 0), "cuDeviceGet");
    check(cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    check(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    check(cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device), "major");
    check(cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device), "minor");

    const Kernel &kernel = find("deform_im2col");
    const Layer layer = make_layer(kernel);
    const std::vector<float> columns = sample(layer, arguments[1], major, minor);
    const std::vector<double> found = multiply(layer, columns, kernel.lanes == 1);
    const std::vector<double> right = expected(layer);
    double largest = 0, error = 0;
    for (size_t i = 0; i < right.size(); ++i) {
        largest = std::max(largest, std::fabs(right[i]));
        error = std::max(error, std::isfinite(found[i]) ? std::fabs(found[i] - right[i]) : INFINITY);
    }
    std::printf("%d channels, %dx%d: largest error %.1e of %.1f\n", layer.channels,
                layer.kernel_height, layer.kernel_width, error, largest);
    check(cuDevicePrimaryCtxRelease(device), "cuDevicePrimaryCtxRelease");
    return error <= 1e-5 * largest ? 0 : 1;
}
