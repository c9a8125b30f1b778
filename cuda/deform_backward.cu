// grad_columns, x, offset, mask -> grad_x, grad_offset, grad_mask and the columns, in one pass: deform_col2im,
// deform_coord_grad and deform_im2col joined.
//
// Each sampling point is worked out once, each corner and each element of grad_columns read once. The
// sampled columns, for the weight's gradient, take the place of grad_columns: a thread has read an
// element before it writes there. Instructions a column element of a backward of all gradients, the
// transposes included, in float32:
//
//   x, taps, deformable groups              three passes    one
//   (2, 64, 56, 56), 3x3                            38.5   29.0
//   (1, 256, 32, 32), 3x3                           28.2   23.3
//   (1, 16, 128, 128), 3x3                          63.6   50.6
//   (1, 3, 128, 128), 5x5                            180    101
//   (2, 64, 56, 56), 3x3, 8 groups                   102   59.5
//
// Registers: 80 at the most leave room for three blocks of 256, and all common layers (3x3, 1x1, 5x5; 64
// and 256 channels; all dtypes) fit without a spill: 60 to 80. For that the loop over a lane's vectors
// is unrolled only where it has two rounds and all taps are held at once. Unrolled everywhere, up to 32
// bytes spill; with two blocks (512 / BLOCK) there are up to 128 registers, and spills in 5x5 halves yet.
//
// Launch: as deform_im2col. Bytes per column element: read once, written once; four corners from the
// caches; four additions in the cache.
#include "dots.cuh"

#ifndef GRAD_X
#define GRAD_X 1           // whether grad_image is wanted
#define GRAD_COORDINATES 1 // whether grad_offset and grad_mask are
#define COLUMNS 1          // whether the columns are
#endif

// How often the loop over a lane's vectors is unrolled; see above.
constexpr int UNROLLED = STEPS == 2 && TAPS_AT_ONCE == TAPS ? 2 : 1;

