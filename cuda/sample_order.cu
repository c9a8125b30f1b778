// offset -> the sampling points ordered by the cell they start from, for deform_backward_sorted.
//
// Points are counted cell by cell; each learns how many came before it (count_samples). The counts turn
// into places to start from (start_cells), and each point writes its number there (order_samples). The
// stretches of cells, and the points of a cell, come in the order in which threads happen to run.
// Instructions a point: 46 to count, 24 to order; a column element with 64 channels: 1.2.
//
// Where sums must not depend on that, the points of a cell are put in the order of their numbers
// (rank_samples): each looks how many of its cell come before it. With nine points a cell that is 119
// instructions a point, with 25 of a 5x5 kernel 199, and nothing is shared; but a cell of n points takes
// n^2, so a chunk has no more than 2^20 in one image and deformable group (_cut_gpu.py): some tenths of a
// second, by estimate, where one cell has them all. Sorting networks in registers would take a third
// for the cells that are small, and this besides for the others.
//
// Launch: count_samples as a kernel whose threads are ALONE; the others: 256 threads, four cells or one
// point each. `counts` has what a Span reads: `cells` elements, 0 before, one of 0, the stretches' ends.
#include "order.cuh"

constexpr int THREADS = 256;
constexpr int CELLS = STRETCH / THREADS;  // of a thread

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
        counts[cells + 1 + blockIdx.x] = start + before;
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

extern "C" __global__ void __launch_bounds__(THREADS)
    rank_samples(int samples, int cells, const int *__restrict__ starts,
                 const Place *__restrict__ places, const int *__restrict__ order,
                 int *__restrict__ ranked) {
    const int at = blockIdx.x * THREADS + threadIdx.x;
    if (at < samples) {
        const int sample = order[at];
        const Span span(starts, cells, places[sample].cell);
        int place = span.first;
#pragma unroll 4
        for (int other = span.first; other < span.last; ++other) {
            place += order[other] < sample;
        }
        ranked[place] = sample;
    }
}
