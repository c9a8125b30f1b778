// Sizes: those compiled in, those of one call, and how a block of threads maps onto them.
//
// Channels, groups and taps belong to a layer and are compiled in; the sizes of images do not, so a
// picture of another size needs no compilation. Every array but the image's copy is addressed by strides
// or is C-contiguous; all indices count elements.
#pragma once

#include "numeric.cuh"

#ifndef CHANNELS
#define CHANNELS 64 // C_in
#endif
#ifndef GROUPS
#define GROUPS 1 // G
#endif
#ifndef DEFORMABLE_GROUPS
#define DEFORMABLE_GROUPS 1 // DG
#endif
#ifndef KERNEL_HEIGHT
#define KERNEL_HEIGHT 3
#endif
#ifndef KERNEL_WIDTH
#define KERNEL_WIDTH 3
#endif
#ifndef VECTOR
#define VECTOR 4 // channels moved at once; divides C_in/G and C_in/DG
#endif
#ifndef LANES
#define LANES 8 // threads that share a sampling point: 1, 2, 4 or 8
#endif
#ifndef BLOCK
#define BLOCK 256 // threads of a block
#endif
#ifndef TAPS_AT_ONCE
#define TAPS_AT_ONCE 9 // taps whose sampling points are held in shared memory together
#endif
#ifndef MASKED
#define MASKED 1 // whether there is a mask
#endif

constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH;
constexpr int GROUP_CHANNELS = CHANNELS / GROUPS;
constexpr int SHARED_CHANNELS = CHANNELS / DEFORMABLE_GROUPS;  // that share one set of offsets
constexpr int STEPS = (SHARED_CHANNELS / VECTOR + LANES - 1) / LANES;
constexpr bool RAGGED = STEPS * LANES * VECTOR != SHARED_CHANNELS;

// A block works on a rectangle of output pixels, 8 wide: neighbours sample the same cache lines.
constexpr int TILE = BLOCK / LANES;
constexpr int TILE_WIDTH = 8;
constexpr int TILE_HEIGHT = TILE / TILE_WIDTH;
constexpr int SAMPLES = TILE * TAPS_AT_ONCE;

struct Strides {
    index_t image, channel, row, column;
};

// The work of one launch: a rectangle of output pixels of some images. Mirrored, field by field, by
// launch_geometry in cupy_dcn/_columns_gpu.py.
struct Geometry {
    index_t height, width;                // of the image
    index_t first_row, first_column;      // of the rectangle
    index_t rows, columns;                // its size
    index_t out_height, out_width;        // of the output
    index_t stride_y, stride_x;
    index_t pad_top, pad_left;
    index_t dilation_y, dilation_x;
    index_t column_pixels;                // output pixels that an image has in the array of columns
    Strides x, offset, mask;              // offset and mask from the rectangle's first pixel on
};
static_assert(sizeof(Geometry) == 27 * sizeof(index_t), "as launch_geometry packs it");

// The copy of an image that is sampled: channels last, a row of zeros above, two below, a column of
// zeros between one row and the next, shared by both. Whatever lies in the open box (-1, H) x (-1, W)
// finds its four corners at fixed distances, without clamping, and corners outside the image are zeros.
struct Cells {
    index_t pitch;  // from a row to the next, in elements
    index_t count;  // cells of an image
    index_t zero;   // element of a cell whose four corners are zeros

    __device__ explicit Cells(const Geometry &geometry)
        : pitch((geometry.width + 1) * CHANNELS),
          count((geometry.height + 3) * (geometry.width + 1)),
          zero((geometry.height + 1) * pitch) {}

    // First element of pixel (row, column), from (-1, -1) on.
    __device__ index_t at(index_t row, index_t column) const {
        return (row + 1) * pitch + (column + 1) * CHANNELS;
    }
};

// What one block works on; blockIdx is (tile along a row and deformable group, tile along y, image).
struct Tile {
    index_t image, row, column;  // of its first pixel, within the launch
    int group;                   // deformable group

