// grad_columns, x, offset, mask -> grad_x, grad_offset, grad_mask and the columns, as many of them as are
// wanted: what deform_col2im, deform_coord_grad and deform_backward have in common.
//
// The walk is deform_im2col's. Each sampling point is worked out once, each corner and each element of
// grad_columns read once. grad_x has the layout of the image's copy, in compute_t; its border collects
// what falls outside the image and is dropped by from_channels_last. VECTOR sums are one reduction where
// the architecture has it (numeric.cuh). Points outside the box add nothing: there may be many, and all
// of them would meet in one cell. The columns, for the weight's gradient, take the place of
// grad_columns: a thread has read an element before it writes there. Each lane adds up the four dots over
// its channels; the LANES of a pixel are summed by shuffles that halve the number of dots while they
// double the number of lanes summed over. The totals go through shared memory to one thread a point,
// which writes the gradients so that neighbouring threads write neighbouring pixels.
#pragma once

#ifndef GRAD_X
#define GRAD_X 1 // which of them are wanted
#define GRAD_OFFSET 1
#define GRAD_MASK 1
#define COLUMNS 1
#endif
#include "dots.cuh"

constexpr bool GRAD_COORDINATES = GRAD_OFFSET || GRAD_MASK;

// How often the loop over a lane's vectors is unrolled; see deform_backward.cu.
constexpr int UNROLLED = STEPS == 2 && TAPS_AT_ONCE == TAPS ? 2 : 1;

// The column elements of a lane at a point outside: 0, times a factor that is infinite or no number.
__device__ inline void store_outside(const Geometry &geometry, const Tile &tile, data_t *column,
                                     int lane, compute_t factor) {
    each_vector(lane, [&](int channel, int at) {
        Vector<data_t, VECTOR> outside;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            narrow(factor * 0, outside.at[i]);
        }
        store_column(geometry, tile, column, lane, channel, outside);
    });
}

// One vector of channels of a point inside: adds to the dots, calls use(sampled) with what is sampled, and
// adds the shares of wide, the gradients of its columns. FACTORED: times factor. AT: how far it lies from
// where the pointers are.
template <bool FACTORED, int AT = 0, typename Use>
__device__ inline void pull_vector(const Weights &weight, const data_t *above, const data_t *below,
                                   compute_t *grad_above, compute_t *grad_below,
                                   const compute_t (&wide)[VECTOR], compute_t factor,
                                   compute_t (&dots)[4], Use use) {
    if (GRAD_COORDINATES || COLUMNS) {
        const auto v00 = load<VECTOR>(above + AT);
        const auto v01 = load<VECTOR>(above + AT + COPY_CHANNELS);
        const auto v10 = load<VECTOR>(below + AT);
        const auto v11 = load<VECTOR>(below + AT + COPY_CHANNELS);
        compute_t sampled[VECTOR] = {};
#pragma unroll
        for (int i = 0; i < LIVE; ++i) {
            const compute_t corners[4] = {widen(v00.at[i]), widen(v01.at[i]), widen(v10.at[i]),
                                          widen(v11.at[i])};
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                dots[k] += wide[i] * corners[k];
                sampled[i] += weight.at[k] * corners[k];
            }
        }
        use(sampled);
    }
    if (GRAD_X) {
        const auto add = [&](auto k, compute_t *to) {
            compute_t shares[VECTOR] = {};
#pragma unroll
            for (int i = 0; i < LIVE; ++i) {
                shares[i] = weight.at[k.value] * (FACTORED ? factor * wide[i] : wide[i]);
            }
            add_atomically<AT + k.value % 2 * COPY_CHANNELS>(to, shares);
        };
        add(Constant<0>{}, grad_above);
        add(Constant<1>{}, grad_above);
        add(Constant<2>{}, grad_below);
        add(Constant<3>{}, grad_below);
    }
}

