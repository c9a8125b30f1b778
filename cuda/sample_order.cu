// offset -> the sampling points ordered by the cell they start from, for deform_backward_sorted.
//
// Points are counted cell by cell; each learns how many came before it (count_samples). The counts turn
// into places to start from (start_cells), and each point writes its number there (order_samples). The
// cells of 1024 neighbours follow one another; these stretches, and the points of a cell, come in the
// order in which threads happen to run. A point's number is ((image, deformable group) * K + tap) *
// pixels + pixel, so that neighbours read and write side by side. Instructions a point: 46 to
// count, 24 to order; a column element with 64 channels: 1.2.
//
// Launch: count_samples as a kernel whose threads are ALONE; start_cells, order_samples: 256 threads, four
// cells or one point each. `counts` has one element more than there are cells, 0 before.
#include "bilinear.cuh"

constexpr int THREADS = 256;
constexpr int CELLS = 4;  // of a thread

struct alignas(8) Place {
    int cell, rank;
};

extern "C" __global__ void __launch_bounds__(BLOCK)
    count_samples(const Geometry geometry, const offset_t *__restrict__ offset,
                  int *__restrict__ counts, Place *__restrict__ places) {
    const Tile tile;
    const int pixel = threadIdx.x;
    if (!tile.holds(geometry, pixel)) {
        return;
    }
    const int pitch = geometry.width + 1, cells = (geometry.height + 3) * pitch;
    const int pixels = geometry.rows * geometry.columns;
    const int images = tile.image * DEFORMABLE_GROUPS + tile.group;
    counts += images * cells;
    const int at = tile.row_of(pixel) * geometry.columns + tile.column_of(pixel);
    places += images * TAPS * pixels + at;
    // Points outside go to the two last rows, where no other points are. In one cell they would wait for
    // each other; among the others, threads with and without work would share their warps.
    const int outside = cells - 1 - at % (2 * pitch);
    each_tap(geometry, tile, offset, nullptr, [&](const Sampler &sampler) {
        const Coordinate y = sampler.row(), x = sampler.column();
        const int cell = y.inside && x.inside ? (y.whole + 1) * pitch + x.whole + 1 : outside;
        *places = {images * cells + cell, atomicAdd(counts + cell, 1)};
        places += pixels;
    });
}

extern "C" __global__ void __launch_bounds__(THREADS) start_cells(int cells, int *__restrict__ counts) {
    __shared__ int sums[THREADS];
    __shared__ int start;
    const int first = (blockIdx.x * THREADS + threadIdx.x) * CELLS;
    int own[CELLS], sum = 0;
#pragma unroll
    for (int i = 0; i < CELLS; ++i) {
        own[i] = sum;
        sum += first + i < cells ? counts[first + i] : 0;
    }
    sums[threadIdx.x] = sum;
    int before = sum;
    for (int distance = 1; distance < THREADS; distance *= 2) {
        __syncthreads();
        const int left = threadIdx.x >= distance ? sums[threadIdx.x - distance] : 0;
        __syncthreads();
        before += left;
        sums[threadIdx.x] = before;
    }
    if (threadIdx.x == THREADS - 1) {
        start = atomicAdd(counts + cells, before);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < CELLS; ++i) {
        if (first + i < cells) {
            counts[first + i] = start + before - sum + own[i];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    order_samples(int samples, const int *__restrict__ starts, const Place *__restrict__ places,
                  int *__restrict__ order) {
    const int sample = blockIdx.x * THREADS + threadIdx.x;
    if (sample < samples) {
        const Place place = places[sample];
        order[starts[place.cell] + place.rank] = sample;
    }
}
