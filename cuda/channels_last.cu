// x -> the copy of it that is sampled, channels last with a border of zeros, and grad_x back from there.
//
// A thread moves some vectors of channels of one pixel, through its registers: one by one on the side of
// the planes, where 16 neighbouring threads are at 16 neighbouring pixels; as vectors on the other side,
// where the two halves of a warp are at neighbouring vectors, whole sectors of 32 bytes together. So
// neither side needs shared memory, and an index is worked out once for up to 64 bytes. The borders are
// written here too: nothing is filled before. Instructions a column element of x (2, 64, 56, 56), 3x3:
// 0.85 and 0.62; through shared memory, each thread at one channel, 1.93 and 1.84.
//
// Launch: grid (ceil(cells / AT_ONCE) * BLOCKS_A_CELL, 1, images), 256 threads; back: pixels, not cells;
// copy_elements: ceil(count / 256) blocks.
// Bytes per element: one read, one write.
#include "geometry.cuh"

#ifndef TRANSPOSE_VECTORS
#define TRANSPOSE_VECTORS 4 // that a thread moves; at most as many as there are
#define TRANSPOSE_SIDE 4    // threads at one pixel: 1, 2, 4, 8 or 16
#endif

constexpr int THREADS = 256;
constexpr int ALONG = 16;  // threads at neighbouring pixels
constexpr int AT_ONCE = THREADS / TRANSPOSE_SIDE;  // pixels of a block
constexpr int CELL_VECTORS = COPY_CHANNELS / VECTOR;
constexpr int BLOCK_VECTORS = TRANSPOSE_VECTORS * TRANSPOSE_SIDE;
constexpr int BLOCKS_A_CELL = (CELL_VECTORS + BLOCK_VECTORS - 1) / BLOCK_VECTORS;

// What a thread moves: every TRANSPOSE_SIDE-th vector of channels of one pixel.
struct Slice {
    index_t image;  // signed, as strides are
    unsigned_t pixel;
    int first;  // channel of the copy

    __device__ Slice()
        : image(blockIdx.z),
          pixel(unsigned_t(blockIdx.x / BLOCKS_A_CELL) * AT_ONCE +
                threadIdx.x / (ALONG * TRANSPOSE_SIDE) * ALONG + threadIdx.x % ALONG),
          first((blockIdx.x % BLOCKS_A_CELL * BLOCK_VECTORS +
                 threadIdx.x / ALONG % TRANSPOSE_SIDE) *
                VECTOR) {}

    // move(at, channel, count): a vector at so many elements from the thread's first one, the channel of
    // x that it begins with, also counted from there, and how many of its channels x has.
    template <typename Move>
    __device__ void each_vector(Move move) const {
#pragma unroll
        for (int i = 0; i < TRANSPOSE_VECTORS; ++i) {
            const int at = i * TRANSPOSE_SIDE * VECTOR, channel = first + at;
            if (CELL_VECTORS % BLOCK_VECTORS == 0 || channel < COPY_CHANNELS) {
                move(at, channel_of(channel) - channel_of(first),
                     PADDED ? min(SHARED_CHANNELS - channel % COPY_SHARED, VECTOR) : VECTOR);
            }
        }
    }
    // The channel of x that a channel of the copy is.
    __device__ static int channel_of(int channel) {
        return channel - channel / COPY_SHARED * (COPY_SHARED - SHARED_CHANNELS);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    to_channels_last(const Geometry geometry, const data_t *__restrict__ x,
                     data_t *__restrict__ image) {
    const Slice slice;
    const unsigned_t pitch = geometry.width + 1, cells = (geometry.height + 3) * pitch;
    if (slice.pixel >= cells) {
        return;
    }
    const unsigned_t above = slice.pixel / pitch;
    const index_t row = index_t(above) - 1, column = index_t(slice.pixel - above * pitch) - 1;
    const bool inside = unsigned_t(row) < unsigned_t(geometry.height) && column >= 0;
    x += slice.image * geometry.planes.image + slice.channel_of(slice.first) * geometry.planes.channel +
         row * geometry.planes.row + column * geometry.planes.column;
    image += slice.image * geometry.copy_size + index_t(slice.pixel) * COPY_CHANNELS + slice.first;
    slice.each_vector([&](int at, int channel, int count) {
        Vector<data_t, VECTOR> values{};
        if (inside) {
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                if (i < count) {
                    values.at[i] = x[index_t(channel + i) * geometry.planes.channel];
                }
            }
        }
        store(image + at, values);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    from_channels_last(const Geometry geometry, const compute_t *__restrict__ grad_image,
                       data_t *__restrict__ grad_x) {
    const Slice slice;
    const unsigned_t width = geometry.width, plane = unsigned_t(geometry.height) * width;
    if (slice.pixel >= plane) {
        return;
    }
    // The pixel's cell comes after one row of the border and a column for each row.
    const index_t cell = slice.pixel + slice.pixel / width + width + 2;
    grad_image += slice.image * geometry.copy_size + cell * COPY_CHANNELS + slice.first;
    grad_x += (slice.image * CHANNELS + slice.channel_of(slice.first)) * index_t(plane) +
              index_t(slice.pixel);
    slice.each_vector([&](int at, int channel, int count) {
        const auto values = load<VECTOR>(grad_image + at);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            if (i < count) {
                narrow(values.at[i], grad_x[index_t(channel + i) * index_t(plane)]);
            }
        }
    });
}

// Elements from one layout to another, with strides of any kind, 0 for what is repeated: the weight laid
// out for a product, the bias spread over pixels. CuPy has compiled such a kernel by the time that this
// one is compiled; it is for kernels that were built ahead, where CuPy can compile nothing.
struct Walk {
    index_t sizes[5], from[5], to[5];
};

extern "C" __global__ void __launch_bounds__(THREADS)
    copy_elements(const Walk walk, index_t count, const data_t *__restrict__ source,
                  data_t *__restrict__ target) {
    index_t rest = index_t(blockIdx.x) * THREADS + threadIdx.x;
    if (rest >= count) {
        return;
    }
#pragma unroll
    for (int axis = 4; axis >= 0; --axis) {
        const index_t at = rest % walk.sizes[axis];
        rest /= walk.sizes[axis];
        source += at * walk.from[axis];
        target += at * walk.to[axis];
    }
    *target = *source;
}
