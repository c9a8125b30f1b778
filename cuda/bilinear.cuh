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
    // since sizes and bases stay below a quarter of the type's range (_cut_gpu.py).
    __device__ Coordinate(index_t base, compute_t shift, index_t size)
        : whole(unsigned_t(base) + unsigned_t(floor_to<index_t>(shift))),
          fraction(shift - floor(shift)) {
        // Whole from -1 to size - 1; at -1 the fraction must be more than 0. NaN fails the comparison.
        inside = unsigned_t(whole) + 1 <= unsigned_t(size) &&
                 fraction > (whole < 0 ? compute_t(0) : compute_t(-1));
    }
};

// Weights of the corners 00, 01, 10, 11 (row, column).
struct alignas(4 * sizeof(compute_t)) Weights {
    compute_t at[4];
};

__device__ inline Weights bilinear_weights(compute_t y, compute_t x, compute_t factor) {
    const compute_t lower = y * factor, upper = factor - lower;
    const compute_t upper_right = upper * x, lower_right = lower * x;
    return {{upper - upper_right, upper_right, lower - lower_right, lower_right}};
}

// The mask's values of one output pixel and deformable group, from tap 0 on.
__device__ inline const mask_t *mask_of(const Geometry &geometry, const Tile &tile,
                                        const mask_t *mask, int pixel) {
    return MASKED ? mask + tile.in(geometry.mask, index_t(tile.group) * TAPS, pixel) : mask;
}
__device__ inline compute_t factor_at(const mask_t *mask) {
    return MASKED ? compute_t(widen(*mask)) : compute_t(1);
}

// A mask that is infinite, or no number, must multiply the sampled value, 0 outside included, not its
// parts, which would be 0 * inf. Such a factor is kept apart from the weights: of a factor, what goes into
// the weights and what is left to multiply by.
__device__ inline compute_t finite_part(compute_t factor) {
    return isfinite(factor) ? factor : compute_t(1);
}
__device__ inline compute_t other_part(compute_t factor) {
    return isfinite(factor) ? compute_t(1) : factor;
}

// The sampling points of one output pixel, tap after tap along a row of the kernel.
class Sampler {
  public:
    __device__ Sampler(const Geometry &geometry, const Tile &tile, const offset_t *offset,
                       const mask_t *mask, int pixel, int row, int column)
        : height(kept(geometry.height)),
          width(kept(geometry.width)),
          dilation_y(geometry.dilation_y),
          dilation_x(kept(geometry.dilation_x)),
          offset_step(geometry.offset.channel),
          mask_step(geometry.mask.channel),
          y(tile.row_of(pixel) * geometry.stride_y + geometry.origin_y + row * geometry.dilation_y),
          x(tile.column_of(pixel) * geometry.stride_x + geometry.origin_x +
            column * geometry.dilation_x),
          offset_y(offset + tile.in(geometry.offset,
                                    2 * (tile.group * TAPS + row * KERNEL_WIDTH + column), pixel)),
          offset_x(offset_y + offset_step),
          mask(mask_of(geometry, tile, mask, pixel)) {
        this->mask += index_t(row * KERNEL_WIDTH + column) * geometry.mask.channel;
    }

    __device__ Coordinate row() const { return {y, widen(*offset_y), height}; }
    __device__ Coordinate column() const { return {x, widen(*offset_x), width}; }
    __device__ compute_t factor() const { return factor_at(mask); }

    // On to the next tap of the row, or from its end to the first of the next row.
    __device__ void step() {
        x += dilation_x;
        offset_y = offset_x + offset_step;
        offset_x = offset_y + offset_step;
        mask = mask + mask_step;
    }
    __device__ void next_row() {
        x -= KERNEL_WIDTH * dilation_x;
        y += dilation_y;
    }

  private:
    const index_t height, width, dilation_y, dilation_x;
    const Step<const offset_t> offset_step;
    const Step<const mask_t> mask_step;
    index_t y, x;  // where the tap samples without an offset
    const offset_t *offset_y, *offset_x;
    const mask_t *mask;
};

// A sampling point as it is held for the walk over its channels.
struct Point {
    Weights weights;
    index_t cell;  // its first corner in the copy
    bool inside;
    compute_t y, x;  // fractions

    // OUTSIDE: the cell of points outside the box; their weights are finite.
    __device__ Point(const Sampler &sampler, const Cells &layout, compute_t factor, index_t outside) {
        const Coordinate row = sampler.row(), column = sampler.column();
        inside = row.inside && column.inside;
        y = inside ? row.fraction : compute_t(0);
        x = inside ? column.fraction : compute_t(0);
        weights = bilinear_weights(y, x, factor);
        cell = inside ? layout.at(row.whole, column.whole) : outside;
    }
};

// A part of the taps at all of the block's pixels, spread over its threads: use(pixel, row, slot). A thread
// takes rows of the kernel at one pixel, its neighbours those of the next pixels; slot is the place of
// the row's first point in shared memory, the others follow.
template <typename Use>
__device__ inline void each_row(const Geometry &geometry, const Tile &tile, const Part &part, Use use) {
    const int pixel = threadIdx.x % TILE;
    if (tile.holds(geometry, pixel)) {
        for (int row = threadIdx.x / TILE; row < part.rows; row += LANES) {
            use(pixel, part.row + row, pixel * TAPS_AT_ONCE + row * part.columns);
        }
    }
}
// The points of such a row: use(column), unrolled where it is short and whole.
template <typename Use>
__device__ inline void each_column(const Part &part, Use use) {
#pragma unroll(KERNEL_WIDTH <= 5 && COLUMNS_AT_ONCE == KERNEL_WIDTH ? KERNEL_WIDTH : 1)
    for (int column = 0; column < part.columns; ++column) {
        use(column);
    }
}

// The sampling points of a part of the taps: use(slot, sampler).
template <typename Use>
__device__ inline void each_point(const Geometry &geometry, const Tile &tile, const Part &part,
                                  const offset_t *offset, const mask_t *mask, Use use) {
    each_row(geometry, tile, part, [&](int pixel, int row, int slot) {
        Sampler sampler(geometry, tile, offset, mask, pixel, row, part.column);
        each_column(part, [&](int column) {
            use(slot + column, sampler);
            sampler.step();
        });
    });
}

// The same for a thread ALONE at its pixel, all taps one after the other: use(sampler).
template <typename Use>
__device__ inline void each_tap(const Geometry &geometry, const Tile &tile, const offset_t *offset,
                                const mask_t *mask, Use use) {
    Sampler sampler(geometry, tile, offset, mask, threadIdx.x, 0, 0);
#pragma unroll 1
    for (int row = 0; row < KERNEL_HEIGHT; ++row) {
#pragma unroll(KERNEL_WIDTH <= 5 && LIVE <= 4 ? KERNEL_WIDTH : 1)
        for (int column = 0; column < KERNEL_WIDTH; ++column) {
            use(sampler);
            sampler.step();
        }
        sampler.next_row();
    }
}
