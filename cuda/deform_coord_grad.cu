// grad_columns, x, offset, mask -> grad_offset, grad_mask. With s_ab the dot product over channels of
// grad_columns and corner ab of a sampling point, and (fy, fx) its fraction:
//
//   grad_dy   = mask * ((1 - fx) * (s_10 - s_00) + fx * (s_11 - s_01))
//   grad_dx   = mask * ((1 - fy) * (s_01 - s_00) + fy * (s_11 - s_10))
//   grad_mask = (1 - fy) * ((1 - fx) * s_00 + fx * s_01) + fy * ((1 - fx) * s_10 + fx * s_11)
//
// Launch: as deform_im2col. Bytes per column element: read once; four corners from the caches.
#ifndef GRAD_X
#define GRAD_X 0
#define GRAD_OFFSET 1
#define GRAD_MASK MASKED
#define COLUMNS 0
#endif
#include "pullback.cuh"

extern "C" __global__ void __launch_bounds__(BLOCK, AT_LEAST_BLOCKS)
    deform_coord_grad(const Geometry geometry, data_t *grad_columns,
                      const data_t *__restrict__ image, const offset_t *__restrict__ offset,
                      const mask_t *__restrict__ mask, offset_t *__restrict__ grad_offset,
                      mask_t *__restrict__ grad_mask) {
    pull_back(geometry, grad_columns, image, offset, mask, nullptr, grad_offset, grad_mask);
}
