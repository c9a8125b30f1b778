// What deform_backward does, for sampling points ordered by the cell they start from (sample_order.cu).
//
// LANES threads walk RUN points that follow one another in that order. The four corners stay in registers,
// and so do the sums for grad_x, until a point comes from another cell: only then are they added to
// memory and new corners read. With nine taps there are about nine points a cell: a quarter of the
// additions and of the reads of deform_backward are left. The points' own data go through shared
// memory: one thread a point works them out, and writes the gradients of offset and mask in the end.
// Where a lane has more vectors than its registers can hold, it walks its points again for the next.
//
// Launch: grid ceil(points / POINTS), BLOCK threads. Bytes per column element: read once, written once.
#include "order.cuh"
#include "pullback.cuh"

// 8, or as many as shared memory has room for; as PullbackMacros.points has it.
constexpr int LANE_GROUPS = BLOCK / LANES;
constexpr int MOST_RUN = 2048 / (LANE_GROUPS * int(sizeof(compute_t)));
constexpr int RUN = MOST_RUN < 8 ? MOST_RUN : 8;
constexpr int POINTS = LANE_GROUPS * RUN;
// Vectors of a lane that are held: of 8 elements for each corner, 4 where they are double.
constexpr int MOST_HELD = (sizeof(compute_t) == 8 ? 4 : 8) / VECTOR;
constexpr int HELD = STEPS < MOST_HELD ? STEPS : MOST_HELD;

// What a lane holds of one cell: the corners, widened once, and the sums for their gradients.
struct Held {
    compute_t corners[HELD][4][VECTOR], sums[HELD][4][VECTOR];

    template <typename Use>
    __device__ static void each(int step, int lane, Use use) {
        each_held<HELD>(step, lane, use);
    }
    __device__ void load_corners(const data_t *above, index_t pitch, int step, int lane) {
        each(step, lane, [&](int i, int at) {
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const auto values =
                    load<VECTOR>(above + k / 2 * pitch + k % 2 * COPY_CHANNELS + at);
#pragma unroll
                for (int j = 0; j < VECTOR; ++j) {
                    corners[i][k][j] = widen(values.at[j]);
                    sums[i][k][j] = 0;
                }
            }
        });
    }
    __device__ void add(compute_t *above, index_t pitch, int step, int lane) const {
        each(step, lane, [&](int i, int at) {
            add_atomically<0>(above + at, sums[i][0]);
            add_atomically<COPY_CHANNELS>(above + at, sums[i][1]);
            add_atomically<0>(above + pitch + at, sums[i][2]);
            add_atomically<COPY_CHANNELS>(above + pitch + at, sums[i][3]);
        });
    }
};

