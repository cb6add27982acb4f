/* What an x86-64 processor has, and the operating system lets programs use.

   __builtin_cpu_supports answers this too, but zig's own run-time library says no to everything. */

#ifndef UNIRNN_CPU_H
#define UNIRNN_CPU_H

#if defined(__x86_64__)

#include <cpuid.h>

/* Whether it has all of these bits, of leaf 1, ecx, and of leaf 7, ebx, and the system saves these registers. */
static int cpu_has(unsigned leaf_1, unsigned leaf_7, unsigned registers) {
    const unsigned osxsave = 1u << 27;
    unsigned eax, ebx, ecx, edx, saved, high;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & osxsave) || (ecx & leaf_1) != leaf_1) return 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (ebx & leaf_7) != leaf_7) return 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    return (saved & registers) == registers;
}

/* AVX2 and FMA. */
static int cpu_has_avx2(void) { return cpu_has(1u << 28 | 1u << 12, 1u << 5, 0x6); }

/* These, and AVX-512 F, DQ, BW and VL. */
static int cpu_has_avx512(void) {
    return cpu_has_avx2() && cpu_has(0, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, 0xe6);
}

#endif

#endif
