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
#define VECTOR 4 // channels moved at once: a power of two
#endif
#ifndef LANES
#define LANES 8 // threads that share a sampling point: 2, 4, 8; 1 where its channels are one vector
#endif
#ifndef BLOCK
#define BLOCK 256 // threads of a block
#endif
#ifndef ROWS_AT_ONCE
#define ROWS_AT_ONCE 3    // taps whose sampling points are held in shared memory together:
#define COLUMNS_AT_ONCE 3 // some whole rows of the kernel, or a part of one row
#endif
#ifndef MASKED
#define MASKED 1 // whether there is a mask
#endif

constexpr int TAPS = KERNEL_HEIGHT * KERNEL_WIDTH;
constexpr int TAPS_AT_ONCE = ROWS_AT_ONCE * COLUMNS_AT_ONCE;
constexpr int GROUP_CHANNELS = CHANNELS / GROUPS;
constexpr int SHARED_CHANNELS = CHANNELS / DEFORMABLE_GROUPS;  // that share one set of offsets

// In the copy of the image these are followed by zeros, up to a whole number of vectors.
constexpr int VECTORS = (SHARED_CHANNELS + VECTOR - 1) / VECTOR;
constexpr int COPY_SHARED = VECTORS * VECTOR;
constexpr int COPY_CHANNELS = DEFORMABLE_GROUPS * COPY_SHARED;
constexpr bool PADDED = COPY_SHARED != SHARED_CHANNELS;

// LANES threads share a point, each with every LANES-th vector. A single vector needs one thread, ALONE.
constexpr bool ALONE = LANES == 1;
constexpr int STEPS = (VECTORS + LANES - 1) / LANES;
constexpr int LIVE = ALONE ? SHARED_CHANNELS : VECTOR;  // channels of a vector to work on
constexpr bool RAGGED = STEPS * LANES != VECTORS;

// Blocks that a multiprocessor's registers have room for: 80 a thread; with vectors of 8 halves 96, or,
// ALONE, 128.
constexpr int AT_LEAST_BLOCKS = (VECTOR <= 4 ? 768 : ALONE ? 512 : 640) / BLOCK;

// A block works on a rectangle of output pixels, narrow: neighbours sample the same cache lines. Where a
// warp's threads are at as many pixels it is wider, for the sake of the columns' planes.
constexpr int TILE = BLOCK / LANES;
constexpr int TILE_WIDTH = ALONE ? 16 : 8;
constexpr int TILE_HEIGHT = TILE / TILE_WIDTH;
constexpr int SAMPLES = ALONE ? 1 : TILE * TAPS_AT_ONCE;

struct Strides {
    index_t image, channel, row, column;
};

// The work of one launch: a rectangle of output pixels of some images. Mirrored, field by field, by
// launch_geometry in cupy_dcn/_columns_gpu.py.
struct Geometry {
    index_t height, width;          // of the image
    index_t rows, columns;          // of the rectangle
    index_t origin_y, origin_x;     // where its first pixel's tap (0, 0) samples without an offset
    index_t stride_y, stride_x;
    index_t dilation_y, dilation_x;
    index_t out_height, out_width;  // of the output
    index_t column_pixels;          // output pixels that an image has in the array of columns
    index_t copy_pitch, copy_size;  // elements of a row of the image's copy, and of the whole
    Strides planes, offset, mask;   // of x or grad_output; the others from the rectangle's first pixel on
};
static_assert(sizeof(Geometry) == 27 * sizeof(index_t), "as launch_geometry packs it");

// The copy of an image that is sampled: channels last, a row of zeros above, two below, a column of
// zeros between one row and the next, shared by both. Whatever lies in the open box (-1, H) x (-1, W)
// finds its four corners at fixed distances, without clamping, and corners outside the image are zeros.
struct Cells {
    index_t pitch;  // from a row to the next, in elements
    index_t size;   // of an image
    index_t zero;   // element of a cell whose four corners are zeros

    __device__ explicit Cells(const Geometry &geometry)
        : pitch(geometry.copy_pitch),
          size(geometry.copy_size),
          zero(kept(geometry.copy_size - 2 * geometry.copy_pitch)) {}

