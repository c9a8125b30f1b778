// One sampling point: where it is, its four corners and their weights. The border rule, stated once.
#pragma once

#include "geometry.cuh"

// A coordinate as a whole pixel and a fraction. The offset is split, not the location: the location's
// whole part stays exact at any distance from the origin, its fraction as exact as the offset.
struct Coordinate {
    index_t whole;
    compute_t fraction;
    bool inside;  // of the open interval (-1, size); false for NaN and for anything out of reach

    __device__ Coordinate(index_t base, compute_t shift, index_t size) {
        // In reach: base, an index, plus shift is one too. NaN fails the comparison.
        const compute_t reach = sizeof(index_t) == 4 ? compute_t(1 << 30) : compute_t(1ll << 62);
        const bool reachable = fabs(shift) < reach;
        const compute_t below = floor(shift);
        whole = base + (reachable ? index_t(below) : 0);
        fraction = shift - below;
        inside = reachable && whole < size && (whole >= 0 || (whole == -1 && fraction > 0));
    }
};

struct Point {
    Coordinate y, x;

    // Tap `tap` of one of the tile's pixels; `offset` is the first element of the launch.
    __device__ Point(const Geometry &geometry, const Tile &tile, const offset_t *offset, int tap,
                     int pixel)
        : y((geometry.first_row + tile.row_of(pixel)) * geometry.stride_y - geometry.pad_top +
                tap / KERNEL_WIDTH * geometry.dilation_y,
            shift(geometry, tile, offset, 2 * tap, pixel), geometry.height),
          x((geometry.first_column + tile.column_of(pixel)) * geometry.stride_x -
                geometry.pad_left + tap % KERNEL_WIDTH * geometry.dilation_x,
            shift(geometry, tile, offset, 2 * tap + 1, pixel), geometry.width) {}

    __device__ bool inside() const { return y.inside && x.inside; }

  private:
    __device__ static compute_t shift(const Geometry &geometry, const Tile &tile,
                                      const offset_t *offset, int channel, int pixel) {
        return widen(
            offset[tile.in(geometry.offset, index_t(tile.group) * 2 * TAPS + channel, pixel)]);
    }
};

// Weights of the corners 00, 01, 10, 11 (row, column).
struct alignas(4 * sizeof(compute_t)) Weights {
    compute_t at[4];
};

__device__ inline Weights bilinear_weights(compute_t y, compute_t x, compute_t factor) {
    const compute_t lower = y * factor, upper = (1 - y) * factor;
    return {{upper * (1 - x), upper * x, lower * (1 - x), lower * x}};
}

__device__ inline compute_t mask_of(const Geometry &geometry, const Tile &tile, const mask_t *mask,
                                    int tap, int pixel) {
#if MASKED
    return widen(mask[tile.in(geometry.mask, index_t(tile.group) * TAPS + tap, pixel)]);
#else
    return 1;
#endif
}
