// x -> the copy of it that is sampled, channels last with a border of zeros, and grad_x back from there.
//
// A thread moves some vectors of channels of one pixel, through its registers: one by one on the side of
// the planes, where 16 neighbouring threads are at 16 neighbouring pixels; as vectors on the other side,
// where the two halves of a warp are at neighbouring vectors, whole sectors of 32 bytes together. So
// neither side needs shared memory, and an index is worked out once for up to 64 bytes. The borders are
// written here too: nothing is filled before. Instructions a column element of x (2, 64, 56, 56), 3x3:
// 0.63 and 0.54; through shared memory, each thread at one channel, 1.93 and 1.84.
//
// Launch: grid (ceil(cells / AT_ONCE) * BLOCKS_A_CELL, 1, images), 256 threads; back: pixels, not cells.
// Bytes per element: one read, one write.
#include "geometry.cuh"

#ifndef TRANSPOSE_VECTORS
#define TRANSPOSE_VECTORS 4 // that a thread moves; at most as many as there are
#define TRANSPOSE_SIDE 4    // threads at one pixel: 1, 2, 4, 8 or 16
#endif

constexpr int THREADS = 256;
constexpr int ALONG = 16;  // threads at neighbouring pixels
constexpr int AT_ONCE = THREADS / TRANSPOSE_SIDE;  // pixels of a block
constexpr int VECTORS = CHANNELS / VECTOR;
constexpr int BLOCK_VECTORS = TRANSPOSE_VECTORS * TRANSPOSE_SIDE;
constexpr int BLOCKS_A_CELL = (VECTORS + BLOCK_VECTORS - 1) / BLOCK_VECTORS;

// What a thread moves: every TRANSPOSE_SIDE-th vector of channels of one pixel.
struct Part {
    index_t image;  // signed, as strides are
    unsigned_t pixel;
    int first;  // vector

    __device__ Part()
        : image(blockIdx.z),
          pixel(unsigned_t(blockIdx.x / BLOCKS_A_CELL) * AT_ONCE +
                threadIdx.x / (ALONG * TRANSPOSE_SIDE) * ALONG + threadIdx.x % ALONG),
          first(blockIdx.x % BLOCKS_A_CELL * BLOCK_VECTORS + threadIdx.x / ALONG % TRANSPOSE_SIDE) {}

    // move(at), where at counts vectors from the thread's first one.
    template <typename Move>
    __device__ void each_vector(Move move) const {
#pragma unroll
        for (int i = 0; i < TRANSPOSE_VECTORS; ++i) {
            if (VECTORS % BLOCK_VECTORS == 0 || first + i * TRANSPOSE_SIDE < VECTORS) {
                move(i * TRANSPOSE_SIDE);
            }
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    to_channels_last(const Geometry geometry, const data_t *__restrict__ x,
                     data_t *__restrict__ image) {
    const Part part;
    const unsigned_t pitch = geometry.width + 1, cells = Cells(geometry).count;
    if (part.pixel >= cells) {
        return;
    }
    const unsigned_t above = part.pixel / pitch;
    const index_t row = index_t(above) - 1, column = index_t(part.pixel - above * pitch) - 1;
    const bool inside = unsigned_t(row) < unsigned_t(geometry.height) && column >= 0;
    x += part.image * geometry.x.image + index_t(part.first) * VECTOR * geometry.x.channel +
         row * geometry.x.row + column * geometry.x.column;
    image += (part.image * index_t(cells) + index_t(part.pixel)) * CHANNELS + part.first * VECTOR;
    part.each_vector([&](int at) {
        Vector<data_t, VECTOR> values{};
        if (inside) {
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                values.at[i] = x[index_t(at * VECTOR + i) * geometry.x.channel];
            }
        }
        store(image + at * VECTOR, values);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    from_channels_last(const Geometry geometry, const compute_t *__restrict__ grad_image,
                       data_t *__restrict__ grad_x) {
    const Part part;
    const unsigned_t width = geometry.width, plane = unsigned_t(geometry.height) * width;
    if (part.pixel >= plane) {
        return;
    }
    // The pixel's cell comes after one row of the border and a column for each row.
    const index_t cell = part.pixel + part.pixel / width + width + 2;
    grad_image += (part.image * Cells(geometry).count + cell) * CHANNELS + part.first * VECTOR;
    grad_x += (part.image * CHANNELS + index_t(part.first) * VECTOR) * index_t(plane) +
              index_t(part.pixel);
    part.each_vector([&](int at) {
        const auto values = load<VECTOR>(grad_image + at * VECTOR);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            narrow(values.at[i], grad_x[index_t(at * VECTOR + i) * index_t(plane)]);
        }
    });
}
