// A sampling point along a direction: how its corners' weights, mask included, change when its offset moves
// by (ty, tx) and its mask by dmask. With weights m*v_a*h_b, v = (1 - fy, fy) and h = (1 - fx, fx),
//
//   (m*v_a*h_b)' = (m*v_a)' * h_b + m*v_a * h_b'    (m*v)' = dmask*v + m*(-ty, ty),  h' = (-tx, tx)
//
// The derivation is that of cupy_dcn/derivatives.py. The tile and its lanes are deform_im2col's, but every
// lane works out the points of its pixel for itself, so there is no shared memory and no barrier: about 60
// instructions a point, shared by a lane's channels. A point outside the box is left out altogether, its
// tangent is 0 whatever mask and direction are.
#pragma once

#include "bilinear.cuh"

// Of the directions of offset and mask, from the rectangle's first pixel on; see launch in _tangent_gpu.py.
struct DirectionStrides {
    Strides offset, mask;
};

// How offset and mask move; null where one does not.
struct Direction {
    const DirectionStrides strides;
    const offset_t *offset;
    const mask_t *mask;

    __device__ bool moves() const { return offset || mask; }
};

struct TangentPoint {
    Weights weights, tangents;
    compute_t factor, y, x;     // mask and fractions
    compute_t by_factor, by_y, by_x;  // and how they move
    index_t cell;  // first corner in the copy
    bool inside;

    __device__ TangentPoint(const Sampler &sampler, const Cells &layout, const Tile &tile,
                            const Direction &direction, int pixel, int tap)
        : factor(sampler.factor()), by_factor(0), by_y(0), by_x(0) {
        const Point point(sampler, layout, factor, 0);
        weights = point.weights;
        cell = point.cell;
        inside = point.inside;
        y = point.y;
        x = point.x;
        const int channel = tile.group * TAPS + tap;
        if (direction.offset) {
            const Strides &strides = direction.strides.offset;
            const offset_t *shift = direction.offset + tile.in(strides, 2 * channel, pixel);
            by_y = widen(shift[0]);
            by_x = widen(shift[strides.channel]);
        }
        if (direction.mask) {
            by_factor = widen(direction.mask[tile.in(direction.strides.mask, channel, pixel)]);
        }
        const compute_t lower = y * factor, upper = factor - lower;
        const compute_t by_lower = by_factor * y + factor * by_y, by_upper = by_factor - by_lower;
        tangents = {{by_upper * (1 - x) - upper * by_x, by_upper * x + upper * by_x,
                     by_lower * (1 - x) - lower * by_x, by_lower * x + lower * by_x}};
    }
};

// The points of a pixel, tap after tap: use(tap, point).
template <typename Use>
__device__ inline void each_tangent(const Geometry &geometry, const Tile &tile,
                                    const Cells &layout, const offset_t *offset,
                                    const mask_t *mask, const Direction &direction, int pixel,
                                    Use use) {
    Sampler sampler(geometry, tile, offset, mask, pixel, 0, 0);
#pragma unroll 1
    for (int tap = 0; tap < TAPS; ++tap) {
        use(tap, TangentPoint(sampler, layout, tile, direction, pixel, tap));
        sampler.step();
        if ((tap + 1) % KERNEL_WIDTH == 0) {
            sampler.next_row();
        }
    }
}

// Where corner K lies from corner 00.
template <int K>
__device__ inline index_t corner_step(index_t pitch) {
    return (K / 2) * pitch + (K % 2) * COPY_CHANNELS;
}
template <typename Use>
__device__ inline void each_corner(Use use) {
    use(Constant<0>{});
    use(Constant<1>{});
    use(Constant<2>{});
    use(Constant<3>{});
}