// The points of a lane, from a step of its vectors on. FACTORED: as in deform_im2col.
template <bool FACTORED, bool ADDED>
__device__ void walk(const Geometry &geometry, const Tile &tile, int count, data_t *columns,
                     const data_t *image, compute_t *grad_image, const Weights *weights,
                     const compute_t *factors, const index_t *cells, const index_t *places,
                     Weights *totals, const LaneSums &lanes, int step, int lane) {
    Held held;
    index_t current = -1;
    const index_t pitch = geometry.copy_pitch;
#pragma unroll 1
    for (int point = 0; point < count; ++point) {
        const index_t cell = cells[point];
        const compute_t factor = FACTORED ? other_part(factors[point]) : compute_t(1);
        data_t *column = columns + places[point];
        if (cell < 0) {
            Held::each(step, lane, [&](int, int at) {
                Vector<data_t, VECTOR> outside;
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) {
                    narrow(factor * 0, outside.at[i]);
                }
                store_column(geometry, tile, column, lane, at + lane * VECTOR, outside);
            });
            continue;
        }
        if (cell != current) {
            if (current >= 0) {
                held.add(grad_image + current, pitch, step, lane);
            }
            held.load_corners(image + cell, pitch, step, lane);
            current = cell;
        }
        const Weights weight = weights[point];
        compute_t dots[4] = {0, 0, 0, 0};
        Held::each(step, lane, [&](int i, int at) {
            const auto grad = load_column(geometry, tile, column, lane, at + lane * VECTOR);
            compute_t sampled[VECTOR];
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                const compute_t wide = widen(grad.at[j]);
                compute_t value = 0;
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const compute_t corner = held.corners[i][k][j];
                    dots[k] += wide * corner;
                    value += weight.at[k] * corner;
                    held.sums[i][k][j] += (FACTORED ? factor * weight.at[k] : weight.at[k]) * wide;
                }
                sampled[j] = FACTORED ? factor * value : value;
            }
            if (COLUMNS) {
                store_column(geometry, tile, column, lane, at + lane * VECTOR, narrowed(sampled));
            }
        });
        if (GRAD_COORDINATES) {
            lanes.template sum<ADDED, false>(dots, totals[point]);
        }
    }
    if (current >= 0) {
        held.add(grad_image + current, pitch, step, lane);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 512 / BLOCK)
    deform_backward_sorted(const Geometry geometry, int samples, const int *__restrict__ order,
                           data_t *columns, const data_t *__restrict__ image,
                           const offset_t *__restrict__ offset, const mask_t *__restrict__ mask,
                           compute_t *__restrict__ grad_image, offset_t *__restrict__ grad_offset,
                           mask_t *__restrict__ grad_mask) {
    __shared__ Weights weights[POINTS], totals[POINTS];
    __shared__ compute_t fractions[2][POINTS], factors[POINTS];
    __shared__ index_t cells[POINTS], places[POINTS], pixels[POINTS], planes[POINTS];
    const Cells layout(geometry);
    const int first = blockIdx.x * POINTS, here = min(POINTS, samples - first);
    int factored = 0;
    for (int slot = threadIdx.x; slot < here; slot += BLOCK) {
        const Sample sample = Sample::of(geometry, order[first + slot]);
        const Sampler sampler = sample.sampler(geometry, offset, mask);
        const compute_t factor = sampler.factor();
        factored |= !isfinite(factor);
        const Point point(sampler, layout, finite_part(factor), 0);
        const index_t copy = sample.tile.image * layout.size + sample.tile.group * COPY_SHARED;
        weights[slot] = point.weights;
        factors[slot] = factor;
        pixels[slot] = sample.tile.row * geometry.out_width + sample.tile.column;
        planes[slot] = sample.plane;
        cells[slot] = point.inside ? copy + point.cell : -1;
        places[slot] = sample.column(geometry);
        fractions[0][slot] = point.y;
        fractions[1][slot] = point.x;
    }
    factored = __syncthreads_or(factored);
    const int lane = threadIdx.x % LANES, run = threadIdx.x / LANES * RUN;
    const LaneSums lanes(lane);
    columns = kept(columns + lane * VECTOR);
    image = kept(image + lane * VECTOR);
    grad_image = kept(grad_image + lane * VECTOR);
    const Tile tile;
    const auto walk_all = [&](auto with_factors) {
        constexpr bool FACTORED = decltype(with_factors)::value != 0;
        const auto from = [&](auto added, int step) {
            walk<FACTORED, decltype(added)::value != 0>(
                geometry, tile, min(RUN, here - run), columns, image, grad_image, weights + run,
                factors + run, cells + run, places + run, totals + run, lanes, step, lane);
        };
        from(Constant<0>{}, 0);
#pragma unroll 1
        for (int step = HELD; step < STEPS; step += HELD) {
            from(Constant<1>{}, step);
        }
    };
    if (MASKED && factored) {
        walk_all(Constant<1>{});
    } else {
        walk_all(Constant<0>{});
    }
    __syncthreads();
    const index_t plane = geometry.out_height * geometry.out_width;
    for (int slot = threadIdx.x; slot < here; slot += BLOCK) {
        CoordinateGradients gradients;
        if (cells[slot] >= 0) {
            const Weights dots = totals[slot];
            const compute_t y = fractions[0][slot], x = fractions[1][slot];
            gradients.set(dots, y, x, factors[slot]);
            gradients.set_mask(dots, y, x);
        }
        const index_t at = planes[slot] * plane;
        if (GRAD_OFFSET) {
            offset_t *to = grad_offset + 2 * at + pixels[slot];
            narrow(gradients.y, to[0]);
            narrow(gradients.x, to[plane]);
        }
        if (GRAD_MASK) {
            narrow(gradients.mask, grad_mask[at + pixels[slot]]);
        }
    }
}
