// grad_columns, offset, mask -> grad_x: the adjoint of deform_im2col. Every column element is added,
// times mask and bilinear weight, to its four corners.
//
// The walk is deform_im2col's, loads and stores exchanged: sampling points into shared memory, then LANES
// threads a pixel. grad_x has the layout of the image's copy, in compute_t; its border collects what
// falls outside the image and is dropped by from_channels_last. VECTOR sums are one reduction where the
// architecture has it (numeric.cuh). Points outside the box add nothing: there may be many, and all of
// them would meet in one cell.
//
// Launch: as deform_im2col. Bytes per column element: read once; four additions in the cache.
#include "bilinear.cuh"

extern "C" __global__ void __launch_bounds__(BLOCK, 768 / BLOCK)
    deform_col2im(const Geometry geometry, const data_t *__restrict__ grad_columns,
                  const offset_t *__restrict__ offset, const mask_t *__restrict__ mask,
                  compute_t *__restrict__ grad_image) {
    __shared__ Weights weights[SAMPLES];
    __shared__ index_t cells[SAMPLES];
    const Tile tile;
    const Cells layout(geometry);
    const Sampler planned(geometry, tile, offset, mask, planned_pixel());
    const int pixel = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    for (int first_tap = 0; first_tap < TAPS; first_tap += TAPS_AT_ONCE) {
        const int taps = min(TAPS_AT_ONCE, TAPS - first_tap);
        each_point(geometry, tile, taps, [&](int slot, int tap) {
            const Coordinate y = planned.row(first_tap + tap), x = planned.column(first_tap + tap);
            const compute_t factor = planned.factor(first_tap + tap);
            weights[slot] = bilinear_weights(y.fraction, x.fraction, factor);
            cells[slot] = y.inside && x.inside ? layout.at(y.whole, x.whole) : -1;
        });
        __syncthreads();
        if (tile.holds(geometry, pixel)) {
            const data_t *column = grad_columns + first_column(geometry, tile, pixel, lane) +
                                   index_t(first_tap) * GROUP_CHANNELS;
            compute_t *corner = grad_image + tile.image * layout.count * CHANNELS +
                                tile.group * SHARED_CHANNELS + lane * VECTOR;
            for (int tap = 0; tap < taps; ++tap) {
                const index_t cell = cells[pixel * TAPS_AT_ONCE + tap];
                if (cell < 0) {
                    continue;
                }
                const Weights weight = weights[pixel * TAPS_AT_ONCE + tap];
                each_vector(lane, [&](int channel, int at) {
                    const auto grad = load<VECTOR>(
                        column + index_t(tap) * GROUP_CHANNELS +
                        in_column(geometry, tile, channel, at));
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        compute_t share[VECTOR];
#pragma unroll
                        for (int j = 0; j < VECTOR; ++j) {
                            share[j] = weight.at[i] * widen(grad.at[j]);
                        }
                        add_atomically(
                            corner + cell + at + i / 2 * layout.pitch + i % 2 * CHANNELS, share);
                    }
                });
            }
        }
        if (first_tap + TAPS_AT_ONCE < TAPS) {
            __syncthreads();
        }
    }
}
