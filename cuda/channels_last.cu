// x -> the copy of it that is sampled, channels last with a border of zeros, and grad_x back from there.
//
// Both transpose through shared memory: threads run along pixels on one side, along channels on the
// other. With fewer than 32 channels a block takes more cells instead, so that no thread is idle. The
// borders are written here too: nothing is filled before.
//
// Launch: grid (ceil(cells / TRANSPOSE_CELLS), ceil(C_in / TRANSPOSE_CHANNELS), images), 256 threads.
// Bytes per element: one read, one write.
#include "geometry.cuh"

#ifndef TRANSPOSE_CELLS
#define TRANSPOSE_CELLS 32     // a power of two from 32 to 256
#define TRANSPOSE_CHANNELS 32  // at most 32
#endif

constexpr int THREADS = 256;
constexpr int ELEMENTS = TRANSPOSE_CELLS * TRANSPOSE_CHANNELS;

// One cell of the copy as a pixel of the image.
struct Pixel {
    index_t row, column;
    bool inside;

    __device__ Pixel(const Geometry &geometry, index_t cell)
        : row(cell / (geometry.width + 1) - 1),
          column(cell % (geometry.width + 1) - 1),
          inside(row >= 0 && row < geometry.height && column >= 0) {}
};

extern "C" __global__ void __launch_bounds__(THREADS)
    to_channels_last(const Geometry geometry, const data_t *__restrict__ x,
                     data_t *__restrict__ image) {
    __shared__ data_t block[TRANSPOSE_CHANNELS][TRANSPOSE_CELLS + 1];
    const index_t cells = Cells(geometry).count, first_cell = index_t(blockIdx.x) * TRANSPOSE_CELLS;
    const int first_channel = blockIdx.y * TRANSPOSE_CHANNELS;
    const int across = threadIdx.x % TRANSPOSE_CELLS;
    const Pixel pixel(geometry, first_cell + across);
    const index_t number = blockIdx.z;  // signed, as strides are
    x += number * geometry.x.image + pixel.row * geometry.x.row + pixel.column * geometry.x.column;
    for (int c = threadIdx.x / TRANSPOSE_CELLS; c < TRANSPOSE_CHANNELS; c += THREADS / TRANSPOSE_CELLS) {
        if (first_channel + c < CHANNELS) {
            block[c][across] =
                pixel.inside ? x[(first_channel + c) * geometry.x.channel] : data_t{};
        }
    }
    __syncthreads();
    image += (number * cells + first_cell) * CHANNELS + first_channel;
    for (int e = threadIdx.x; e < ELEMENTS; e += THREADS) {
        const int c = e % TRANSPOSE_CHANNELS, cell = e / TRANSPOSE_CHANNELS;
        if (first_channel + c < CHANNELS && first_cell + cell < cells) {
            image[index_t(cell) * CHANNELS + c] = block[c][cell];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    from_channels_last(const Geometry geometry, const compute_t *__restrict__ grad_image,
                       data_t *__restrict__ grad_x) {
    __shared__ compute_t block[TRANSPOSE_CHANNELS][TRANSPOSE_CELLS + 1];
    const index_t cells = Cells(geometry).count, first_cell = index_t(blockIdx.x) * TRANSPOSE_CELLS;
    const int first_channel = blockIdx.y * TRANSPOSE_CHANNELS;
    grad_image += (index_t(blockIdx.z) * cells + first_cell) * CHANNELS + first_channel;
    for (int e = threadIdx.x; e < ELEMENTS; e += THREADS) {
        const int c = e % TRANSPOSE_CHANNELS, cell = e / TRANSPOSE_CHANNELS;
        if (first_channel + c < CHANNELS && first_cell + cell < cells) {
            block[c][cell] = grad_image[index_t(cell) * CHANNELS + c];
        }
    }
    __syncthreads();
    const int across = threadIdx.x % TRANSPOSE_CELLS;
    const Pixel pixel(geometry, first_cell + across);
    for (int c = threadIdx.x / TRANSPOSE_CELLS; c < TRANSPOSE_CHANNELS; c += THREADS / TRANSPOSE_CELLS) {
        if (first_channel + c < CHANNELS && pixel.inside) {
            const index_t plane = index_t(blockIdx.z) * CHANNELS + first_channel + c;
            narrow(block[c][across],
                   grad_x[(plane * geometry.height + pixel.row) * geometry.width + pixel.column]);
        }
    }
}
