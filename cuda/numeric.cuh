// What a number is: the types of storage, arithmetic and indices, and vectors of stored values.
//
// The kernels are specialised by macros, compiled at first use. The half types are two bytes of storage
// and nothing else: they are widened to float when read and rounded when written. Their conversions
// are single PTX instructions, so that no header is needed to compile.
#pragma once

#ifndef DATA
#define DATA float // x, columns and their gradients: float, double, float16 or bfloat16
#endif
#ifndef OFFSET_DATA
#define OFFSET_DATA DATA // offsets may be float beside half-precision x
#endif
#ifndef MASK_DATA
#define MASK_DATA DATA // and so may masks
#endif
#ifndef INDEX
#define INDEX int32 // int64 where an array has more than 2^31 - 1 elements
#endif

typedef int int32;
typedef long long int64;

struct float16 {
    unsigned short bits;
};
struct bfloat16 {
    unsigned short bits;
};

template <typename T>
struct Unsigned {
    typedef unsigned type;
};
template <>
struct Unsigned<int64> {
    typedef unsigned long long type;
};

template <typename T>
struct Compute {
    typedef float type;
};
template <>
struct Compute<double> {
    typedef double type;
};

typedef DATA data_t;
typedef OFFSET_DATA offset_t;
typedef MASK_DATA mask_t;
typedef Compute<data_t>::type compute_t;
typedef INDEX index_t;
typedef Unsigned<index_t>::type unsigned_t;

// The floor as an index. Beyond the index type it saturates; NaN gives 0.
template <typename T>
__device__ inline T floor_to(float value) {
    return sizeof(T) == 4 ? T(__float2int_rd(value)) : T(__float2ll_rd(value));
}
template <typename T>
__device__ inline T floor_to(double value) {
    return sizeof(T) == 4 ? T(__double2int_rd(value)) : T(__double2ll_rd(value));
}

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(float16 value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}
__device__ inline float widen(bfloat16 value) { return __uint_as_float((unsigned)value.bits << 16); }

__device__ inline void narrow(float value, float &stored) { stored = value; }
__device__ inline void narrow(double value, double &stored) { stored = value; }
__device__ inline void narrow(float value, float16 &stored) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(stored.bits) : "f"(value));
}
__device__ inline void narrow(float value, bfloat16 &stored) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(stored.bits) : "f"(value));
#else // to nearest, ties to even, by hand
    const unsigned bits = __float_as_uint(value);
    const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    stored.bits = value == value ? rounded : 0x7fffu;
#endif
}

// Consecutive values, moved by one instruction: at most 16 bytes, aligned to their size.
template <typename T, int N>
struct alignas(N * sizeof(T)) Vector {
    T at[N];
};

template <int N, typename T>
__device__ inline Vector<T, N> load(const T *from) {
    return *reinterpret_cast<const Vector<T, N> *>(from);
}
template <int N, typename T>
__device__ inline void store(T *to, const Vector<T, N> &values) {
    *reinterpret_cast<Vector<T, N> *>(to) = values;
}

// Adds N consecutive values to memory that other threads add to as well. From sm_90 on (CUDA 12.1) four
// floats, or two, are one reduction; it is written out, since atomicAdd of a float4 returns the sum
// it replaces. Below, and for double, each is its own.
template <int N>
__device__ inline void add_atomically(float *to, const float (&values)[N]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && \
    __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201
    constexpr int WIDTH = N % 4 == 0 ? 4 : N % 2 == 0 ? 2 : 1;
#else
    constexpr int WIDTH = 1;
#endif
#pragma unroll
    for (int i = 0; i < N; i += WIDTH) {
        if constexpr (WIDTH == 4) {
            asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(
                             __cvta_generic_to_global(to + i)),
                         "f"(values[i]), "f"(values[i + 1]), "f"(values[i + 2]), "f"(values[i + 3])
                         : "memory");
        } else if constexpr (WIDTH == 2) {
            asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(
                             __cvta_generic_to_global(to + i)),
                         "f"(values[i]), "f"(values[i + 1])
                         : "memory");
        } else {
            atomicAdd(to + i, values[i]);
        }
    }
}
template <int N>
__device__ inline void add_atomically(double *to, const double (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        atomicAdd(to + i, values[i]);
    }
}
