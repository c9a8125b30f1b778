// grad_columns, turned_columns, x, offset, mask and a direction in each -> gradients of x, offset and mask:
// the backward of deform_backward. With weights and their tangents as in tangent.cuh, the dot products
// over channels p_ab = <grad_columns, x_ab>, q_ab = <grad_columns, dx_ab> + <turned_columns, x_ab>, and
// D_y, D_x, D, T what deform_coord_grad.cu makes of four dots (by dy, by dx, their mean; without the
// mask) and their twist, by both dy and dx:
//
//   grad_x    : each corner gets weight' * grad_columns + weight * turned_columns
//   grad_dy   = mask * D_y(q) + dmask * D_y(p) + mask * tx * T(p)      T(p) = p_00 - p_01 - p_10 + p_11
//   grad_dx   = mask * D_x(q) + dmask * D_x(p) + mask * ty * T(p)
//   grad_mask = D(q) + ty * D_y(p) + tx * D_x(p)
//
// turned_columns are those of the weight's direction. What is null is 0, and what it would multiply is not
// read. These are linear in the dots, so each lane works them out of its own channels' share, and three
// numbers a point are summed over the lanes.
//
// Launch: as deform_im2col. Bytes per column element: both columns read once; eight corners from the
// caches, four additions in the cache.
#ifndef GRAD_X
#define GRAD_X 1 // which of them are wanted
#define GRAD_OFFSET 1
#define GRAD_MASK MASKED
#define COLUMNS 0
#endif
#include "dots.cuh"
#include "tangent.cuh"

// The sum over the lanes of a pixel, which all of them get.
__device__ inline compute_t over_lanes(compute_t value) {
    const unsigned members = ((1u << LANES) - 1) << (threadIdx.x % 32 / LANES * LANES);
    value += LANES > 1 ? exchange<1>(members, value) : 0;
    value += LANES > 2 ? exchange<2>(members, value) : 0;
    value += LANES > 4 ? exchange<4>(members, value) : 0;
    return value;
}

struct Sources {
    const data_t *grad_columns, *turned_columns, *image, *image_direction;
};

// Some channels of one point: adds to the dots p and q, and to grad_image.
__device__ inline void pull_vector(const Sources &from, const TangentPoint &point, bool moves,
                                   const compute_t (&grad)[VECTOR],
                                   const compute_t (&turned)[VECTOR], index_t at, index_t pitch,
                                   Weights &p, Weights &q, compute_t *grad_image) {
    each_corner([&](auto k) {
        const index_t corner = at + corner_step<k.value>(pitch);
        if ((GRAD_OFFSET || GRAD_MASK) && from.image) {
            const auto values = load<VECTOR>(from.image + corner);
#pragma unroll
            for (int i = 0; i < LIVE; ++i) {
                p.at[k.value] += grad[i] * widen(values.at[i]);
                q.at[k.value] += from.turned_columns ? turned[i] * widen(values.at[i]) : 0;
            }
        }
        if ((GRAD_OFFSET || GRAD_MASK) && from.image_direction) {
            const auto values = load<VECTOR>(from.image_direction + corner);
#pragma unroll
            for (int i = 0; i < LIVE; ++i) {
                q.at[k.value] += grad[i] * widen(values.at[i]);
            }
        }
        if (GRAD_X) {
            compute_t shares[VECTOR] = {};
#pragma unroll
            for (int i = 0; i < LIVE; ++i) {
                shares[i] = (moves ? point.tangents.at[k.value] * grad[i] : 0) +
                            (from.turned_columns ? point.weights.at[k.value] * turned[i] : 0);
            }
            add_atomically<k.value % 2 * COPY_CHANNELS>(grad_image + at + k.value / 2 * pitch,
                                                        shares);
        }
    });
}

__device__ inline void widen_column(const Geometry &geometry, const Tile &tile, const data_t *column,
                                    int lane, int channel, compute_t (&wide)[VECTOR]) {
    const auto values = load_column(geometry, tile, column, lane, channel);
#pragma unroll
    for (int i = 0; i < LIVE; ++i) {
        wide[i] = widen(values.at[i]);
    }
}

// The gradients of a point by the dots of a lane's channels.
__device__ inline CoordinateGradients second_gradients(const TangentPoint &point, bool moves,
                                                       const Weights &p, const Weights &q) {
    CoordinateGradients gradients, slopes;
    gradients.set(q, point.y, point.x, point.factor);
    gradients.set_mask(q, point.y, point.x);
    if (moves) {
        slopes.set(p, point.y, point.x, 1);
        const compute_t twist = point.factor * (p.at[0] - p.at[1] - p.at[2] + p.at[3]);
        gradients.y += point.by_factor * slopes.y + point.by_x * twist;
        gradients.x += point.by_factor * slopes.x + point.by_y * twist;
        gradients.mask += point.by_y * slopes.y + point.by_x * slopes.x;
    }
    return gradients;
}

extern "C" __global__ void __launch_bounds__(BLOCK, 1)
    deform_double_backward(const Geometry geometry, const DirectionStrides strides,
                           const data_t *__restrict__ grad_columns,
                           const data_t *__restrict__ turned_columns,
                           const data_t *__restrict__ image,
                           const data_t *__restrict__ image_direction,
                           const offset_t *__restrict__ offset, const mask_t *__restrict__ mask,
                           const offset_t *__restrict__ offset_direction,
                           const mask_t *__restrict__ mask_direction,
                           compute_t *__restrict__ grad_image, offset_t *__restrict__ grad_offset,
                           mask_t *__restrict__ grad_mask) {
    const Tile tile;
    const Cells layout(geometry);
    const Direction direction{strides, offset_direction, mask_direction};
    const int pixel = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    if (!tile.holds(geometry, pixel)) {
        return;
    }
    const Sources from{grad_columns, turned_columns, image, image_direction};
    const bool moves = direction.moves();
    const index_t first = tile.image * layout.size + tile.group * COPY_SHARED + lane * VECTOR;
    const index_t column = first_column(geometry, tile, pixel, lane);
    CoordinateWriter writer(geometry, tile, grad_offset, grad_mask, pixel, 0);
    each_tangent(geometry, tile, layout, offset, mask, direction, pixel,
                 [&](int tap, const TangentPoint &point) {
        CoordinateGradients gradients;
        if (point.inside) {
            Weights p{}, q{};
            const index_t at_tap = column + tap * tap_stride(geometry);
            each_vector<1>(lane, [&](int channel, int at) {
                compute_t grad[VECTOR] = {}, turned[VECTOR] = {};
                if (from.grad_columns) {
                    widen_column(geometry, tile, from.grad_columns + at_tap, lane, channel, grad);
                }
                if (from.turned_columns) {
                    widen_column(geometry, tile, from.turned_columns + at_tap, lane, channel,
                                 turned);
                }
                pull_vector(from, point, moves, grad, turned, first + point.cell + at,
                            layout.pitch, p, q, grad_image);
            });
            gradients = second_gradients(point, moves, p, q);
            gradients.y = over_lanes(gradients.y);
            gradients.x = over_lanes(gradients.x);
            gradients.mask = over_lanes(gradients.mask);
        }
        if (lane == 0) {
            writer.write(gradients);
        }
    });
}
