// grad_output, weight, x, offset, mask -> grad_x, grad_offset, grad_mask and partial sums of grad_weight of
// a layer whose groups have one channel, 2 or 4, in and out, without columns:
//
//   grad_columns_k(p)[c] = sum_o weight[o, c, k] * grad_output[o](p)
//   grad_weight[o, c, k] = sum_p grad_output[o](p) * mask_k(p) * x[c](p + p_k + offset_k(p))
//
// Both live in registers, for a vector of channels has whole groups: a thread has one tap and some vectors
// of channels, and walks over RUN pixels. What it leaves in shared memory, its dots and its share of
// grad_weight, others add up: shuffles, as in pullback.cuh, would take 2 instructions more a column
// element. The sums over blocks are the host's.
// Blocks walk down the image, so that there are no more of them than the sums have room for.
//
// Launch: tiles along a row and deformable groups, any number of blocks along y, images; all taps at once.
#ifndef GROUPS
#define GROUPS 64 // a layer that is depthwise
#endif
#include "pullback.cuh"

constexpr bool GRAD_WEIGHT = COLUMNS;
constexpr int RUN = 4;             // pixels of a thread at a tap
constexpr int RUNS = TILE / RUN;   // and as many taps are worked on at once
constexpr int OUTPUTS = GROUP_CHANNELS;
static_assert(VECTOR % GROUP_CHANNELS == 0, "a vector has whole groups");
constexpr int MOST_HELD = VECTOR > 4 || OUTPUTS > 1 ? 1 : 2;
constexpr int HELD = STEPS < MOST_HELD ? STEPS : MOST_HELD;  // vectors of a thread
constexpr int SLICE = HELD * LANES * VECTOR;                 // channels worked on at once
constexpr int PITCH = SLICE + VECTOR;                        // without bank conflicts
constexpr bool SLICED = STEPS > HELD;
// As AT_LEAST_BLOCKS, but 128 registers for a thread that has doubles, or weights of several outputs.
constexpr int LEAST_BLOCKS =
    sizeof(compute_t) == 8 || OUTPUTS > 1 ? 512 / BLOCK : AT_LEAST_BLOCKS;

// Of the outputs of a channel's group: which of them in a vector of output channels.
__device__ constexpr int output_of(int channel, int output) {
    return channel / GROUP_CHANNELS * OUTPUTS + output;
}
constexpr int DOTS_PITCH = 4 * LANES + 4;  // of a point's dots, the lanes' one after the other

// The vectors of a thread: use(which, channel), counted within the slice that begins at a step.
template <int FIRST = 0, typename Use>
__device__ inline void each_held(int step, int lane, Use use) {
    if constexpr (FIRST < HELD) {
        const int within = (FIRST * LANES + lane) * VECTOR;
        if ((STEPS % HELD == 0 || step + FIRST < STEPS) &&
            (!RAGGED || step * LANES * VECTOR + within < COPY_SHARED)) {
            use(Constant<FIRST>{}, within);
        }
        each_held<FIRST + 1>(step, lane, use);
    }
}

// The weights of a deformable group, from (G, C_out/G, K, C_in/G): taps first, then outputs, widened, with
// zeros behind the channels.
__device__ inline void load_taps(const Tile &tile, const data_t *weight, compute_t *taps) {
    for (int i = threadIdx.x; i < TAPS * OUTPUTS * COPY_SHARED; i += BLOCK) {
        const int output = i / COPY_SHARED % OUTPUTS, tap = i / (COPY_SHARED * OUTPUTS);
        const int channel = i % COPY_SHARED, whole = tile.group * SHARED_CHANNELS + channel;
        const int row = output_of(whole, output);
        taps[i] = !PADDED || channel < SHARED_CHANNELS
                      ? widen(weight[(row * TAPS + tap) * GROUP_CHANNELS + whole % GROUP_CHANNELS])
                      : 0;
    }
}

// Pixels that the tile has beyond the output are as points outside. Each slot is its thread's in each_point.
__device__ inline void mark_missing(const Geometry &geometry, const Tile &tile, index_t *cells) {
    const int pixel = threadIdx.x % TILE;
    if (!tile.holds(geometry, pixel)) {
        for (int row = threadIdx.x / TILE; row < KERNEL_HEIGHT; row += LANES) {
            for (int column = 0; column < KERNEL_WIDTH; ++column) {
                cells[pixel * TAPS + row * KERNEL_WIDTH + column] = -1;
            }
        }
    }
}

