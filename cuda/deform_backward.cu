// grad_columns, x, offset, mask -> grad_x, grad_offset, grad_mask and the columns, in one pass: deform_col2im,
// deform_coord_grad and deform_im2col joined.
//
// Registers: 80 at the most leave room for three blocks of 256, and all common layers (3x3, 1x1, 5x5; 64
// and 256 channels; all dtypes) fit without a spill: 60 to 80. For that the loop over a lane's vectors
// is unrolled only where it has two rounds and all taps are held at once. Unrolled everywhere, up to 32
// bytes spill; with two blocks (512 / BLOCK) there are up to 128 registers, and spills in 5x5 halves yet.
//
// Launch: as deform_im2col. Bytes per column element: read once, written once; four corners from the
// caches; four additions in the cache.
#include "pullback.cuh"

extern "C" __global__ void __launch_bounds__(BLOCK, AT_LEAST_BLOCKS)
    deform_backward(const Geometry geometry, data_t *columns, const data_t *__restrict__ image,
                    const offset_t *__restrict__ offset, const mask_t *__restrict__ mask,
                    compute_t *__restrict__ grad_image, offset_t *__restrict__ grad_offset,
                    mask_t *__restrict__ grad_mask) {
    pull_back(geometry, columns, image, offset, mask, grad_image, grad_offset, grad_mask);
}
