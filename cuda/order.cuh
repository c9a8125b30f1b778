// Sampling points ordered by the cell they start from, as sample_order.cu leaves them.
//
// A point's number is ((image, deformable group) * K + tap) * pixels + pixel, so that neighbours read and
// write side by side. Cells are numbered (image, deformable group), row, column of the image's copy.
#pragma once

#include "bilinear.cuh"

constexpr int STRETCH = 1024;  // cells whose points follow one another

// Where a cell's points are in the order. `starts` has where each cell's begin, one element more, and
// where each stretch ends.
struct Span {
    int first, last;

    __device__ Span(const int *__restrict__ starts, int cells, int cell)
        : first(starts[cell]),
          last(starts[cell % STRETCH == STRETCH - 1 || cell == cells - 1
                          ? cells + 1 + cell / STRETCH
                          : cell + 1]) {}
};

// The point of a number, and the plane (image, deformable group, tap) it is in.
struct Sample {
    Tile tile;
    int tap, plane;

    __device__ static Sample of(const Geometry &geometry, unsigned number) {
        const unsigned pixels = geometry.rows * geometry.columns, plane = number / pixels;
        const unsigned pixel = number - plane * pixels, row = pixel / unsigned(geometry.columns);
        const unsigned images = plane / TAPS;
        return {Tile(images / DEFORMABLE_GROUPS, row, pixel - row * geometry.columns,
                     images % DEFORMABLE_GROUPS),
                int(plane % TAPS), int(plane)};
    }
    __device__ Sampler sampler(const Geometry &geometry, const offset_t *offset,
                               const mask_t *mask) const {
        return {geometry, tile, offset, mask, 0, tap / KERNEL_WIDTH, tap % KERNEL_WIDTH};
    }
    // First element of its columns.
    __device__ index_t column(const Geometry &geometry) const {
        return first_column(geometry, tile, 0, 0) + tap * tap_stride(geometry);
    }
};

// The vectors of a lane that it keeps something of, at most HELD from a step on: use(i, at), where i counts
// them and at is an element of the copy.
template <int HELD, typename Use>
__device__ inline void each_held(int step, int lane, Use use) {
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        const int at = (step + i) * LANES * VECTOR;
        if ((STEPS % HELD == 0 || step + i < STEPS) &&
            (!RAGGED || at + lane * VECTOR < COPY_SHARED)) {
            use(i, at);
        }
    }
}
