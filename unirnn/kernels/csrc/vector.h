/* A vector of the registers' width, and what is computed with it. The compiler's vector types do the arithmetic, so
   this file is the same for every instruction set.

   Included once for each instruction set and type, with DOUBLE set to 0 or 1. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if DOUBLE
typedef double real;
typedef int64_t whole;
typedef uint64_t natural;
#define MANTISSA 52
#define ROUNDING 6755399441055744.0 /* 1.5 * 2**52: adding it rounds to a whole number */
#define EXP_LEAST -746.0            /* below it, exp is 0 */
#define TANH_LEAST -80.0            /* below it, exp(x) - 1 is -1 */
#define LN2_HIGH 0x1.62e42fefa0000p-1
#define LN2_LOW 0x1.cf79abc9e3b3ap-40
#else
typedef float real;
typedef int32_t whole;
typedef uint32_t natural;
#define MANTISSA 23
#define ROUNDING 12582912.0f
#define EXP_LEAST -105.0f
#define TANH_LEAST -40.0f
#define LN2_HIGH 0x1.62e4p-1f
#define LN2_LOW 0x1.7f7d1cp-20f
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

/* How many sums fit into the registers, with room left for the factors. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define SUMS 24
#else
#define SUMS 12
#endif

#define LANES ((int64_t)(VECTOR_BYTES / sizeof(real)))

typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef whole ivec __attribute__((vector_size(VECTOR_BYTES)));
typedef natural uvec __attribute__((vector_size(VECTOR_BYTES))); /* for sums that may overflow */
typedef real vec_in_memory __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

INLINE vec splat(real x) { return x - (vec){0}; }

INLINE ivec isplat(whole x) { return x - (ivec){0}; }

INLINE vec load(const real *p) { return (vec)*(const vec_in_memory *)p; }

INLINE void store(real *p, vec x) { *(vec_in_memory *)p = (vec_in_memory)x; }

/* The first `count` lanes; the others are 0. */
INLINE vec load_some(const real *p, int64_t count) {
    if (count >= LANES) return load(p);
    real lanes[LANES] = {0};
    for (int64_t i = 0; i < count; i++) lanes[i] = p[i];
    return load(lanes);
}

INLINE void store_some(real *p, vec x, int64_t count) {
    if (count >= LANES) {
        store(p, x);
        return;
    }
    real lanes[LANES];
    store(lanes, x);
    for (int64_t i = 0; i < count; i++) p[i] = lanes[i];
}

/* Lane by lane: a where the mask is set, else b. */
INLINE vec choose(ivec mask, vec a, vec b) { return (vec)(((ivec)a & mask) | ((ivec)b & ~mask)); }

INLINE vec absolute(vec x) { return (vec)((ivec)x & ~(ivec)splat((real)-0.0)); }

INLINE vec with_sign(vec x, vec sign) {
    ivec bit = (ivec)splat((real)-0.0);
    return (vec)(((ivec)x & ~bit) | ((ivec)sign & bit));
}

/* A vector of lanes chosen from a and b; lane k of b has number LANES + k. */
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

/* F(j, size) for all lanes j. */
#define LANES_2(F, size, j) F(j, size), F(j + 1, size)
#define LANES_4(F, size, j) LANES_2(F, size, j), LANES_2(F, size, j + 2)
#define LANES_8(F, size, j) LANES_4(F, size, j), LANES_4(F, size, j + 4)
#define LANES_16(F, size, j) LANES_8(F, size, j), LANES_8(F, size, j + 8)
#if VECTOR_BYTES / (DOUBLE ? 8 : 4) == 2
#define ALL_LANES(F, size) LANES_2(F, size, 0)
#elif VECTOR_BYTES / (DOUBLE ? 8 : 4) == 4
#define ALL_LANES(F, size) LANES_4(F, size, 0)
#elif VECTOR_BYTES / (DOUBLE ? 8 : 4) == 8
#define ALL_LANES(F, size) LANES_8(F, size, 0)
#else
#define ALL_LANES(F, size) LANES_16(F, size, 0)
#endif

