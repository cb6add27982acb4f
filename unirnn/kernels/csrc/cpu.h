/* Which instruction sets this processor can run, and the operating system lets it run.

   __builtin_cpu_supports would say the same, but some compilers' run-time libraries answer no to everything. */

#ifndef UNIRNN_CPU_H
#define UNIRNN_CPU_H

#if defined(__x86_64__)
#include <cpuid.h>

enum { CPU_BASELINE = 1, CPU_AVX2 = 2, CPU_AVX512 = 4 };

static int cpu_sets(void)
{
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX = 1 << 28 };                             /* leaf 1, ecx */
    enum { AVX2 = 1 << 5, AVX512F = 1 << 16, AVX512DQ = 1 << 17, AVX512BW = 1 << 30 };    /* leaf 7, ebx */
    const unsigned leaf1 = FMA | OSXSAVE | AVX, avx512 = AVX512F | AVX512DQ | AVX512BW | 1u << 31 /* AVX512VL */;
    const unsigned ymm = 0x6, zmm = 0xe6; /* the registers that the operating system saves */
    unsigned a, b, c, d, saved, high;

    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & leaf1) != leaf1) return CPU_BASELINE;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if ((saved & ymm) != ymm || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & AVX2)) return CPU_BASELINE;
    if ((saved & zmm) != zmm || (b & avx512) != avx512) return CPU_BASELINE | CPU_AVX2;
    return CPU_BASELINE | CPU_AVX2 | CPU_AVX512;
}
#endif

#endif
