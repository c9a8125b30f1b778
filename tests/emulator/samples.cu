// Kernels as they are written in earnest, for the emulator's tests.

extern "C" __global__ void transpose(const float* __restrict__ x, int rows, int cols, float* y) {
    __shared__ float tile[32][33];
    int cx = blockIdx.x * 32 + threadIdx.x, cy = blockIdx.y * 32 + threadIdx.y;
    for (int k = 0; k < 32; k += 8)
        if (cx < cols && cy + k < rows)
            tile[threadIdx.y + k][threadIdx.x] = x[(size_t)(cy + k) * cols + cx];
    __syncthreads();
    cx = blockIdx.y * 32 + threadIdx.x;
    cy = blockIdx.x * 32 + threadIdx.y;
    for (int k = 0; k < 32; k += 8)
        if (cx < rows && cy + k < cols)
            y[(size_t)(cy + k) * rows + cx] = tile[threadIdx.x][threadIdx.y + k];
}

extern "C" __global__ void gather(const float4* __restrict__ x, const int* __restrict__ where,
                                  const float* __restrict__ weights, int n, int taps, float4* y) {
    extern __shared__ float table[];
    for (int i = threadIdx.x; i < taps; i += blockDim.x) table[i] = weights[i];
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        float4 sum = make_float4(0, 0, 0, 0);
        for (int t = 0; t < taps; t++) {
            float4 v = x[where[i * taps + t]];
            float w = table[t];
            sum.x += w * v.x;
            sum.y += w * v.y;
            sum.z += w * v.z;
            sum.w += w * v.w;
        }
        y[i] = sum;
    }
}

extern "C" __global__ void scatter(const float4* x, const int* where, int n, float4* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
#if __CUDA_ARCH__ >= 900
    atomicAdd(y + where[i], x[i]);
#else
    float* p = (float*)(y + where[i]);
    float4 v = x[i];
    atomicAdd(p, v.x);
    atomicAdd(p + 1, v.y);
    atomicAdd(p + 2, v.z);
    atomicAdd(p + 3, v.w);
#endif
}

extern "C" __global__ void total(const float* x, int n, float* y) {
    __shared__ float part[32];
    float sum = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        sum += x[i];
    for (int o = 16; o; o >>= 1) sum += __shfl_down_sync(~0u, sum, o);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.f;
        for (int o = 16; o; o >>= 1) sum += __shfl_down_sync(~0u, sum, o);
        if (threadIdx.x == 0) atomicAdd(y, sum);
    }
}