/* One round of a transposition: in each square of two by two blocks of `size` lanes, swap the two off the diagonal. */
#define OF_UPPER(j, size) (((j) & (size)) ? (j) - (size) + LANES : (j))
#define OF_LOWER(j, size) (((j) & (size)) ? (j) + LANES : ((j) + (size)) % LANES)
#define SWAP_BLOCKS(size) \
    for (int64_t i = 0; i < LANES; i++) { \
        if (i & size) continue; \
        vec a = rows[i], b = rows[i + size]; \
        rows[i] = SHUFFLE(a, b, ALL_LANES(OF_UPPER, size)); \
        rows[i + size] = SHUFFLE(a, b, ALL_LANES(OF_LOWER, size)); \
    }

/* Transpose LANES vectors: lane j of vector i becomes lane i of vector j. */
INLINE void transpose(vec *rows) {
    SWAP_BLOCKS(1)
    if (LANES > 2) SWAP_BLOCKS(2)
    if (LANES > 4) SWAP_BLOCKS(4)
    if (LANES > 8) SWAP_BLOCKS(8)
}

/* 2**n, for n whose result is a normal number. */
INLINE vec power_of_two(ivec n) { return (vec)(((uvec)n + (uvec)isplat(DOUBLE ? 1023 : 127)) << MANTISSA); }

/* exp(r) - 1 = r + r^2 q(r) for |r| <= ln(2) / 2, with the polynomial q of the least relative error (Remez). */
INLINE vec exp_less_1_near_0(vec r) {
#if DOUBLE
    const real q[] = {0.49999999999999999991, 0.1666666666666667667,   0.041666666666666693966,  0.0083333333333215538333,
                      0.0013888888888869891819, 0.00019841269886324796623, 0.000024801587355199549209,
                      2.7557244005450454454e-6, 2.7557246950948429537e-7, 2.5109109529904724277e-8,
                      2.0923239525910131088e-9};
#else
    const real q[] = {0.50000000465251570921f,  0.16666666817446382386f,   0.041666354164160390066f,
                      0.0083332729520159902316f, 0.0013941050040300050437f, 0.00019914229072181964013f};
#endif
    const int degree = sizeof(q) / sizeof(q[0]) - 1;
    vec sum = splat(q[degree]);
    for (int i = degree - 1; i >= 0; i--) sum = sum * r + splat(q[i]);
    return (r * r) * sum + r;
}

/* x = n ln(2) + r, with n whole and |r| <= ln(2) / 2; gives r. */
INLINE vec reduce(vec x, ivec *n) {
    vec shifted = x * splat((real)1.4426950408889634074) + splat(ROUNDING);
    vec whole_part = shifted - splat(ROUNDING);
    *n = (ivec)((uvec)shifted - (uvec)splat(ROUNDING)); /* of use only if it does not overflow */
    return (x - whole_part * splat(LN2_HIGH)) - whole_part * splat(LN2_LOW);
}

/* 1 / (1 + exp(-x)), computed from exp(-|x|), which can't overflow and is accurate for large negative x too. */
INLINE vec sigmoid(vec x) {
    vec y = -absolute(x);
    ivec n;
    vec r = reduce(y, &n);
    /* In two factors, since 2**n itself may be too small for a normal number. */
    ivec half = n >> 1;
    vec e = (splat(1) + exp_less_1_near_0(r)) * power_of_two(half) * power_of_two(n - half);
    e = choose(y < splat(EXP_LEAST), splat(0), e);
    return choose(x < splat(0), e, splat(1)) / (splat(1) + e);
}

/* Computed from exp(-2|x|) - 1, which stays accurate for small x. */
INLINE vec tanh_of(vec x) {
    vec y = absolute(x) * splat(-2);
    ivec n;
    vec r = reduce(y, &n);
    vec power = power_of_two(n);
    vec e = power * exp_less_1_near_0(r) + (power - splat(1));
    e = choose(y < splat(TANH_LEAST), splat(-1), e);
    return with_sign(-e / (splat(2) + e), x);
}
