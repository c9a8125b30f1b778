// x, offset, mask and a direction in each -> the tangent of the columns:
//
//   columns'[n, g, p, k, c] = sum over corners of weight * dx[n, c] + weight' * x[n, c]
//
// with the weights and their tangents of tangent.cuh: the derivative along the direction of what
// deform_im2col writes. Directions that are null are 0, and what they would multiply is not read.
//
// Launch: as deform_im2col. Bytes per column element: written once; eight corners from the caches.
#include "tangent.cuh"

// Adds a point's corners, times their weights, to a vector of channels.
__device__ inline void add_corners(const data_t *corner, index_t pitch, const Weights &weights,
                                   compute_t (&sums)[VECTOR]) {
    each_corner([&](auto k) {
        const auto values = load<VECTOR>(corner + corner_step<k.value>(pitch));
#pragma unroll
        for (int i = 0; i < LIVE; ++i) {
            sums[i] += weights.at[k.value] * widen(values.at[i]);
        }
    });
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    deform_im2col_tangent(const Geometry geometry, const DirectionStrides strides,
                          const data_t *__restrict__ image,
                          const data_t *__restrict__ image_direction,
                          const offset_t *__restrict__ offset, const mask_t *__restrict__ mask,
                          const offset_t *__restrict__ offset_direction,
                          const mask_t *__restrict__ mask_direction,
                          data_t *__restrict__ columns) {
    const Tile tile;
    const Cells layout(geometry);
    const Direction direction{strides, offset_direction, mask_direction};
    const int pixel = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    if (!tile.holds(geometry, pixel)) {
        return;
    }
    const index_t first = tile.image * layout.size + tile.group * COPY_SHARED + lane * VECTOR;
    data_t *column = columns + first_column(geometry, tile, pixel, lane);
    each_tangent(geometry, tile, layout, offset, mask, direction, pixel,
                 [&](int tap, const TangentPoint &point) {
        each_vector<1>(lane, [&](int channel, int at) {
            compute_t sums[VECTOR] = {};
            if (point.inside && image_direction) {
                add_corners(image_direction + first + point.cell + at, layout.pitch, point.weights,
                            sums);
            }
            if (point.inside && direction.moves()) {
                add_corners(image + first + point.cell + at, layout.pitch, point.tangents, sums);
            }
            Vector<data_t, VECTOR> sampled{};
#pragma unroll
            for (int i = 0; i < LIVE; ++i) {
                narrow(sums[i], sampled.at[i]);
            }
            store_column(geometry, tile, column + tap * tap_stride(geometry), lane, channel,
                         sampled);
        });
    });
}
