// x -> the copy of it that is sampled, channels last with a border of zeros, and grad_x back from there.
//
// Both transpose through shared memory: threads run along pixels on one side, along channels on the
// other. With fewer than 32 channels a block takes more cells instead, so that no thread is idle. The
// borders are written here too: nothing is filled before.
//
// Launch: grid (ceil(cells / TRANSPOSE_CELLS) * ceil(C_in / TRANSPOSE_CHANNELS), 1, images), 256 threads.
// Bytes per element: one read, one write.
#include "geometry.cuh"

#ifndef TRANSPOSE_CELLS
#define TRANSPOSE_CELLS 64     // a power of two from 64 to 256
#define TRANSPOSE_CHANNELS 32  // at most 32
#endif

constexpr int THREADS = 256;
constexpr int BLOCKS_A_CELL = (CHANNELS + TRANSPOSE_CHANNELS - 1) / TRANSPOSE_CHANNELS;
constexpr int ROWS = THREADS / TRANSPOSE_CELLS;  // channels that the block moves at once along pixels
constexpr int PASSES_OF_PIXELS = (TRANSPOSE_CHANNELS + ROWS - 1) / ROWS;
constexpr int STEP = THREADS / TRANSPOSE_CHANNELS;  // cells that it moves at once along channels
constexpr int PASSES_OF_CHANNELS = (TRANSPOSE_CELLS + STEP - 1) / STEP;

// A bound that compiles away where it divides; the compiler does not know that threadIdx.x < 256.
__device__ inline bool is_row(int channel) {
    return TRANSPOSE_CHANNELS % ROWS == 0 || channel < TRANSPOSE_CHANNELS;
}

// One cell of the copy as a pixel of the image.
struct Pixel {
    index_t row, column;
    bool inside;

    __device__ Pixel(const Geometry &geometry, index_t cell) {
        const index_t pitch = geometry.width + 1, above = cell / pitch;
        row = above - 1;
        column = cell - above * pitch - 1;
        inside = row >= 0 && row < geometry.height && column >= 0;
    }
};

// What a block moves: some cells of one image, some of its channels.
struct Block {
    index_t image, first_cell, cells;  // signed, as strides are
    int first_channel;

    __device__ explicit Block(const Geometry &geometry)
        : image(blockIdx.z),
          first_cell(index_t(blockIdx.x / BLOCKS_A_CELL) * TRANSPOSE_CELLS),
          cells(Cells(geometry).count),
          first_channel(blockIdx.x % BLOCKS_A_CELL * TRANSPOSE_CHANNELS) {}

    __device__ bool has(int channel) const {
        return CHANNELS % TRANSPOSE_CHANNELS == 0 || first_channel + channel < CHANNELS;
    }
    // Element of the copy for a channel of one of the block's cells, and the cells there are.
    __device__ index_t element(int cell, int channel) const {
        return (image * cells + first_cell + cell) * CHANNELS + first_channel + channel;
    }
    __device__ int cells_here() const {
        return min(cells - first_cell, index_t(TRANSPOSE_CELLS));
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    to_channels_last(const Geometry geometry, const data_t *__restrict__ x,
                     data_t *__restrict__ image) {
    __shared__ data_t values[TRANSPOSE_CHANNELS][TRANSPOSE_CELLS + 1];
    const Block block(geometry);
    const unsigned across = threadIdx.x % TRANSPOSE_CELLS, first = threadIdx.x / TRANSPOSE_CELLS;
    const Pixel pixel(geometry, block.first_cell + across);
    x += block.image * geometry.x.image + (block.first_channel + index_t(first)) * geometry.x.channel +
         pixel.row * geometry.x.row + pixel.column * geometry.x.column;
    if (pixel.inside) {
#pragma unroll
        for (int pass = 0; pass < PASSES_OF_PIXELS; ++pass) {
            const int channel = pass * ROWS + first;
            if (is_row(channel) && block.has(channel)) {
                values[channel][across] = *x;
            }
            x += ROWS * geometry.x.channel;
        }
    } else {
#pragma unroll
        for (int pass = 0; pass < PASSES_OF_PIXELS; ++pass) {
            const int channel = pass * ROWS + first;
            if (is_row(channel)) {
                values[channel][across] = data_t{};
            }
        }
    }
    __syncthreads();
    const int channel = threadIdx.x % TRANSPOSE_CHANNELS, cell = threadIdx.x / TRANSPOSE_CHANNELS;
    if (cell >= STEP || !block.has(channel)) {
        return;
    }
    image += block.element(cell, channel);
    const int cells = block.cells_here();
#pragma unroll
    for (int pass = 0; pass < PASSES_OF_CHANNELS; ++pass) {
        if (cell + pass * STEP < cells) {
            image[index_t(pass * STEP) * CHANNELS] = values[channel][cell + pass * STEP];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    from_channels_last(const Geometry geometry, const compute_t *__restrict__ grad_image,
                       data_t *__restrict__ grad_x) {
    __shared__ compute_t values[TRANSPOSE_CHANNELS][TRANSPOSE_CELLS + 1];
    const Block block(geometry);
    const int channel = threadIdx.x % TRANSPOSE_CHANNELS, cell = threadIdx.x / TRANSPOSE_CHANNELS;
    if (cell < STEP && block.has(channel)) {
        grad_image += block.element(cell, channel);
        const int cells = block.cells_here();
#pragma unroll
        for (int pass = 0; pass < PASSES_OF_CHANNELS; ++pass) {
            if (cell + pass * STEP < cells) {
                values[channel][cell + pass * STEP] = grad_image[index_t(pass * STEP) * CHANNELS];
            }
        }
    }
    __syncthreads();
    const unsigned across = threadIdx.x % TRANSPOSE_CELLS, first = threadIdx.x / TRANSPOSE_CELLS;
    const Pixel pixel(geometry, block.first_cell + across);
    if (!pixel.inside) {
        return;
    }
    const index_t plane = geometry.height * geometry.width;
    grad_x += (block.image * CHANNELS + block.first_channel + first) * plane +
              pixel.row * geometry.width + pixel.column;
#pragma unroll
    for (int pass = 0; pass < PASSES_OF_PIXELS; ++pass) {
        const int channel = pass * ROWS + first;
        if (is_row(channel) && block.has(channel)) {
            narrow(values[channel][across], *grad_x);
        }
        grad_x += ROWS * plane;
    }
}
