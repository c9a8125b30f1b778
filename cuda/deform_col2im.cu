// grad_columns, offset, mask -> grad_x: the adjoint of deform_im2col. Every column element is added,
// times mask and bilinear weight, to its four corners.
//
// Launch: as deform_im2col. Bytes per column element: read once; four additions in the cache.
#ifndef GRAD_X
#define GRAD_X 1
#define GRAD_OFFSET 0
#define GRAD_MASK 0
#define COLUMNS 0
#endif
#include "pullback.cuh"

extern "C" __global__ void __launch_bounds__(BLOCK, AT_LEAST_BLOCKS)
    deform_col2im(const Geometry geometry, data_t *grad_columns,
                  const offset_t *__restrict__ offset, const mask_t *__restrict__ mask,
                  compute_t *__restrict__ grad_image) {
    pull_back(geometry, grad_columns, nullptr, offset, mask, grad_image, nullptr, nullptr);
}
