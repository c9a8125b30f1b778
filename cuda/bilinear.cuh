// One sampling point: where it is, its four corners and their weights. The border rule, stated once.
#pragma once

#include "geometry.cuh"

// A coordinate as a whole pixel and a fraction. The offset is split, not the location: the location's
// whole part stays exact at any distance from the origin, its fraction as exact as the offset.
struct Coordinate {
    index_t whole;
    compute_t fraction;
    bool inside;  // of the open interval (-1, size); false for NaN and infinities

    // An offset beyond the index type saturates, and the sum may wrap around: then it lies outside too,
    // since sizes and bases stay below a quarter of the type's range (_plan_gpu.py).
    __device__ Coordinate(index_t base, compute_t shift, index_t size)
        : whole(unsigned_t(base) + unsigned_t(floor_to<index_t>(shift))),
          fraction(shift - floor(shift)) {
        // Whole from -1 to size - 1; at -1 the fraction must be more than 0. NaN fails the comparison.
        inside = unsigned_t(whole) + 1 <= unsigned_t(size) &&
                 fraction > (whole < 0 ? compute_t(0) : compute_t(-1));
    }
};

// The sampling points of one output pixel.
class Sampler {
  public:
    __device__ Sampler(const Geometry &geometry, const Tile &tile, const offset_t *offset,
                       const mask_t *mask, int pixel)
        : geometry(geometry),
          y((geometry.first_row + tile.row_of(pixel)) * geometry.stride_y - geometry.pad_top),
          x((geometry.first_column + tile.column_of(pixel)) * geometry.stride_x -
            geometry.pad_left),
          offset(offset + tile.in(geometry.offset, index_t(tile.group) * 2 * TAPS, pixel)),
          mask(mask) {
#if MASKED
        this->mask += tile.in(geometry.mask, index_t(tile.group) * TAPS, pixel);
#endif
    }

    __device__ Coordinate row(int tap) const {
        return {y + index_t(unsigned(tap) / KERNEL_WIDTH) * geometry.dilation_y,
                widen(offset[index_t(2 * tap) * geometry.offset.channel]), geometry.height};
    }
    __device__ Coordinate column(int tap) const {
        return {x + index_t(unsigned(tap) % KERNEL_WIDTH) * geometry.dilation_x,
                widen(offset[index_t(2 * tap + 1) * geometry.offset.channel]), geometry.width};
    }
    __device__ compute_t factor(int tap) const {
#if MASKED
        return widen(mask[tap * geometry.mask.channel]);
#else
        return 1;
#endif
    }

  private:
    const Geometry &geometry;
    index_t y, x;  // where tap (0, 0) samples without an offset
    const offset_t *offset;
    const mask_t *mask;
};

// Weights of the corners 00, 01, 10, 11 (row, column).
struct alignas(4 * sizeof(compute_t)) Weights {
    compute_t at[4];
};

__device__ inline Weights bilinear_weights(compute_t y, compute_t x, compute_t factor) {
    const compute_t lower = y * factor, upper = (1 - y) * factor;
    return {{upper * (1 - x), upper * x, lower * (1 - x), lower * x}};
}
