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
struct Bytes {
    typedef char type;
};
template <typename T>
struct Bytes<const T> {
    typedef const char type;
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

// A number that the compiler knows, as an argument.
template <int N>
struct Constant {
    static constexpr int value = N;
};

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

// Values rounded to those of storage: from sm_80 on two halves by one instruction, which packs them too (S1's
// backward in float16: 29 instructions an element for 30).
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
__device__ inline void narrow(float low, float high, Vector<float16, 2> &stored) {
    unsigned bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    memcpy(&stored, &bits, sizeof(bits));
}
__device__ inline void narrow(float low, float high, Vector<bfloat16, 2> &stored) {
    unsigned bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    memcpy(&stored, &bits, sizeof(bits));
}
#endif
template <typename T>
__device__ inline void narrow(compute_t low, compute_t high, Vector<T, 2> &stored) {
    narrow(low, stored.at[0]);
    narrow(high, stored.at[1]);
}
template <int N>
__device__ inline Vector<data_t, N> narrowed(const compute_t (&values)[N]) {
    Vector<data_t, N> stored;
#pragma unroll
    for (int i = 0; i + 1 < N; i += 2) {
        Vector<data_t, 2> pair;
        narrow(values[i], values[i + 1], pair);
        stored.at[i] = pair.at[0];
        stored.at[i + 1] = pair.at[1];
    }
    if (N % 2) {
        narrow(values[N - 1], stored.at[N - 1]);
    }
    return stored;
}

template <int N, typename T>
__device__ inline Vector<T, N> load(const T *from) {
    return *reinterpret_cast<const Vector<T, N> *>(from);
}
template <int N, typename T>
__device__ inline void store(T *to, const Vector<T, N> &values) {
    *reinterpret_cast<Vector<T, N> *>(to) = values;
}

// A value that is kept in a register as it is: left alone, the compiler derives it anew from its parts at
// each use.
__device__ inline int32 kept(int32 value) {
    asm("" : "+r"(value));
    return value;
}
__device__ inline int64 kept(int64 value) {
    asm("" : "+l"(value));
    return value;
}
template <typename T>
__device__ inline T *kept(T *global) {
    size_t address = __cvta_generic_to_global(global);
    asm("" : "+l"(address));
    return static_cast<T *>(__cvta_global_to_generic(address));
}

// How far a pointer steps, in bytes and kept: in elements it would be widened and multiplied at each step.
template <typename T>
struct Step {
    int64 bytes;

    __device__ explicit Step(index_t elements) : bytes(kept(int64(elements) * int64(sizeof(T)))) {}

    __device__ friend T *operator+(T *from, Step step) {
        typedef typename Bytes<T>::type bytes_t;
        return reinterpret_cast<T *>(reinterpret_cast<bytes_t *>(from) + step.bytes);
    }
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && \
    __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201
constexpr bool REDUCES_VECTORS = true;
#else
constexpr bool REDUCES_VECTORS = false;
#endif

// Adds N consecutive values to memory that other threads add to as well, AT elements behind `to`, and that
// the kernel does not read. From sm_90 on (CUDA 12.1) four floats, or two, are one reduction; it is
// written out, since atomicAdd of a float4 returns the sum it replaces. Below, and for double, each is
// its own. AT is part of the instruction.
template <int AT, int FIRST = 0, int N>
__device__ inline void add_atomically(float *to, const float (&values)[N]) {
    constexpr int WIDTH = !REDUCES_VECTORS ? 1 : N % 4 == 0 ? 4 : N % 2 == 0 ? 2 : 1;
    if constexpr (WIDTH == 4) {
        asm volatile("red.global.add.v4.f32 [%0 + %5], {%1, %2, %3, %4};" ::"l"(
                         __cvta_generic_to_global(to)),
                     "f"(values[FIRST]), "f"(values[FIRST + 1]), "f"(values[FIRST + 2]),
                     "f"(values[FIRST + 3]), "n"((AT + FIRST) * 4));
    } else if constexpr (WIDTH == 2) {
        asm volatile("red.global.add.v2.f32 [%0 + %3], {%1, %2};" ::"l"(
                         __cvta_generic_to_global(to)),
                     "f"(values[FIRST]), "f"(values[FIRST + 1]), "n"((AT + FIRST) * 4));
    } else {
        atomicAdd(to + AT + FIRST, values[FIRST]);
    }
    if constexpr (FIRST + WIDTH < N) {
        add_atomically<AT, FIRST + WIDTH>(to, values);
    }
}
template <int AT, int N>
__device__ inline void add_atomically(double *to, const double (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        atomicAdd(to + AT + i, values[i]);
    }
}

// What the lane that differs in bit DISTANCE has. Written out for float: the intrinsic moves it between
// registers of integers and of floats.
template <int DISTANCE>
__device__ inline float exchange(unsigned members, float value) {
    float other;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, %3;"
                 : "=f"(other)
                 : "f"(value), "n"(DISTANCE), "r"(members));
    return other;
}
template <int DISTANCE>
__device__ inline double exchange(unsigned members, double value) {
    return __shfl_xor_sync(members, value, DISTANCE);
}