// A slice of grad_output at the tile's pixels, channels last, with zeros where there is none.
__device__ inline void load_slice(const Geometry &geometry, const Tile &tile,
                                  const data_t *grad_output, int step, compute_t *slice) {
    const int pixel = threadIdx.x % TILE, first = threadIdx.x / TILE * VECTOR;
    const bool held = tile.holds(geometry, pixel);
    const Step<const data_t> channel_step(geometry.planes.channel);
    const int skipped = step * LANES * VECTOR + first;
    const data_t *from =
        grad_output + tile.in(geometry.planes, tile.group * SHARED_CHANNELS + skipped, pixel);
    slice += pixel * PITCH + first;
    each_held(step, 0, [&](auto i, int within) {
        Vector<compute_t, VECTOR> values{};
        if (held) {
            const data_t *channel = from + within * geometry.planes.channel;
#pragma unroll
            for (int j = 0; j < VECTOR; ++j, channel = channel + channel_step) {
                if ((!RAGGED && !PADDED) || skipped + within + j < SHARED_CHANNELS) {
                    values.at[j] = widen(*channel);
                }
            }
        }
        store(slice + within, values);
    });
}

// What a thread works on: vectors of channels of one lane, from one tap and pixel on.
struct Run {
    const int lane, phase;  // the first of the taps that are worked on at once, and which of them
    const int first_pixel;
    const int slot, grad, dots, sum;  // where its parts of the arrays in shared memory begin

    __device__ explicit Run(int thread)
        : lane(unsigned(thread) % LANES),
          phase(unsigned(thread) / (LANES * RUNS)),
          first_pixel(unsigned(thread) / LANES % RUNS),
          slot(kept(first_pixel * TAPS + phase)),
          grad(kept(first_pixel * PITCH + lane * VECTOR)),
          dots((phase * TILE + first_pixel) * DOTS_PITCH + lane * 4),
          sum(kept((phase * RUNS + first_pixel) * OUTPUTS * SLICE + lane * VECTOR)) {}
};

// The points of a thread at one tap: leaves its dots of each, and its sums of grad_weight.
template <bool FACTORED>
__device__ void pull_run(const Geometry &geometry, const Tile &tile, const Run &run,
                         const mask_t *mask, const data_t *image, compute_t *grad_image,
                         const Weights *weights, const index_t *cells, const compute_t *taps,
                         const compute_t *slice, compute_t *dots, compute_t *sums, int first_tap,
                         int step) {
    const index_t pitch = geometry.copy_pitch;
    const int tap = first_tap + run.phase;
    weights += run.slot + first_tap;
    cells += run.slot + first_tap;
    Vector<compute_t, VECTOR> of_tap[HELD][OUTPUTS] = {}, sum[HELD][OUTPUTS] = {};
    each_held(step, run.lane, [&](auto i, int within) {
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o) {
            of_tap[i.value][o] = load<VECTOR>(taps + (tap * OUTPUTS + o) * COPY_SHARED +
                                              step * LANES * VECTOR + within);
        }
    });
