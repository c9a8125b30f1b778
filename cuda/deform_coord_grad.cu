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
#include "dots.cuh"

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
            const data_t *column = grad_columns + first_column(geometry, tile, pixel, lane) +
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
                        in_column(geometry, tile, channel, at));
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
                store_total(dots, lane, totals[pixel * TAPS_AT_ONCE + tap]);
            }
        }
        __syncthreads();
        each_point(geometry, tile, taps, [&](int slot, int tap) {
            write_coordinates(geometry, tile, planned, cells[slot] >= 0, totals + slot,
                              fractions[0][slot], fractions[1][slot], first_tap + tap, grad_offset,
                              grad_mask);
        });
        if (first_tap + TAPS_AT_ONCE < TAPS) {
            __syncthreads();
        }
    }
}
