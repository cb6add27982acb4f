/* Products of matrices. One loop multiplies; everything else says what it runs over, and where the sums begin and go.

   A factor W (K, N) is *packed*: cut into panels of `width` vectors of columns, so that the loop reads memory in order:
   (N / (width * LANES), K, width * LANES), the last panel filled up with zeros.

   Each element of a product is one sum over k = 0, 1, 2, ..., whatever else is computed beside it. So a row of a result
   has the same bits in any batch, and with any number of threads. */

#define PANEL 2           /* the width, in vectors, where nothing else decides it */
#define DEPTH 256         /* how many rows of a panel are multiplied at once, so that they stay in the nearest cache */
#define MOST_ROWS SUMS / 2

INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

INLINE int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t most_of(int64_t a, int64_t b) { return a > b ? a : b; }

/* sums[panel][row][v] += a[row][k] * w[panel][k][v] for all k. `rows`, `width` and `panels` are constants of the caller's,
   so that the sums stay in registers. */
INLINE void multiply_add(int rows, int width, int panels, const real *a, int64_t row_stride, int64_t k_stride,
                         const real *w, int64_t panel_stride, int64_t count, vec *sums) {
    for (int64_t k = 0; k < count; k++) {
#pragma GCC unroll 4
        for (int p = 0; p < panels; p++) {
            const real *at = w + p * panel_stride + k * width * LANES;
            if (rows > width) { /* as few registers for factors as possible */
                vec columns[width];
#pragma GCC unroll 4
                for (int v = 0; v < width; v++) columns[v] = load(at + v * LANES);
#pragma GCC unroll 12
                for (int i = 0; i < rows; i++) {
                    vec factor = splat(a[i * row_stride + k * k_stride]);
#pragma GCC unroll 4
                    for (int v = 0; v < width; v++) sums[(p * rows + i) * width + v] += factor * columns[v];
                }
            } else {
                vec factors[rows];
#pragma GCC unroll 4
                for (int i = 0; i < rows; i++) factors[i] = splat(a[i * row_stride + k * k_stride]);
#pragma GCC unroll 4
                for (int v = 0; v < width; v++) {
                    vec column = load(at + v * LANES);
#pragma GCC unroll 4
                    for (int i = 0; i < rows; i++) sums[(p * rows + i) * width + v] += factors[i] * column;
                }
            }
        }
    }
}

/* Call BODY(rows, panels) for blocks of at most as many rows as the registers have sums for, and, if there are few rows,
   for several panels at once. BODY is an inline function's call, so that both are constants there. */
#define IN_BLOCK_OF(r, w, panels, BODY) \
    case r: if ((r) * (w) * (panels) <= SUMS) { BODY(r, panels); } break;
#define IN_BLOCKS(num_rows, w, panels, BODY) \
    switch (num_rows) { \
        IN_BLOCK_OF(1, w, panels, BODY) IN_BLOCK_OF(2, w, panels, BODY) IN_BLOCK_OF(3, w, panels, BODY) \
        IN_BLOCK_OF(4, w, panels, BODY) IN_BLOCK_OF(5, w, panels, BODY) IN_BLOCK_OF(6, w, panels, BODY) \
        IN_BLOCK_OF(7, w, panels, BODY) IN_BLOCK_OF(8, w, panels, BODY) IN_BLOCK_OF(9, w, panels, BODY) \
        IN_BLOCK_OF(10, w, panels, BODY) IN_BLOCK_OF(11, w, panels, BODY) IN_BLOCK_OF(12, w, panels, BODY) \
    }