#pragma unroll(FACTORED || OUTPUTS > 1 ? 1 : 4)
    for (int i = 0; i < RUN; ++i) {
        const index_t cell = cells[i * RUNS * TAPS];
        const int pixel = run.first_pixel + i * RUNS;
        compute_t factor = 1;
        if (FACTORED && tile.holds(geometry, pixel)) {
            factor = other_part(
                factor_at(mask_of(geometry, tile, mask, pixel) + tap * geometry.mask.channel));
        }
        const compute_t *grads = slice + run.grad + i * RUNS * PITCH;
        if (cell < 0) {
            if (FACTORED && GRAD_WEIGHT) {
                each_held(step, run.lane, [&](auto i, int) {
#pragma unroll
                    for (int j = 0; j < VECTOR * OUTPUTS; ++j) {
                        const int o = j / VECTOR, c = j % VECTOR;
                        sum[i.value][o].at[c] +=
                            grads[i.value * LANES * VECTOR + output_of(c, o)] * (factor * 0);
                    }
                });
            }
            continue;
        }
        const data_t *above = image + cell, *below = above + pitch;
        compute_t *grad_above = grad_image + cell, *grad_below = grad_above + pitch;
        Weights of_point{};
        const Weights weight = weights[i * RUNS * TAPS];
        each_held(step, run.lane, [&](auto i, int) {
            constexpr int AT = decltype(i)::value * LANES * VECTOR;
            const auto grad = load<VECTOR>(grads + AT);
            compute_t wide[VECTOR];
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                wide[j] = of_tap[i.value][0].at[j] * grad.at[output_of(j, 0)];
#pragma unroll
                for (int o = 1; o < OUTPUTS; ++o) {
                    wide[j] += of_tap[i.value][o].at[j] * grad.at[output_of(j, o)];
                }
            }
            pull_vector<FACTORED, AT>(weight, above, below, grad_above, grad_below, wide, factor,
                                      of_point.at, [&](const compute_t (&sampled)[VECTOR]) {
#pragma unroll
                for (int j = 0; j < VECTOR * OUTPUTS; ++j) {
                    const int o = j / VECTOR, c = j % VECTOR;
                    sum[i.value][o].at[c] +=
                        grad.at[output_of(c, o)] * (FACTORED ? factor * sampled[c] : sampled[c]);
                }
            });
        });
        if (GRAD_COORDINATES) {
            *reinterpret_cast<Weights *>(dots + run.dots + i * RUNS * DOTS_PITCH) = of_point;
        }
    }
    if (GRAD_WEIGHT) {
        each_held(step, run.lane, [&](auto i, int) {
#pragma unroll
            for (int o = 0; o < OUTPUTS; ++o) {
                store(sums + run.sum + o * SLICE + i.value * LANES * VECTOR, sum[i.value][o]);
            }
        });
    }
}

// Spreads the first `count` of something over the block's threads: use(i).
template <int COUNT, typename Use>
__device__ inline void each_of(unsigned thread, Use use) {
#pragma unroll
    for (int first = 0; first < COUNT; first += BLOCK) {
        if (first + BLOCK <= COUNT || thread < COUNT - first) {
            use(thread + first);
        }
    }
}

__device__ inline void add(const Weights &more, Weights &sum) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        sum.at[k] += more.at[k];
    }
}

// Adds up the dots of the points that were worked on at once, over the lanes. They take the place of the
// point's weights, or are added to those of other channels.
__device__ inline void add_dots(const compute_t *dots, const index_t *cells, Weights *totals,
                                int thread, int first_tap) {
    each_of<RUN * TILE>(thread, [&](unsigned i) {
        const int tap = first_tap + i / TILE, slot = i % TILE * TAPS + tap;
        if (tap < TAPS && cells[slot] >= 0) {
            const compute_t *of_lane = dots + i * DOTS_PITCH;
            Weights sum = *reinterpret_cast<const Weights *>(of_lane);
#pragma unroll
            for (int lane = 1; lane < LANES; ++lane) {
                add(*reinterpret_cast<const Weights *>(of_lane + lane * 4), sum);
            }
            if (SLICED) {
                add(totals[slot], sum);
            }
            totals[slot] = sum;
        }
    });
}

// Adds the sums of the taps that were worked on at once, over the runs, to the block's.
__device__ inline void add_sums(const compute_t *sums, compute_t *partial, bool first, int thread,
                                int first_tap, int step) {
    // From the last thread on: the first are at the dots.
    each_of<RUN * OUTPUTS * SLICE / VECTOR>(BLOCK - 1 - thread, [&](unsigned i) {
        const int within = i * VECTOR % SLICE, channel = step * LANES * VECTOR + within;
        const int of = i * VECTOR / SLICE, phase = of / OUTPUTS, output = of % OUTPUTS;
        const int tap = first_tap + phase;
        if (tap < TAPS && channel < COPY_SHARED) {
            Vector<compute_t, VECTOR> *to = reinterpret_cast<Vector<compute_t, VECTOR> *>(
                partial + (tap * OUTPUTS + output) * COPY_SHARED + channel);
            Vector<compute_t, VECTOR> sum{};
            if (!first) {
                sum = *to;
            }
#pragma unroll
            for (int run = 0; run < RUNS; ++run) {
                const auto more = load<VECTOR>(
                    sums + ((phase * RUNS + run) * OUTPUTS + output) * SLICE + within);
#pragma unroll
                for (int j = 0; j < VECTOR; ++j) {
                    sum.at[j] += more.at[j];
                }
            }
            *to = sum;
        }
    });
}

