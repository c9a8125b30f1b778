// x, offset, mask, weight, bias -> out of a layer with few channels a group, without columns:
//
//   out[n, o](p) = bias[o] + sum_c,k weight[o, c, k] * mask_k(p) * x[n, c](p + p_k + offset_k(p))
//
// The walk is deform_im2col's, but what is sampled is multiplied by its weights and added up in registers,
// in compute_t, and written once. A vector of channels has whole groups, so that no lane needs another's
// sums. The weights of the deformable group lie in shared memory, taps first, then output channels, so
// that a lane reads those of its channels at once. A product of matrices would have few rows and columns
// a group, and its columns would be as many times the image as there are taps.
//
// Launch: as deform_im2col, all taps at once. Bytes per output element: written once; each of its taps
// read four times from the caches, about once from memory.
#include "bilinear.cuh"

#ifndef OUTPUTS
#define OUTPUTS 1 // C_out/G
#endif

// What a vector of channels is added up to, and the vectors of a lane that are worked on together.
constexpr int SUMS = (LIVE + GROUP_CHANNELS - 1) / GROUP_CHANNELS * OUTPUTS;
constexpr int MOST_HELD = VECTOR > 4 || SUMS > 4 ? 1 : 2;
constexpr int HELD = STEPS < MOST_HELD ? STEPS : MOST_HELD;

// In shared memory the weights of a tap are rows, one for each of a group's outputs, of the channels that
// share offsets; PACK of them are read at once. A thread ALONE reads all of them, one after the other.
constexpr int WIDEST = 16 / sizeof(compute_t);
constexpr int PACK = ALONE || VECTOR > WIDEST ? WIDEST : VECTOR;
constexpr int ROW = ALONE ? LIVE : COPY_SHARED;
constexpr int TAP_WEIGHTS = (OUTPUTS * ROW + PACK - 1) / PACK * PACK;

// As AT_LEAST_BLOCKS, but 128 registers for a thread that has doubles, or is ALONE and has several sums
// beside its points: with 80 some spill.
constexpr int LEAST_BLOCKS =
    sizeof(compute_t) == 8 || (ALONE && OUTPUTS > 1) ? 512 / BLOCK : AT_LEAST_BLOCKS;

// The sums over taps and a group's channels for some of a lane's vectors, from a step on.
struct Sums {
    compute_t at[HELD][SUMS] = {};

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
                        const compute_t *of_tap, int step, int lane) {
        const data_t *below = above + pitch;
        each(step, lane, [&](int i, int channel) {
            const auto v00 = load<VECTOR>(above + channel);
            const auto v01 = load<VECTOR>(above + channel + COPY_CHANNELS);
            const auto v10 = load<VECTOR>(below + channel);
            const auto v11 = load<VECTOR>(below + channel + COPY_CHANNELS);
            compute_t sampled[LIVE];
#pragma unroll
            for (int j = 0; j < LIVE; ++j) {
                compute_t value = weight.at[0] * widen(v00.at[j]);
                value += weight.at[1] * widen(v01.at[j]);
                value += weight.at[2] * widen(v10.at[j]);
                value += weight.at[3] * widen(v11.at[j]);
                sampled[j] = FACTORED ? factor * value : value;
            }
            multiply(sampled, of_tap + channel, at[i]);
        });
    }
    // Output o of each of the groups that a vector has.
    __device__ static void multiply(const compute_t (&sampled)[LIVE], const compute_t *weights,
                                    compute_t (&sums)[SUMS]) {
#pragma unroll
        for (int first = 0; first < OUTPUTS * LIVE; first += PACK) {
            const auto pack = load<PACK>(weights + first / LIVE * ROW + first % LIVE);
#pragma unroll
            for (int i = first; i < first + PACK && i < OUTPUTS * LIVE; ++i) {
                const int output = i / LIVE, j = i % LIVE;
                sums[j / GROUP_CHANNELS * OUTPUTS + output] += pack.at[i - first] * sampled[j];
            }
        }
    }
    __device__ void write(const Geometry &geometry, const Tile &tile, int pixel, int step, int lane,
                          const data_t *bias, data_t *out) const {
        const index_t plane = geometry.out_height * geometry.out_width;
        out += tile.in_output(geometry, GROUPS * OUTPUTS, pixel);
        each(step, lane, [&](int i, int channel) {
            const int group = (tile.group * SHARED_CHANNELS + channel) / GROUP_CHANNELS;
#pragma unroll
            for (int j = 0; j < SUMS; ++j) {
                if (!PADDED || channel + j / OUTPUTS * GROUP_CHANNELS < SHARED_CHANNELS) {
                    const int output = group * OUTPUTS + j;
                    const compute_t shift = bias ? widen(bias[output]) : 0;
                    narrow(at[i][j] + shift, out[output * plane]);
                }
            }
        });
    }
};

// The weights of a deformable group, from (G, C_out/G, K, C_in/G); 0 behind its channels. A thread takes
// the same ones of every tap, or of every few.
__device__ inline void gather_weights(int deformable_group, const data_t *weight, compute_t *taps) {
    constexpr int AT_ONCE = BLOCK > TAP_WEIGHTS ? BLOCK / TAP_WEIGHTS : 1;
    const int first = AT_ONCE > 1 ? threadIdx.x / TAP_WEIGHTS : 0;
    for (int at = threadIdx.x - first * TAP_WEIGHTS; at < TAP_WEIGHTS; at += BLOCK) {
        const int output = unsigned(at) / ROW, in_row = unsigned(at) % ROW;
        const unsigned channel = deformable_group * SHARED_CHANNELS + in_row;
        const bool some = output < OUTPUTS && in_row < SHARED_CHANNELS;
        const data_t *from = weight +
                             (channel / GROUP_CHANNELS * OUTPUTS + output) * TAPS * GROUP_CHANNELS +
                             channel % GROUP_CHANNELS;
#pragma unroll 4
        for (int tap = first; tap < TAPS && first < AT_ONCE; tap += AT_ONCE) {
            taps[tap * TAP_WEIGHTS + at] = some ? widen(from[tap * GROUP_CHANNELS]) : 0;
        }
    }
}

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
#pragma unroll(FACTORED || TAPS > 9 || OUTPUTS > 1 ? 1 : 2)
        for (int tap = 0; tap < TAPS; ++tap) {
            const int slot = pixel * TAPS + tap;
            const compute_t factor =
                FACTORED ? other_part(factor_at(mask + tap * geometry.mask.channel)) : compute_t(1);
            sums.add<FACTORED>(weights[slot], image + cells[slot], geometry.copy_pitch, factor,
                               taps + tap * TAP_WEIGHTS, step, lane);
        }
        sums.write(geometry, tile, pixel, step, lane, bias, out);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, LEAST_BLOCKS)
    deform_direct(const Geometry geometry, const data_t *__restrict__ image,
                  const offset_t *__restrict__ offset, const mask_t *__restrict__ mask,
                  const data_t *__restrict__ weight, const data_t *__restrict__ bias,
                  data_t *__restrict__ out) {
    __shared__ alignas(16) compute_t taps[TAPS * TAP_WEIGHTS];
    const Tile tile;
    const Cells layout(geometry);
    gather_weights(tile.group, weight, taps);
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
                of_tap += TAP_WEIGHTS;
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
