// x, offset, mask -> columns:  columns[n, g, p, k, c] = mask_k(p) * x[n, c](p + p_k + offset_k(p)).
//
// A block takes a tile of output pixels, 8 wide, and one deformable group. First its threads compute the
// sampling points, one each: four weights, mask included, and the cell they start from, into shared
// memory. So coordinates are worked out once a point, not once a channel. Then LANES neighbouring
// threads share a pixel and walk its taps: a lane reads VECTOR channels of the four corners at once from
// the channels-last copy (16 bytes where there are as many) and writes the column; LANES * 16 bytes are
// one line of the cache. Channels beyond LANES * VECTOR are further steps with the point in registers.
// Where one vector holds all channels a thread is alone with its points, and keeps them in registers.
//
// Launch: grid (tiles along a row * DG, tiles along y, images), BLOCK threads. Bytes per column element:
// written once; read four times from the caches, about once from memory.
#include "bilinear.cuh"

// The channels of one point that are a lane's. FACTORED: factor multiplies what is sampled.
template <bool FACTORED>
__device__ inline void sample(const Geometry &geometry, const Tile &tile, const Weights &weight,
                              const data_t *above, index_t pitch, compute_t factor, data_t *column,
                              int lane) {
    const data_t *below = above + pitch;
    each_vector(lane, [&](int channel, int at) {
        const auto v00 = load<VECTOR>(above + at), v01 = load<VECTOR>(above + at + COPY_CHANNELS);
        const auto v10 = load<VECTOR>(below + at), v11 = load<VECTOR>(below + at + COPY_CHANNELS);
        compute_t sampled[VECTOR] = {};
#pragma unroll
        for (int i = 0; i < LIVE; ++i) {
            compute_t value = weight.at[0] * widen(v00.at[i]);
            value += weight.at[1] * widen(v01.at[i]);
            value += weight.at[2] * widen(v10.at[i]);
            value += weight.at[3] * widen(v11.at[i]);
            sampled[i] = FACTORED ? factor * value : value;
        }
        store_column(geometry, tile, column, lane, channel, narrowed(sampled));
    });
}

// All points of a pixel that are held in shared memory.
template <bool FACTORED>
__device__ void sample_pixel(const Geometry &geometry, const Tile &tile, const mask_t *mask,
                             const data_t *corner, const Weights *weights, const index_t *cells,
                             data_t *column, const Part &part) {
    // On the rare path nothing is worked out ahead of it.
    const int thread = FACTORED ? kept(int(threadIdx.x)) : threadIdx.x;
    const int pixel = unsigned(thread) / LANES, lane = unsigned(thread) % LANES;
    const index_t pitch = Cells(geometry).pitch;
    mask = mask_of(geometry, tile, mask, pixel) + part.first() * geometry.mask.channel;
    column += first_column(geometry, tile, pixel, lane) + part.first() * tap_stride(geometry);
    corner = kept(corner + lane * VECTOR);
    column = kept(column);
#pragma unroll(FACTORED ? 1 : TAPS <= 9 && TAPS_AT_ONCE == TAPS && STEPS <= 2 ? TAPS : 2)
    for (int tap = 0; tap < part.taps(); ++tap) {
        const int slot = pixel * TAPS_AT_ONCE + tap;
        const compute_t factor =
            FACTORED ? other_part(factor_at(mask + tap * geometry.mask.channel)) : compute_t(1);
        sample<FACTORED>(geometry, tile, weights[slot], corner + cells[slot], pitch, factor,
                         column + tap * tap_stride(geometry), lane);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, AT_LEAST_BLOCKS)
    deform_im2col(const Geometry geometry, const data_t *__restrict__ image,
                  const offset_t *__restrict__ offset, const mask_t *__restrict__ mask,
                  data_t *__restrict__ columns) {
    const Tile tile;
    const Cells layout(geometry);
    image = kept(image + tile.image * layout.size + tile.group * COPY_SHARED);
    if constexpr (ALONE) {
        const int pixel = threadIdx.x;
        if (tile.holds(geometry, pixel)) {
            data_t *column = columns + first_column(geometry, tile, pixel, 0);
            const Step<data_t> tap_step(tap_stride(geometry));
            each_tap(geometry, tile, offset, mask, [&](const Sampler &sampler) {
                const Point point(sampler, layout, 1, layout.zero);
                sample<true>(geometry, tile, point.weights, image + point.cell, layout.pitch,
                             sampler.factor(), column, 0);
                column = column + tap_step;
            });
        }
        return;
    }
    __shared__ Weights weights[SAMPLES];
    __shared__ index_t cells[SAMPLES];
    each_part([&](const Part &part) {
        int factored = 0;
        each_point(geometry, tile, part, offset, mask, [&](int slot, const Sampler &sampler) {
            const compute_t factor = sampler.factor();
            factored |= !isfinite(factor);
            const Point point(sampler, layout, finite_part(factor), layout.zero);
            weights[slot] = point.weights;
            cells[slot] = point.cell;
        });
        factored = __syncthreads_or(factored);
        if (tile.holds(geometry, threadIdx.x / LANES)) {
            if (MASKED && factored) {
                sample_pixel<true>(geometry, tile, mask, image, weights, cells, columns, part);
            } else {
                sample_pixel<false>(geometry, tile, mask, image, weights, cells, columns, part);
            }
        }
        if (!part.last()) {
            __syncthreads();
        }
    });
}
