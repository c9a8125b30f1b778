// The four dot products s_ab of grad_columns with the corners of a sampling point, and what follows from
// them: the gradients of offset and mask (formulas in deform_coord_grad.cu).
#pragma once

#include "bilinear.cuh"

// Sums `dots` over the LANES threads of a pixel: thread `lane` is left with total `first_dot(lane)` in
// dots[0], with two lanes also the next one in dots[1], alone with all four.
__device__ inline int first_dot(int lane) {
    return LANES == 1 ? 0 : LANES == 2 ? lane * 2 : lane % 2 * 2 + lane / 2 % 2;
}
__device__ inline void sum_over_lanes(compute_t (&dots)[4], int lane) {
    // The lanes of one pixel alone: those of its neighbour may be at another tap, or have no pixel.
    const unsigned members = ((1u << LANES) - 1) << (threadIdx.x % 32 / LANES * LANES);
    if (LANES > 1) {
        const bool upper = lane & 1;
        const compute_t give0 = upper ? dots[0] : dots[2], give1 = upper ? dots[1] : dots[3];
        dots[0] = (upper ? dots[2] : dots[0]) + __shfl_xor_sync(members, give0, 1);
        dots[1] = (upper ? dots[3] : dots[1]) + __shfl_xor_sync(members, give1, 1);
    }
    if (LANES > 2) {
        const bool upper = lane & 2;
        const compute_t give = upper ? dots[0] : dots[1];
        dots[0] = (upper ? dots[1] : dots[0]) + __shfl_xor_sync(members, give, 2);
    }
    if (LANES > 4) {
        dots[0] += __shfl_xor_sync(members, dots[0], 4);
    }
}
__device__ inline void store_total(const compute_t (&dots)[4], int lane, Weights &total) {
    if (lane < 4) {
#pragma unroll
        for (int i = 0; i < (LANES > 2 ? 1 : 4 / LANES); ++i) {
            total.at[first_dot(lane) + i] = dots[i];
        }
    }
}

// Writes the gradients of one point; outside the image they are 0 and there are no dots.
__device__ inline void write_coordinates(const Geometry &geometry, const Tile &tile,
                                         const Sampler &sampler, bool inside, const Weights *dot,
                                         compute_t y, compute_t x, int tap, offset_t *grad_offset,
                                         mask_t *grad_mask) {
    constexpr index_t MASK_CHANNELS = index_t(DEFORMABLE_GROUPS) * TAPS;
    const index_t plane = geometry.out_height * geometry.out_width;
    compute_t by_y = 0, by_x = 0, by_mask = 0;
    if (inside) {
        const Weights s = *dot;
        const compute_t factor = sampler.factor(tap);
        by_y = factor * ((1 - x) * (s.at[2] - s.at[0]) + x * (s.at[3] - s.at[1]));
        by_x = factor * ((1 - y) * (s.at[1] - s.at[0]) + y * (s.at[3] - s.at[2]));
        by_mask = (1 - y) * ((1 - x) * s.at[0] + x * s.at[1]) + y * ((1 - x) * s.at[2] + x * s.at[3]);
    }
    const index_t channel = index_t(tile.group) * TAPS + tap;
    if (grad_offset) {
        offset_t *to = grad_offset + 2 * channel * plane +
                       tile.in_output(geometry, 2 * MASK_CHANNELS, planned_pixel());
        narrow(by_y, to[0]);
        narrow(by_x, to[plane]);
    }
    if (grad_mask) {
        narrow(by_mask, grad_mask[channel * plane +
                                  tile.in_output(geometry, MASK_CHANNELS, planned_pixel())]);
    }
}
