// grad_columns, offset, mask -> grad_x, the same bits whenever it runs: what deform_col2im does, without
// atomics, for sampling points in the order of their cells and numbers (sample_order.cu, ranked).
//
// LANES threads own a cell. They work out its points, one each, and walk them in their order with the
// sums for the four corners in registers; then they add these to memory, where no other thread is:
// a launch is at the cells whose rows and columns have one parity each, `odd` = 2 * row + column,
// of which no two share a corner. Four launches and so all sums follow one another in a fixed order. The
// border is left out: a column of it is shared by both sides of the image.
//
// Each element of grad_columns is read once. A thread a pixel that gathers from its four cells would
// need one launch, and read them four times; four slots a cell, summed in the end, four times the memory.
//
// Launch: grid (ceil(cells of the parities / CELLS) * DEFORMABLE_GROUPS, ceil(STEPS / HELD), images), BLOCK
// threads. Bytes per column element: read once.
#include "order.cuh"

constexpr int CELLS = BLOCK / LANES;
// Vectors of a lane that are summed at once: of 16 elements for each corner, 8 where they are double.
constexpr int MOST_HELD = (sizeof(compute_t) == 8 ? 8 : 16) / VECTOR;
constexpr int HELD = STEPS < MOST_HELD ? STEPS : MOST_HELD;

// A point's weights, its factor in them. One that is infinite makes no number of a weight of 0, as in
// deform_backward.
__device__ inline Weights factored_weights(const Geometry &geometry, const Sampler &sampler) {
    const compute_t factor = sampler.factor();
    Weights weights = Point(sampler, Cells(geometry), finite_part(factor), 0).weights;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        weights.at[k] *= MASKED ? other_part(factor) : compute_t(1);
    }
    return weights;
}

extern "C" __global__ void __launch_bounds__(BLOCK, 512 / BLOCK)
    deform_col2im_ordered(const Geometry geometry, int odd, const int *__restrict__ starts,
                          const int *__restrict__ order, const data_t *__restrict__ grad_columns,
                          const offset_t *__restrict__ offset, const mask_t *__restrict__ mask,
                          compute_t *__restrict__ grad_image) {
    __shared__ Weights weights[BLOCK];
    __shared__ index_t places[BLOCK];
    const Tile tile;
    const unsigned pitch = geometry.width + 1, rows = geometry.height + 1;
    const unsigned across = (pitch + 1 - odd % 2) / 2;
    const unsigned number = blockIdx.x / DEFORMABLE_GROUPS * CELLS + threadIdx.x / LANES;
    const unsigned row = number / across * 2 + odd / 2, column = number % across * 2 + odd % 2;
    if (row >= rows) {
        return;
    }
    const int cells = (rows + 2) * pitch, plane = blockIdx.z * DEFORMABLE_GROUPS + tile.group;
    const Span span(starts, gridDim.z * DEFORMABLE_GROUPS * cells,
                    plane * cells + row * pitch + column);
    if (span.first == span.last) {
        return;
    }
    const int lane = threadIdx.x % LANES, slots = threadIdx.x - lane;
    const unsigned members = ((1u << LANES) - 1) << (threadIdx.x % 32 / LANES * LANES);
    const int step = blockIdx.y * HELD;
    grad_columns += UNCUT ? lane * VECTOR : 0;
    compute_t sums[HELD][4][VECTOR] = {};
#pragma unroll 1
    for (int first = span.first; first < span.last; first += LANES) {
        if (first + lane < span.last) {
            const Sample sample = Sample::of(geometry, order[first + lane]);
            weights[threadIdx.x] =
                factored_weights(geometry, sample.sampler(geometry, offset, mask));
            places[threadIdx.x] = sample.column(geometry);
        }
        __syncwarp(members);
        const int here = min(LANES, span.last - first);
#pragma unroll 1
        for (int point = slots; point < slots + here; ++point) {
            const Weights weight = weights[point];
            const data_t *grads = grad_columns + places[point];
            each_held<HELD>(step, lane, [&](int i, int at) {
                const auto grad = load_column(geometry, tile, grads, lane, at + lane * VECTOR);
#pragma unroll
                for (int j = 0; j < LIVE; ++j) {
                    const compute_t wide = widen(grad.at[j]);
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        sums[i][k][j] += weight.at[k] * wide;
                    }
                }
            });
        }
        __syncwarp(members);
    }
    grad_image += blockIdx.z * geometry.copy_size + index_t(row) * geometry.copy_pitch +
                  index_t(column) * COPY_CHANNELS + tile.group * COPY_SHARED + lane * VECTOR;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        if ((k / 2 ? row < geometry.height : row > 0) &&
            (k % 2 ? column < geometry.width : column > 0)) {
            compute_t *to = grad_image + k / 2 * geometry.copy_pitch + k % 2 * COPY_CHANNELS;
            each_held<HELD>(step, lane, [&](int i, int at) {
                auto total = load<VECTOR>(to + at);
#pragma unroll
                for (int j = 0; j < VECTOR; ++j) {
                    total.at[j] += sums[i][k][j];
                }
                store(to + at, total);
            });
        }
    }
}