// FACTORED: as in deform_im2col.
template <bool FACTORED>
__device__ void walk(const Geometry &geometry, const Tile &tile, const Sampler &sampler, data_t *column,
                     const data_t *corner, compute_t *grad_corner, const Weights *weights,
                     const index_t *cells, Weights *totals, int first_tap, int taps) {
    const int pixel = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const index_t pitch = Cells(geometry).pitch;
    column += first_column(geometry, tile, pixel, lane) + index_t(first_tap) * GROUP_CHANNELS;
    corner += tile.group * SHARED_CHANNELS + lane * VECTOR;
    grad_corner += tile.group * SHARED_CHANNELS + lane * VECTOR;
    asm("" : "+l"(column));
    asm("" : "+l"(corner));
    asm("" : "+l"(grad_corner));
    for (int tap = 0; tap < taps; ++tap, column += GROUP_CHANNELS) {
        const int slot = pixel * TAPS_AT_ONCE + tap;
        const index_t cell = cells[slot];
        compute_t factor = 1;
        if (FACTORED) {
            const compute_t value = sampler.factor(first_tap + tap);
            factor = isfinite(value) ? compute_t(1) : value;
        }
        if (cell < 0) {
            if (COLUMNS) {
                each_vector(lane, [&](int channel, int at) {
                    Vector<data_t, VECTOR> outside;
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i) {
                        narrow(FACTORED ? factor * 0 : compute_t(0), outside.at[i]);
                    }
                    store(column + in_column(geometry, tile, channel, at), outside);
                });
            }
            continue;
        }
        const Weights weight = weights[slot];
        const data_t *above = corner + cell, *below = above + pitch;
        compute_t *grad_above = grad_corner + cell, *grad_below = grad_above + pitch;
        compute_t dots[4] = {0, 0, 0, 0};
        each_vector<UNROLLED>(lane, [&](int channel, int at) {
            data_t *place = column + in_column(geometry, tile, channel, at);
            const auto grad = load<VECTOR>(place);
            compute_t wide[VECTOR];
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                wide[i] = widen(grad.at[i]);
            }
            if (GRAD_COORDINATES || COLUMNS) {
                const auto v00 = load<VECTOR>(above + at);
                const auto v01 = load<VECTOR>(above + at + CHANNELS);
                const auto v10 = load<VECTOR>(below + at);
                const auto v11 = load<VECTOR>(below + at + CHANNELS);
                Vector<data_t, VECTOR> sampled;
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) {
                    const compute_t corners[4] = {widen(v00.at[i]), widen(v01.at[i]),
                                                  widen(v10.at[i]), widen(v11.at[i])};
                    compute_t value = 0;
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        dots[k] += wide[i] * corners[k];
                        value += weight.at[k] * corners[k];
                    }
                    narrow(FACTORED ? factor * value : value, sampled.at[i]);
                }
                if (COLUMNS) {
                    store(place, sampled);
                }
            }
            if (GRAD_X) {
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    compute_t share[VECTOR];
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i) {
                        share[i] = (FACTORED ? factor * weight.at[k] : weight.at[k]) * wide[i];
                    }
                    add_atomically((k < 2 ? grad_above : grad_below) + at + k % 2 * CHANNELS, share);
                }
            }
        });
        if (GRAD_COORDINATES) {
            sum_over_lanes(dots, lane);
            store_total(dots, lane, totals[slot]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 768 / BLOCK)
    deform_backward(const Geometry geometry, data_t *columns, const data_t *__restrict__ image,
                    const offset_t *__restrict__ offset, const mask_t *__restrict__ mask,
                    compute_t *__restrict__ grad_image, offset_t *__restrict__ grad_offset,
                    mask_t *__restrict__ grad_mask) {
    __shared__ Weights weights[SAMPLES], totals[GRAD_COORDINATES ? SAMPLES : 1];
    __shared__ compute_t fractions[2][GRAD_COORDINATES ? SAMPLES : 1];
    __shared__ index_t cells[SAMPLES];
    const Tile tile;
    const Cells layout(geometry);
    for (int first_tap = 0; first_tap < TAPS; first_tap += TAPS_AT_ONCE) {
        const int taps = min(TAPS_AT_ONCE, TAPS - first_tap);
        int factored = 0, point = planned_pixel();
        if (STEPS == 1 && TAPS_AT_ONCE < TAPS) {
            // Worked out anew in every round: kept from one to the next, it takes registers of the walk.
            asm volatile("" : "+r"(point));
        }
        const Sampler planned(geometry, tile, offset, mask, point);
        each_point(geometry, tile, taps, [&](int slot, int tap) {
            const Coordinate y = planned.row(first_tap + tap), x = planned.column(first_tap + tap);
            compute_t factor = planned.factor(first_tap + tap);
            if (!isfinite(factor)) {
                factored = 1;
                factor = 1;
            }
            weights[slot] = bilinear_weights(y.fraction, x.fraction, factor);
            cells[slot] = y.inside && x.inside ? layout.at(y.whole, x.whole) : -1;
            if (GRAD_COORDINATES) {
                fractions[0][slot] = y.fraction;
                fractions[1][slot] = x.fraction;
            }
        });
        factored = __syncthreads_or(factored);
        if (tile.holds(geometry, threadIdx.x / LANES)) {
            const Sampler sampler(geometry, tile, offset, mask, threadIdx.x / LANES);
            const index_t first = tile.image * layout.count * CHANNELS;
            if (MASKED && factored) {
                walk<true>(geometry, tile, sampler, columns, image + first, grad_image + first,
                           weights, cells, totals, first_tap, taps);
            } else {
                walk<false>(geometry, tile, sampler, columns, image + first, grad_image + first,
                            weights, cells, totals, first_tap, taps);
            }
        }
        __syncthreads();
        if (GRAD_COORDINATES) {
            // No barrier behind it: the next round's points are put where a thread's own have been.
            each_point(geometry, tile, taps, [&](int slot, int tap) {
                write_coordinates(geometry, tile, planned, cells[slot] >= 0, totals + slot,
                                  fractions[0][slot], fractions[1][slot], first_tap + tap,
                                  grad_offset, grad_mask);
            });
        }
    }
}
