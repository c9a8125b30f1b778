// x, offset, mask, weight, bias -> out of a depthwise layer, one channel a group, without columns:
//
//   out[n, c](p) = bias[c] + sum_k weight[c, k] * mask_k(p) * x[n, c](p + p_k + offset_k(p))
//
// The walk is deform_im2col's, but what is sampled is multiplied by its weight and added up in registers,
// in compute_t, and written once. The weights of the deformable group lie in shared memory, taps first,
// so that a lane reads those of its channels at once. A product of matrices would have one row and one
// column a group, and its columns would be nine times the image.
//
// Launch: as deform_im2col, all taps at once. Bytes per output element: written once; each of its taps
// read four times from the caches, about once from memory.
#include "bilinear.cuh"

// Vectors of a lane that are worked on together: of 8 elements.
constexpr int MOST_HELD = VECTOR > 4 ? 1 : 2;
constexpr int HELD = STEPS < MOST_HELD ? STEPS : MOST_HELD;

// The sums over the taps for some of a lane's vectors, from a step on.
struct Sums {
    compute_t at[HELD][VECTOR] = {};

    template <typename Use>
    __device__ static void each(int step, int lane, Use use) {
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const int channel = ((step + i) * LANES + lane) * VECTOR;
            if ((STEPS % HELD == 0 || step + i < STEPS) && (!RAGGED || channel < COPY_SHARED)) {
                use(i, channel);
            }
        }
    }
    // Adds a point. FACTORED: factor multiplies what is sampled.
    template <bool FACTORED>
    __device__ void add(const Weights weight, const data_t *above, index_t pitch, compute_t factor,
                        const compute_t *taps, int step, int lane) {
        const data_t *below = above + pitch;
        each(step, lane, [&](int i, int channel) {
            const auto v00 = load<VECTOR>(above + channel);
            const auto v01 = load<VECTOR>(above + channel + COPY_CHANNELS);
            const auto v10 = load<VECTOR>(below + channel);
            const auto v11 = load<VECTOR>(below + channel + COPY_CHANNELS);
#pragma unroll
            for (int j = 0; j < LIVE; ++j) {
                compute_t value = weight.at[0] * widen(v00.at[j]);
                value += weight.at[1] * widen(v01.at[j]);
                value += weight.at[2] * widen(v10.at[j]);
                value += weight.at[3] * widen(v11.at[j]);
                at[i][j] += taps[channel + j] * (FACTORED ? factor * value : value);
            }
        });
    }
    __device__ void write(const Geometry &geometry, const Tile &tile, int pixel, int step, int lane,
                          const data_t *bias, data_t *out) const {
        const index_t plane = geometry.out_height * geometry.out_width;
        const int first = tile.group * SHARED_CHANNELS;
        out += tile.in_output(geometry, CHANNELS, pixel) + first * plane;
        each(step, lane, [&](int i, int channel) {
#pragma unroll
            for (int j = 0; j < LIVE; ++j) {
                if (!PADDED || channel + j < SHARED_CHANNELS) {
                    const compute_t shift = bias ? widen(bias[first + channel + j]) : 0;
                    narrow(at[i][j] + shift, out[(channel + j) * plane]);
                }
            }
        });
    }
};

// All points of a pixel that are held in shared memory.
template <bool FACTORED>
__device__ void convolve_pixel(const Geometry &geometry, const Tile &tile, const mask_t *mask,
                               const data_t *image, const Weights *weights, const index_t *cells,
                               const compute_t *taps, const data_t *bias, data_t *out) {
    // On the rare path nothing is worked out ahead of it.
    const int thread = FACTORED ? kept(int(threadIdx.x)) : threadIdx.x;
    const int pixel = unsigned(thread) / LANES, lane = unsigned(thread) % LANES;
    mask = mask_of(geometry, tile, mask, pixel);
    image = kept(image);
#pragma unroll 1
    for (int step = 0; step < STEPS; step += HELD) {
        Sums sums;
#pragma unroll(FACTORED || TAPS > 9 ? 1 : TAPS)
        for (int tap = 0; tap < TAPS; ++tap) {
            const int slot = pixel * TAPS + tap;
            const compute_t factor =
                FACTORED ? other_part(factor_at(mask + tap * geometry.mask.channel)) : compute_t(1);
            sums.add<FACTORED>(weights[slot], image + cells[slot], geometry.copy_pitch, factor,
                               taps + tap * COPY_SHARED, step, lane);
        }
        sums.write(geometry, tile, pixel, step, lane, bias, out);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, AT_LEAST_BLOCKS)
    deform_depthwise(const Geometry geometry, const data_t *__restrict__ image,
                     const offset_t *__restrict__ offset, const mask_t *__restrict__ mask,
                     const data_t *__restrict__ weight, const data_t *__restrict__ bias,
                     data_t *__restrict__ out) {
    __shared__ alignas(16) compute_t taps[TAPS * COPY_SHARED];
    const Tile tile;
    const Cells layout(geometry);
    for (int i = threadIdx.x; i < TAPS * COPY_SHARED; i += BLOCK) {
        const int tap = i / COPY_SHARED, channel = i % COPY_SHARED;
        const int row = tile.group * SHARED_CHANNELS + channel;
        taps[i] = !PADDED || channel < SHARED_CHANNELS ? widen(weight[row * TAPS + tap]) : 0;
    }
    image += tile.image * layout.size + tile.group * COPY_SHARED;
    if constexpr (ALONE) {
        __syncthreads();
        const int pixel = threadIdx.x;
        if (tile.holds(geometry, pixel)) {
            const data_t *from = kept(image);
            const compute_t *of_tap = taps;
            Sums sums;
            each_tap(geometry, tile, offset, mask, [&](const Sampler &sampler) {
                const Point point(sampler, layout, 1, layout.zero);
                sums.add<true>(point.weights, from + point.cell, layout.pitch, sampler.factor(),
                               of_tap, 0, 0);
                of_tap += COPY_SHARED;
            });
            sums.write(geometry, tile, pixel, 0, 0, bias, out);
        }
        return;
    }
    __shared__ Weights weights[SAMPLES];
    __shared__ index_t cells[SAMPLES];
    int factored = 0;
    const Part all{0, 0, KERNEL_HEIGHT, KERNEL_WIDTH};
    each_point(geometry, tile, all, offset, mask, [&](int slot, const Sampler &sampler) {
        const compute_t factor = sampler.factor();
        factored |= !isfinite(factor);
        const Point point(sampler, layout, finite_part(factor), layout.zero);
        weights[slot] = point.weights;
        cells[slot] = point.cell;
    });
    factored = __syncthreads_or(factored);
    if (tile.holds(geometry, threadIdx.x / LANES)) {
        if (MASKED && factored) {
            convolve_pixel<true>(geometry, tile, mask, image, weights, cells, taps, bias, out);
        } else {
            convolve_pixel<false>(geometry, tile, mask, image, weights, cells, taps, bias, out);
        }
    }
}
