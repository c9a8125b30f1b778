// x, offset, mask -> columns:  columns[n, g, p, k, c] = mask_k(p) * x[n, c](p + p_k + offset_k(p)).
//
// A block takes a tile of output pixels, 8 wide, and one deformable group. First its threads compute the
// sampling points, one each: four weights, mask included, and the cell they start from, into shared
// memory. So coordinates are worked out once a point, not once a channel. Then LANES neighbouring
// threads share a pixel and walk its taps: a lane reads VECTOR channels of the four corners at once from
// the channels-last copy (16 bytes where C_in allows) and writes the column; LANES * 16 bytes are one
// line of the cache. Channels beyond LANES * VECTOR are further steps with the point in registers.
//
// Launch: grid (tiles along a row * DG, tiles along y, images), BLOCK threads. Bytes per column element:
// written once; read four times from the caches, about once from memory.
#include "bilinear.cuh"

// FACTORED: a mask that is infinite, or no number, must multiply the sampled value, 0 outside included,
// not its parts, which would be 0 * inf. Such points carry their plain weights and are multiplied here.
template <bool FACTORED>
__device__ void sample_pixel(const Geometry &geometry, const Tile &tile, const Sampler &sampler,
                             const data_t *corner, const Weights *weights, const index_t *cells,
                             data_t *column, int first_tap, int taps) {
    const int pixel = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const index_t pitch = Cells(geometry).pitch;
    corner += tile.group * SHARED_CHANNELS + lane * VECTOR;
    column += first_column(geometry, tile, pixel, lane) + index_t(first_tap) * GROUP_CHANNELS;
    asm("" : "+l"(corner));
    asm("" : "+l"(column));
#pragma unroll(FACTORED ? 1 : 2)
    for (int tap = 0; tap < taps; ++tap) {
        const Weights weight = weights[pixel * TAPS_AT_ONCE + tap];
        const data_t *above = corner + cells[pixel * TAPS_AT_ONCE + tap], *below = above + pitch;
        compute_t factor = 1;
        if (FACTORED) {
            const compute_t value = sampler.factor(first_tap + tap);
            factor = isfinite(value) ? compute_t(1) : value;
        }
        each_vector(lane, [&](int channel, int at) {
            const auto v00 = load<VECTOR>(above + at), v01 = load<VECTOR>(above + at + CHANNELS);
            const auto v10 = load<VECTOR>(below + at), v11 = load<VECTOR>(below + at + CHANNELS);
            Vector<data_t, VECTOR> sampled;
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                compute_t value = weight.at[0] * widen(v00.at[i]);
                value += weight.at[1] * widen(v01.at[i]);
                value += weight.at[2] * widen(v10.at[i]);
                value += weight.at[3] * widen(v11.at[i]);
                narrow(FACTORED ? factor * value : value, sampled.at[i]);
            }
            store(column + index_t(tap) * GROUP_CHANNELS +
                      in_column(geometry, tile, channel, at),
                  sampled);
        });
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 768 / BLOCK)
    deform_im2col(const Geometry geometry, const data_t *__restrict__ image,
                  const offset_t *__restrict__ offset, const mask_t *__restrict__ mask,
                  data_t *__restrict__ columns) {
    __shared__ Weights weights[SAMPLES];
    __shared__ index_t cells[SAMPLES];
    const Tile tile;
    const Cells layout(geometry);
    const Sampler planned(geometry, tile, offset, mask, planned_pixel());
    for (int first_tap = 0; first_tap < TAPS; first_tap += TAPS_AT_ONCE) {
        const int taps = min(TAPS_AT_ONCE, TAPS - first_tap);
        int factored = 0;
        each_point(geometry, tile, taps, [&](int slot, int tap) {
            const Coordinate y = planned.row(first_tap + tap), x = planned.column(first_tap + tap);
            const bool inside = y.inside && x.inside;
            compute_t factor = planned.factor(first_tap + tap);
            if (!isfinite(factor)) {
                factored = 1;
                factor = 1;
            }
            weights[slot] = inside ? bilinear_weights(y.fraction, x.fraction, factor) : Weights{};
            cells[slot] = inside ? layout.at(y.whole, x.whole) : layout.zero;
        });
        factored = __syncthreads_or(factored);
        if (tile.holds(geometry, threadIdx.x / LANES)) {
            const Sampler sampler(geometry, tile, offset, mask, threadIdx.x / LANES);
            const data_t *from = image + tile.image * layout.count * CHANNELS;
            if (MASKED && factored) {
                sample_pixel<true>(geometry, tile, sampler, from, weights, cells, columns,
                                   first_tap, taps);
            } else {
                sample_pixel<false>(geometry, tile, sampler, from, weights, cells, columns,
                                    first_tap, taps);
            }
        }
        if (first_tap + TAPS_AT_ONCE < TAPS) {
            __syncthreads();
        }
    }
}
