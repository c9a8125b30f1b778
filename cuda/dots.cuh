// The four dot products s_ab of grad_columns with the corners of a sampling point, and what follows from
// them: the gradients of offset and mask (formulas in deform_coord_grad.cu).
#pragma once

#include "bilinear.cuh"

// Sums dots over the LANES threads of a pixel, by shuffles that halve the number of dots while they double
// the number of lanes summed over. What depends on the lane alone is kept in registers.
class LaneSums {
  public:
    __device__ explicit LaneSums(int lane)
        // The lanes of one pixel: those of its neighbour may be at another tap, or have no pixel.
        : members(kept(int(((1u << LANES) - 1) << (threadIdx.x % 32 / LANES * LANES)))),
          odd(kept(lane & 1)),
          second(kept(lane & 2)),
          writes(lane < 4),
          first(kept(LANES == 2 ? lane * 2 : lane % 2 * 2 + lane / 2 % 2)) {}

    // ADDED: to totals of other channels. IN_PLACE: the totals take the place of the point's weights, once
    // every lane has read them.
    template <bool ADDED, bool IN_PLACE>
    __device__ void sum(compute_t (&dots)[4], Weights &totals) const {
        const compute_t give0 = odd ? dots[0] : dots[2], give1 = odd ? dots[1] : dots[3];
        dots[0] = (odd ? dots[2] : dots[0]) + exchange<1>(members, give0);
        dots[1] = (odd ? dots[3] : dots[1]) + exchange<1>(members, give1);
        if (LANES > 2) {
            const compute_t give = second ? dots[0] : dots[1];
            dots[0] = (second ? dots[1] : dots[0]) + exchange<2>(members, give);
        }
        if (LANES > 4) {
            dots[0] += exchange<4>(members, dots[0]);
        }
        if (IN_PLACE) {
            __syncwarp(members);
        }
        if (ADDED && (LANES <= 4 || writes)) {
            dots[0] += totals.at[first];
            dots[1] += LANES == 2 ? totals.at[first + 1] : 0;
        }
        if (LANES == 2) {
            store(totals.at + first, Vector<compute_t, 2>{dots[0], dots[1]});
        } else if (LANES == 4 || writes) {
            totals.at[first] = dots[0];
        }
    }

  private:
    const unsigned members;
    const int odd, second;
    const bool writes;
    const int first;  // of the dots that the lane is left with
};

// Gradients of one sampling point; outside the image they are 0.
struct CoordinateGradients {
    compute_t y = 0, x = 0, mask = 0;

    __device__ void set(const Weights &s, compute_t fy, compute_t fx, compute_t factor) {
        y = factor * ((1 - fx) * (s.at[2] - s.at[0]) + fx * (s.at[3] - s.at[1]));
        x = factor * ((1 - fy) * (s.at[1] - s.at[0]) + fy * (s.at[3] - s.at[2]));
    }
    __device__ void set_mask(const Weights &s, compute_t fy, compute_t fx) {
        mask = (1 - fy) * ((1 - fx) * s.at[0] + fx * s.at[1]) +
               fy * ((1 - fx) * s.at[2] + fx * s.at[3]);
    }
};

// Where those of one output pixel go, tap after tap.
class CoordinateWriter {
  public:
    __device__ CoordinateWriter(const Geometry &geometry, const Tile &tile, offset_t *grad_offset,
                                mask_t *grad_mask, int pixel, int tap)
        : offset_step(plane(geometry)),
          mask_step(plane(geometry)),
          grad_offset(grad_offset + tile.in_output(geometry, 2 * MASK_CHANNELS, pixel) +
                      2 * (tile.group * TAPS + tap) * plane(geometry)),
          grad_mask(grad_mask + tile.in_output(geometry, MASK_CHANNELS, pixel) +
                    (tile.group * TAPS + tap) * plane(geometry)) {}

    __device__ void write(const CoordinateGradients &gradients) {
        if (GRAD_OFFSET) {
            narrow(gradients.y, *grad_offset);
            grad_offset = grad_offset + offset_step;
            narrow(gradients.x, *grad_offset);
            grad_offset = grad_offset + offset_step;
        }
        if (GRAD_MASK) {
            narrow(gradients.mask, *grad_mask);
            grad_mask = grad_mask + mask_step;
        }
    }

  private:
    static constexpr index_t MASK_CHANNELS = index_t(DEFORMABLE_GROUPS) * TAPS;
    const Step<offset_t> offset_step;
    const Step<mask_t> mask_step;
    offset_t *grad_offset;
    mask_t *grad_mask;

    __device__ static index_t plane(const Geometry &geometry) {
        return geometry.out_height * geometry.out_width;
    }
};
