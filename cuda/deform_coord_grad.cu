// grad_columns, x, offset, mask -> grad_offset, grad_mask. With s_ab the dot product over channels of
// grad_columns and corner ab of a sampling point, and (fy, fx) its fraction:
//
//   grad_dy   = mask * ((1 - fx) * (s_10 - s_00) + fx * (s_11 - s_01))
//   grad_dx   = mask * ((1 - fy) * (s_01 - s_00) + fy * (s_11 - s_10))
//   grad_mask = (1 - fy) * ((1 - fx) * s_00 + fx * s_01) + fy * ((1 - fx) * s_10 + fx * s_11)
//
// The walk is deform_im2col's. Each lane adds up the four dots over its channels; the LANES of a pixel
// are summed by shuffles that halve the number of dots while they double the number of lanes summed
// over. The totals go through shared memory to one thread a point, which writes the gradients so that
// neighbouring threads write neighbouring pixels.
//
// Launch: as deform_im2col. Bytes per column element: read once; four corners from the caches.
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

extern "C" __global__ void __launch_bounds__(BLOCK, 768 / BLOCK)
    deform_coord_grad(const Geometry geometry, const data_t *__restrict__ grad_columns,
                      const data_t *__restrict__ image, const offset_t *__restrict__ offset,
                      const mask_t *__restrict__ mask, offset_t *__restrict__ grad_offset,
                      mask_t *__restrict__ grad_mask) {
    __shared__ Weights totals[SAMPLES];  // the four dots
    __shared__ compute_t fractions[2][SAMPLES];
    __shared__ index_t cells[SAMPLES];
    const Tile tile;
    const Cells layout(geometry);
    const Sampler planned(geometry, tile, offset, mask, planned_pixel());
    const int pixel = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    constexpr index_t MASK_CHANNELS = index_t(DEFORMABLE_GROUPS) * TAPS;
    const index_t plane = geometry.out_height * geometry.out_width;
    for (int first_tap = 0; first_tap < TAPS; first_tap += TAPS_AT_ONCE) {
        const int taps = min(TAPS_AT_ONCE, TAPS - first_tap);
        each_point(geometry, tile, taps, [&](int slot, int tap) {
            const Coordinate y = planned.row(first_tap + tap), x = planned.column(first_tap + tap);
            fractions[0][slot] = y.fraction;
            fractions[1][slot] = x.fraction;
            cells[slot] = y.inside && x.inside ? layout.at(y.whole, x.whole) : -1;
        });
        __syncthreads();
        if (tile.holds(geometry, pixel)) {
            const data_t *column = grad_columns + column_of_pixel(geometry, tile, pixel) +
                                   index_t(first_tap) * GROUP_CHANNELS;
            const data_t *corner = image + tile.image * layout.count * CHANNELS +
                                   tile.group * SHARED_CHANNELS + lane * VECTOR;
            for (int tap = 0; tap < taps; ++tap) {
                const index_t cell = cells[pixel * TAPS_AT_ONCE + tap];
                if (cell < 0) {
                    continue;
                }
                const data_t *above = corner + cell, *below = above + layout.pitch;
                compute_t dots[4] = {0, 0, 0, 0};
                each_vector(lane, [&](int channel, int at) {
                    const auto grad = load<VECTOR>(
                        column + index_t(tap) * GROUP_CHANNELS +
                        column_of_channel(geometry, tile.group * SHARED_CHANNELS + channel));
                    const auto v00 = load<VECTOR>(above + at);
                    const auto v01 = load<VECTOR>(above + at + CHANNELS);
                    const auto v10 = load<VECTOR>(below + at);
                    const auto v11 = load<VECTOR>(below + at + CHANNELS);
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i) {
                        const compute_t value = widen(grad.at[i]);
                        dots[0] += value * widen(v00.at[i]);
                        dots[1] += value * widen(v01.at[i]);
                        dots[2] += value * widen(v10.at[i]);
                        dots[3] += value * widen(v11.at[i]);
                    }
                });
                sum_over_lanes(dots, lane);
                if (lane < 4) {
                    compute_t *total = totals[pixel * TAPS_AT_ONCE + tap].at + first_dot(lane);
#pragma unroll
                    for (int i = 0; i < (LANES > 2 ? 1 : 4 / LANES); ++i) {
                        total[i] = dots[i];
                    }
                }
            }
        }
        __syncthreads();
        each_point(geometry, tile, taps, [&](int slot, int tap) {
            compute_t by_y = 0, by_x = 0, by_mask = 0;
            if (cells[slot] >= 0) {
                const Weights dot = totals[slot];
                const compute_t y = fractions[0][slot], x = fractions[1][slot];
                const compute_t factor = planned.factor(first_tap + tap);
                by_y = factor * ((1 - x) * (dot.at[2] - dot.at[0]) + x * (dot.at[3] - dot.at[1]));
                by_x = factor * ((1 - y) * (dot.at[1] - dot.at[0]) + y * (dot.at[3] - dot.at[2]));
                by_mask = (1 - y) * ((1 - x) * dot.at[0] + x * dot.at[1]) +
                          y * ((1 - x) * dot.at[2] + x * dot.at[3]);
            }
            const index_t channel = index_t(tile.group) * TAPS + first_tap + tap;
            if (grad_offset) {
                offset_t *to = grad_offset + 2 * channel * plane +
                               tile.in_output(geometry, 2 * MASK_CHANNELS, planned_pixel());
                narrow(by_y, to[0]);
                narrow(by_x, to[plane]);
            }
            if (grad_mask) {
                narrow(by_mask, grad_mask[channel * plane + tile.in_output(geometry, MASK_CHANNELS,
                                                                           planned_pixel())]);
            }
        });
        if (first_tap + TAPS_AT_ONCE < TAPS) {
            __syncthreads();
        }
    }
}