// The channels of one point inside that are a lane's. FACTORED: factor multiplies what is sampled. Adds to
// the dots, and to the total of grad_columns times what is sampled, without the factor.
template <bool FACTORED>
__device__ inline void pull_point(const Geometry &geometry, const Tile &tile, const Weights weight,
                                  data_t *column, const data_t *above, compute_t *grad_above,
                                  index_t pitch, compute_t factor, int lane, compute_t (&dots)[4],
                                  compute_t &total) {
    const data_t *below = above + pitch;
    compute_t *grad_below = grad_above + pitch;
    each_vector<UNROLLED>(lane, [&](int channel, int at) {
        const auto grad = load_column(geometry, tile, column, lane, channel);
        compute_t wide[VECTOR] = {};
#pragma unroll
        for (int i = 0; i < LIVE; ++i) {
            wide[i] = widen(grad.at[i]);
        }
        pull_vector<FACTORED>(weight, above + at, below + at, grad_above + at, grad_below + at, wide,
                              factor, dots, [&](const compute_t (&sampled)[VECTOR]) {
            compute_t stored[VECTOR] = {};
#pragma unroll
            for (int i = 0; i < LIVE; ++i) {
                total += wide[i] * sampled[i];
                stored[i] = FACTORED ? factor * sampled[i] : sampled[i];
            }
            if (COLUMNS) {
                store_column(geometry, tile, column, lane, channel, narrowed(stored));
            }
        });
    });
}

// All points of a pixel that are held in shared memory.
template <bool FACTORED>
__device__ void pull_pixel(const Geometry &geometry, const Tile &tile, const mask_t *mask,
                           data_t *column, const data_t *image, compute_t *grad_image,
                           Weights *weights, const index_t *cells, const Part &part) {
    // On the rare path nothing is worked out ahead of it.
    const int thread = FACTORED ? kept(int(threadIdx.x)) : threadIdx.x;
    const int pixel = unsigned(thread) / LANES, lane = unsigned(thread) % LANES;
    const LaneSums lanes(lane);
    const index_t pitch = geometry.copy_pitch;
    mask = mask_of(geometry, tile, mask, pixel) + part.first() * geometry.mask.channel;
    column += first_column(geometry, tile, pixel, lane) + part.first() * tap_stride(geometry);
    image = kept(image + lane * VECTOR);
    grad_image = kept(grad_image + lane * VECTOR);
    column = kept(column);
#pragma unroll(!FACTORED && TAPS <= 9 && TAPS_AT_ONCE == TAPS && STEPS * VECTOR <= 4 ? TAPS : 1)
    for (int tap = 0; tap < part.taps(); ++tap, column += tap_stride(geometry)) {
        const int slot = pixel * TAPS_AT_ONCE + tap;
        const index_t cell = cells[slot];
        const compute_t factor =
            FACTORED ? other_part(factor_at(mask + tap * geometry.mask.channel)) : compute_t(1);
        if (cell < 0) {
            if (COLUMNS) {
                store_outside(geometry, tile, column, lane, factor);
            }
            continue;
        }
        compute_t dots[4] = {0, 0, 0, 0}, total = 0;
        pull_point<FACTORED>(geometry, tile, weights[slot], column, image + cell, grad_image + cell,
                             pitch, factor, lane, dots, total);
        if (GRAD_COORDINATES) {
            lanes.sum<false, true>(dots, weights[slot]);
        }
    }
}

// The gradients of a part's coordinates, from the dots of its points; a thread writes those it worked out
// the points of.
constexpr int FRACTIONS = GRAD_COORDINATES ? SAMPLES : 1;