    // First element of pixel (row, column), from (-1, -1) on.
    __device__ index_t at(index_t row, index_t column) const {
        return (row + 1) * pitch + (column + 1) * COPY_CHANNELS;
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
    __device__ Tile(index_t image, index_t row, index_t column, int group)
        : image(image), row(row), column(column), group(group) {}

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

// The columns are (images, G, pixels, K, C_in/G), channels fastest; where threads are ALONE at a pixel,
// planes of pixels, (images, G, K, C_in/G, pixels), so that neighbouring threads still write
// neighbouring elements.
__device__ inline index_t channel_stride(const Geometry &geometry) {
    return ALONE ? geometry.column_pixels : 1;
}
__device__ inline index_t tap_stride(const Geometry &geometry) {
    return GROUP_CHANNELS * channel_stride(geometry);
}
__device__ inline index_t column_of_channel(const Geometry &geometry, int channel) {
    return index_t(unsigned(channel) / GROUP_CHANNELS) * geometry.column_pixels * TAPS *
               GROUP_CHANNELS +
           index_t(unsigned(channel) % GROUP_CHANNELS) * channel_stride(geometry);
}

// Where the columns of one pixel and deformable group begin for a lane, and how far one of its channels
// lies from there. Where no group cuts through the deformable group that is the same at every pixel, a
// constant of the compiler.
constexpr bool UNCUT = GROUP_CHANNELS % SHARED_CHANNELS == 0;

__device__ inline index_t first_column(const Geometry &geometry, const Tile &tile, int pixel,
                                       int lane) {
    const index_t at = tile.row_of(pixel) * geometry.columns + tile.column_of(pixel);
    const index_t image = tile.image * GROUPS * geometry.column_pixels;
    const index_t first = ALONE ? image * TAPS * GROUP_CHANNELS + at
                                : (image + at) * TAPS * GROUP_CHANNELS;
    return UNCUT ? first + column_of_channel(geometry, tile.group * SHARED_CHANNELS + lane * VECTOR)
                 : first;
}
__device__ inline index_t in_column(const Geometry &geometry, const Tile &tile, int lane,
                                    int channel) {
    return UNCUT ? index_t(channel - lane * VECTOR) * channel_stride(geometry)
                 : column_of_channel(geometry, tile.group * SHARED_CHANNELS + channel);
}

// A vector of channels is moved in pieces: whole where neither groups nor padding are in the way.
__host__ __device__ constexpr int common_divisor(int a, int b) { return b ? common_divisor(b, a % b) : a; }
constexpr int PIECE =
    ALONE ? 1 : common_divisor(VECTOR, common_divisor(GROUP_CHANNELS, SHARED_CHANNELS));

template <typename Use>
__device__ inline void each_piece(int channel, Use use) {
#pragma unroll
    for (int i = 0; i < VECTOR; i += PIECE) {
        if (!PADDED || channel + i < SHARED_CHANNELS) {
            use(i);
        }
    }
}
__device__ inline Vector<data_t, VECTOR> load_column(const Geometry &geometry, const Tile &tile,
                                                     const data_t *column, int lane, int channel) {
    Vector<data_t, VECTOR> values{};
    each_piece(channel, [&](int i) {
        const auto piece =
            load<PIECE>(column + in_column(geometry, tile, lane, channel + i));
#pragma unroll
        for (int j = 0; j < PIECE; ++j) {
            values.at[i + j] = piece.at[j];
        }
    });
    return values;
}
__device__ inline void store_column(const Geometry &geometry, const Tile &tile, data_t *column,
                                    int lane, int channel, const Vector<data_t, VECTOR> &values) {
    each_piece(channel, [&](int i) {
        Vector<data_t, PIECE> piece;
#pragma unroll
        for (int j = 0; j < PIECE; ++j) {
            piece.at[j] = values.at[i + j];
        }
        store(column + in_column(geometry, tile, lane, channel + i), piece);
    });
}

// The vectors of a point that are a lane's: use(channel, at), where channel counts within the deformable
// group and at is how far it lies from the lane's first one.
template <int UNROLLED = 2, typename Use>
__device__ inline void each_vector(int lane, Use use) {
    // Unrolled by powers of two only, here and in the kernels: by 3, NVRTC 12.0 to 13.5 drop the tests
    // for the end of a loop of min(5, 9 - first) rounds but every third, and run 6.
#pragma unroll(UNROLLED)
    for (int step = 0; step < STEPS; ++step) {
        const int at = step * LANES * VECTOR, channel = at + lane * VECTOR;
        if (RAGGED && channel >= COPY_SHARED) {
            break;
        }
        use(channel, at);
    }
}

// The parts that the taps are worked on in: use(part).
struct Part {
    int row, column, rows, columns;

    __device__ int first() const { return row * KERNEL_WIDTH + column; }
    __device__ int taps() const { return rows * columns; }
    __device__ bool last() const { return first() + taps() == TAPS; }
};
template <typename Use>
__device__ inline void each_part(Use use) {
    for (int row = 0; row < KERNEL_HEIGHT; row += ROWS_AT_ONCE) {
        for (int column = 0; column < KERNEL_WIDTH; column += COLUMNS_AT_ONCE) {
            use(Part{row, column, min(ROWS_AT_ONCE, KERNEL_HEIGHT - row),
                     min(COLUMNS_AT_ONCE, KERNEL_WIDTH - column)});
        }
    }
}