    __device__ Tile()
        : image(blockIdx.z),
          row(blockIdx.y * TILE_HEIGHT),
          column(index_t(blockIdx.x / DEFORMABLE_GROUPS) * TILE_WIDTH),
          group(blockIdx.x % DEFORMABLE_GROUPS) {}

    __device__ index_t row_of(unsigned pixel) const { return row + index_t(pixel / TILE_WIDTH); }
    __device__ index_t column_of(unsigned pixel) const {
        return column + index_t(pixel % TILE_WIDTH);
    }
    __device__ bool holds(const Geometry &geometry, int pixel) const {
        return row_of(pixel) < geometry.rows && column_of(pixel) < geometry.columns;
    }
    // Element of an array with Strides: its first channel, at one of the tile's pixels.
    __device__ index_t in(const Strides &strides, index_t channel, int pixel) const {
        return image * strides.image + channel * strides.channel + row_of(pixel) * strides.row +
               column_of(pixel) * strides.column;
    }
    // The same for channel 0 of an array (images, channels, OH, OW) that is C-contiguous.
    __device__ index_t in_output(const Geometry &geometry, index_t channels, int pixel) const {
        return (image * channels * geometry.out_height + row_of(pixel)) * geometry.out_width +
               column_of(pixel);
    }
};

// Where the columns (images, G, pixels, K, C_in/G) of one pixel and deformable group begin for a lane,
// and how far a vector of channels lies from there. Where no group cuts through the deformable group
// that is the same at every pixel, a constant of the compiler.
constexpr bool UNCUT = GROUP_CHANNELS % SHARED_CHANNELS == 0;

__device__ inline index_t column_of_channel(const Geometry &geometry, int channel) {
    return index_t(unsigned(channel) / GROUP_CHANNELS) * geometry.column_pixels * TAPS *
               GROUP_CHANNELS +
           unsigned(channel) % GROUP_CHANNELS;
}
__device__ inline index_t first_column(const Geometry &geometry, const Tile &tile, int pixel,
                                       int lane) {
    const index_t at = tile.row_of(pixel) * geometry.columns + tile.column_of(pixel);
    const index_t first = (tile.image * GROUPS * geometry.column_pixels + at) * TAPS * GROUP_CHANNELS;
    return UNCUT ? first + column_of_channel(geometry, tile.group * SHARED_CHANNELS + lane * VECTOR)
                 : first;
}
__device__ inline index_t in_column(const Geometry &geometry, const Tile &tile, int channel, int at) {
    return UNCUT ? at : column_of_channel(geometry, tile.group * SHARED_CHANNELS + channel);
}

// The walk that im2col, its adjoint and its derivative share. First the sampling points of some taps:
// a thread stays at one pixel, its neighbours at the next ones, and takes every LANES-th tap:
// use(slot, tap), where slot is the point's place in shared memory and tap counts from the first one.
__device__ inline int planned_pixel() { return threadIdx.x % TILE; }

template <typename Use>
__device__ inline void each_point(const Geometry &geometry, const Tile &tile, int taps, Use use) {
    if (tile.holds(geometry, planned_pixel())) {
        for (int tap = threadIdx.x / TILE; tap < taps; tap += LANES) {
            use(planned_pixel() * TAPS_AT_ONCE + tap, tap);
        }
    }
}

// Then, with LANES threads a pixel and a point at a time, its channels: use(channel, at), where channel
// counts within the deformable group and at is how far it lies from the lane's first one.
template <int UNROLLED = 2, typename Use>
__device__ inline void each_vector(int lane, Use use) {
    // Unrolled by powers of two only, here and in the kernels: by 3, NVRTC 12.0 to 13.5 drop the tests
    // for the end of a loop of min(5, 9 - first) rounds but every third, and run 6.
#pragma unroll(UNROLLED)
    for (int step = 0; step < STEPS; ++step) {
        const int at = step * LANES * VECTOR, channel = at + lane * VECTOR;
        if (RAGGED && channel >= SHARED_CHANNELS) {
            break;
        }
        use(channel, at);
    }
}