__device__ inline void write_coordinates(const Geometry &geometry, const Tile &tile, const Part &part,
                                         const mask_t *mask, const Weights *dots,
                                         const compute_t (&fractions)[2][FRACTIONS],
                                         const index_t *cells, offset_t *grad_offset,
                                         mask_t *grad_mask) {
    each_row(geometry, tile, part, [&](int pixel, int row, int slot) {
        const int tap = row * KERNEL_WIDTH + part.column;
        CoordinateWriter writer(geometry, tile, grad_offset, grad_mask, pixel, tap);
        const mask_t *factor = mask_of(geometry, tile, mask, pixel) + tap * geometry.mask.channel;
        each_column(part, [&](int column) {
            const int at = slot + column;
            CoordinateGradients gradients;
            if (cells[at] >= 0) {
                const Weights sums = dots[at];
                const compute_t y = fractions[0][at], x = fractions[1][at];
                gradients.set(sums, y, x, factor_at(factor));
                gradients.set_mask(sums, y, x);
            }
            writer.write(gradients);
            factor += geometry.mask.channel;
        });
    });
}

// The points of a thread that is ALONE at its pixel.
__device__ inline void pull_alone(const Geometry &geometry, const Tile &tile, const Cells &layout,
                                  data_t *columns, const data_t *image, const offset_t *offset,
                                  const mask_t *mask, compute_t *grad_image, offset_t *grad_offset,
                                  mask_t *grad_mask) {
    const int pixel = threadIdx.x;
    if (!tile.holds(geometry, pixel)) {
        return;
    }
    data_t *column = columns + first_column(geometry, tile, pixel, 0);
    const Step<data_t> tap_step(tap_stride(geometry));
    CoordinateWriter writer(geometry, tile, grad_offset, grad_mask, pixel, 0);
    each_tap(geometry, tile, offset, mask, [&](const Sampler &sampler) {
        const Point point(sampler, layout, 1, 0);
        const compute_t factor = sampler.factor();
        CoordinateGradients gradients;
        if (point.inside) {
            Weights dots{};
            pull_point<true>(geometry, tile, point.weights, column, image + point.cell,
                             grad_image + point.cell, layout.pitch, factor, 0, dots.at,
                             gradients.mask);
            gradients.set(dots, point.y, point.x, factor);
        } else if (COLUMNS) {
            store_outside(geometry, tile, column, 0, factor);
        }
        writer.write(gradients);
        column = column + tap_step;
    });
}

__device__ inline void pull_back(const Geometry &geometry, data_t *columns, const data_t *image,
                                 const offset_t *offset, const mask_t *mask, compute_t *grad_image,
                                 offset_t *grad_offset, mask_t *grad_mask) {
    const Tile tile;
    const Cells layout(geometry);
    const index_t first = tile.image * layout.size + tile.group * COPY_SHARED;
    image = kept(image + first);
    grad_image = kept(grad_image + first);
    if constexpr (ALONE) {
        pull_alone(geometry, tile, layout, columns, image, offset, mask, grad_image, grad_offset,
                   grad_mask);
        return;
    }
    __shared__ Weights weights[SAMPLES];  // then the dots
    __shared__ compute_t fractions[2][FRACTIONS];
    __shared__ index_t cells[SAMPLES];
    each_part([&](const Part &part) {
        int factored = 0;
        each_point(geometry, tile, part, offset, mask, [&](int slot, const Sampler &sampler) {
            const compute_t factor = sampler.factor();
            factored |= !isfinite(factor);
            const Point point(sampler, layout, finite_part(factor), -1);
            weights[slot] = point.weights;
            cells[slot] = point.cell;
            if (GRAD_COORDINATES) {
                fractions[0][slot] = point.y;
                fractions[1][slot] = point.x;
            }
        });
        factored = __syncthreads_or(factored);
        if (tile.holds(geometry, threadIdx.x / LANES)) {
            if (MASKED && factored) {
                pull_pixel<true>(geometry, tile, mask, columns, image, grad_image, weights, cells,
                                 part);
            } else {
                pull_pixel<false>(geometry, tile, mask, columns, image, grad_image, weights, cells,
                                  part);
            }
        }
        if (GRAD_COORDINATES || !part.last()) {
            __syncthreads();
        }
        if (GRAD_COORDINATES) {
            // No barrier behind it: the next part's points are put where a thread's own have been.
            write_coordinates(geometry, tile, part, mask, weights, fractions, cells, grad_offset,
                              grad_mask);
        }
    });
}