extern "C" __global__ void __launch_bounds__(BLOCK, LEAST_BLOCKS)
    deform_direct_backward(const Geometry geometry, const data_t *__restrict__ grad_output,
                              const data_t *__restrict__ weight, const data_t *__restrict__ image,
                              const offset_t *__restrict__ offset, const mask_t *__restrict__ mask,
                              compute_t *__restrict__ grad_image,
                              offset_t *__restrict__ grad_offset, mask_t *__restrict__ grad_mask,
                              compute_t *__restrict__ partial) {
    __shared__ alignas(16) compute_t taps[TAPS * OUTPUTS * COPY_SHARED];
    __shared__ alignas(16) compute_t slice[TILE * PITCH];
    __shared__ alignas(16) compute_t dots[GRAD_COORDINATES ? RUN * TILE * DOTS_PITCH : 1];
    __shared__ alignas(16) compute_t sums[GRAD_WEIGHT ? TILE * OUTPUTS * SLICE : 1];
    __shared__ Weights weights[SAMPLES];
    __shared__ Weights sliced[SLICED && GRAD_COORDINATES ? SAMPLES : 1];
    __shared__ compute_t fractions[2][FRACTIONS];
    __shared__ index_t cells[SAMPLES];
    const Part all{0, 0, KERNEL_HEIGHT, KERNEL_WIDTH};
    const Cells layout(geometry);
    const Tile corner;
    const int thread = threadIdx.x;
    const Run run(thread);
    Weights *totals = SLICED ? sliced : weights;  // of the dots
    load_taps(corner, weight, taps);
    const index_t first = corner.image * layout.size + corner.group * COPY_SHARED;
    image = kept(image + first);
    grad_image = kept(grad_image + first);
    partial += ((index_t(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * TAPS *
               OUTPUTS * COPY_SHARED;
    for (index_t row = corner.row; row < geometry.rows; row += gridDim.y * TILE_HEIGHT) {
        const Tile tile(corner.image, row, corner.column, corner.group);
        int factored = 0;
        mark_missing(geometry, tile, cells);
        each_point(geometry, tile, all, offset, mask, [&](int slot, const Sampler &sampler) {
            const compute_t factor = sampler.factor();
            factored |= !isfinite(factor);
            const Point point(sampler, layout, finite_part(factor), -1);
            weights[slot] = point.weights;
            cells[slot] = point.cell;
            if (GRAD_COORDINATES) {
                fractions[0][slot] = point.y;
                fractions[1][slot] = point.x;
                if (SLICED) {
                    totals[slot] = Weights{};
                }
            }
        });
        factored = __syncthreads_or(factored);
#pragma unroll 1
        for (int step = 0; step < STEPS; step += HELD) {
            load_slice(geometry, tile, grad_output, step, slice);
            __syncthreads();
            const int skipped = (step * LANES + run.lane) * VECTOR;
            const data_t *sampled = kept(image + skipped);
            compute_t *grad_sampled = kept(grad_image + skipped);
#pragma unroll 1
            for (int tap = 0; tap < TAPS; tap += RUN) {
                if (tap + run.phase < TAPS) {
                    if (MASKED && factored) {
                        pull_run<true>(geometry, tile, run, mask, sampled, grad_sampled, weights,
                                       cells, taps, slice, dots, sums, tap, step);
                    } else {
                        pull_run<false>(geometry, tile, run, mask, sampled, grad_sampled, weights,
                                        cells, taps, slice, dots, sums, tap, step);
                    }
                }
                __syncthreads();
                if (GRAD_COORDINATES) {
                    add_dots(dots, cells, totals, thread, tap);
                }
                if (GRAD_WEIGHT) {
                    add_sums(sums, partial, row == corner.row, thread, tap, step);
                }
                __syncthreads();
            }
        }
        if (GRAD_COORDINATES) {
            write_coordinates(geometry, tile, all, mask, totals, fractions, cells, grad_offset,
                              grad_mask);
        }
    }
}
