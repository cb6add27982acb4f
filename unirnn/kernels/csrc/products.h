/* Products of matrices. One loop multiplies, `multiply_add`; all else decides what it runs over.

   A factor W (K, N) is *packed*: cut into panels of `width` vectors of columns, so that the loop reads memory in order:
   (N / (width * LANES), K, width * LANES), the last panel filled up with zeros.

   A product is computed in *tiles*, as many sums as the registers hold: some rows of the result and one panel or, if
   there are few rows, several panels.

   Each element of a product is one sum over k = 0, 1, 2, ..., whatever else is computed beside it. So a row of a result
   has the same bits in any batch, and with any number of threads. Only `dot_products`, for calls of very few rows, adds
   in another order. */

#define PANEL 2   /* the width of a panel, in vectors, where nothing else decides it */
#define DEPTH 256 /* how many rows of a panel are multiplied at once, so that they stay in the nearest cache */
#define BAND 96   /* how many rows of the other factor are multiplied with all panels before the next rows are */

INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

INLINE int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t most_of(int64_t a, int64_t b) { return a > b ? a : b; }

/* sums[panel][row][v] += a[row][k] * w[panel][k][v] for all k. `rows`, `width` and `panels` are constants of the
   caller's, so that the sums stay in registers. */
INLINE void multiply_add(int rows, int width, int panels, const real *a, int64_t row_stride, int64_t k_stride,
                         const real *w, int64_t panel_stride, int64_t count, vec *sums) {
    for (int64_t k = 0; k < count; k++, a += k_stride, w += width * LANES) {
#pragma GCC unroll 4
        for (int p = 0; p < panels; p++) {
            const real *at = w + p * panel_stride;
            if (rows > width) { /* hold the columns, and one factor at a time */
                vec columns[4];
#pragma GCC unroll 4
                for (int v = 0; v < width; v++) columns[v] = load(at + v * LANES);
#pragma GCC unroll 12
                for (int i = 0; i < rows; i++) {
                    vec factor = splat(a[i * row_stride]);
#pragma GCC unroll 4
                    for (int v = 0; v < width; v++) sums[(p * rows + i) * width + v] += factor * columns[v];
                }
            } else {
                vec factors[4];
                const int up_to_4 = rows < 4 ? rows : 4; /* = rows; tells the compiler that there are at most 4 */
#pragma GCC unroll 4
                for (int i = 0; i < up_to_4; i++) factors[i] = splat(a[i * row_stride]);
#pragma GCC unroll 4
                for (int v = 0; v < width; v++) {
                    vec column = load(at + v * LANES);
#pragma GCC unroll 4
                    for (int i = 0; i < up_to_4; i++) sums[(p * rows + i) * width + v] += factors[i] * column;
                }
            }
        }
    }
}

/* How many rows a tile can have. */
INLINE int64_t most_rows(int width) { return SUMS / width; }

/* How many panels a tile has: several, if there are too few rows to fill the registers with sums. */
INLINE int64_t panels_at_once(int64_t rows, int width, int64_t left) {
    for (int64_t panels = 4; panels > 1; panels /= 2)
        if (panels <= left && panels * rows * width <= SUMS) return panels;
    return 1;
}

/* F(rows, panels, ...) for every number of rows and panels that a tile can have. */
#define ALL_SIZES(F, ...) ALL_ROWS(F, 1, __VA_ARGS__) ALL_ROWS(F, 2, __VA_ARGS__) ALL_ROWS(F, 4, __VA_ARGS__)
#define ALL_ROWS(F, PANELS, ...) \
    F(1, PANELS, __VA_ARGS__) F(2, PANELS, __VA_ARGS__) F(3, PANELS, __VA_ARGS__) F(4, PANELS, __VA_ARGS__) \
    F(5, PANELS, __VA_ARGS__) F(6, PANELS, __VA_ARGS__) F(7, PANELS, __VA_ARGS__) F(8, PANELS, __VA_ARGS__) \
    F(9, PANELS, __VA_ARGS__) F(10, PANELS, __VA_ARGS__) F(11, PANELS, __VA_ARGS__) F(12, PANELS, __VA_ARGS__)

/* CALL(rows, panels, ...) with both as constants. */
#define WITH_CONSTANTS(rows, panels, WIDTH, CALL, ...) \
    switch (16 * (panels) + (rows)) { ALL_SIZES(WITH_ONE, WIDTH, CALL, __VA_ARGS__) }
#define WITH_ONE(ROWS, PANELS, WIDTH, CALL, ...) \
    case 16 * PANELS + ROWS: \
        if (ROWS * PANELS * (WIDTH) <= SUMS) { CALL(ROWS, PANELS, __VA_ARGS__); } \
        break;

/* CALL(rows, panels, ...) for all tiles of the rows [0, count) and the panels [0, num_panels). CALL uses `first_row`
   and `first_panel`, where a tile begins. The tiles have about equally many rows, since one of a single row would be
   slow. If `last_first`, the last panels come first: when every other pass does that, the panels that one pass used
   last are still in the cache when the next pass begins. */
#define FOR_TILES(count, num_panels, WIDTH, last_first, CALL, ...) \
    do { \
        int64_t tiles_ = divide_up(count, most_rows(WIDTH)), at_once_; \
        for (int64_t done_ = 0; done_ < (num_panels); done_ += at_once_) { \
            at_once_ = panels_at_once(count, WIDTH, (num_panels) - done_); \
            int64_t first_panel = (last_first) ? (num_panels) - done_ - at_once_ : done_; \
            for (int64_t tile_ = 0; tile_ < tiles_; tile_++) { \
                int64_t first_row = tile_ * (count) / tiles_; \
                int64_t rows_ = (tile_ + 1) * (count) / tiles_ - first_row; \
                WITH_CONSTANTS(rows_, at_once_, WIDTH, CALL, __VA_ARGS__) \
            } \
        } \
    } while (0)

/* Transpose a square of W with `lanes` rows and `count` columns, at most LANES of each, into `out`. */
INLINE void pack_square(const real *w, int64_t stride, int64_t lanes, int64_t count, real *out, int64_t out_stride) {
    vec square[LANES];
#pragma GCC unroll 16
    for (int64_t i = 0; i < LANES; i++) square[i] = i < lanes ? load_some(w + i * stride, count) : splat(0);
    transpose(square);
#pragma GCC unroll 16
    for (int64_t i = 0; i < LANES; i++)
        if (i < count) store(out + i * out_stride, square[i]);
}

/* Pack the transpose of W (N, K) in panels: out (panels, K, width * LANES). A panel has `units` vectors of each of
   `num_gates` gates; a gate has `size` rows of W. */
static void pack_columns(const real *w, int64_t count, int64_t size, const int *gates, int num_gates, int units,
                         real *out) {
    int64_t num_panels = divide_up(size, units * LANES), row = units * num_gates * LANES;
    for (int64_t panel = 0; panel < num_panels; panel++, out += count * row)
        for (int u = 0; u < units; u++)
            for (int g = 0; g < num_gates; g++) {
                int64_t first = (panel * units + u) * LANES, lanes = most_of(0, least_of(LANES, size - first));
                const real *from = w + (gates[g] * size + first) * count;
                real *to = out + (u * num_gates + g) * LANES;
                int64_t k = 0;
                if (lanes == LANES) /* so that it is a constant below */
                    for (; k + LANES <= count; k += LANES)
                        pack_square(from + k, count, LANES, LANES, to + k * row, row);
                for (; k < count; k += LANES)
                    pack_square(from + k, count, lanes, least_of(LANES, count - k), to + k * row, row);
            }
}

/* Write a row of `columns` numbers as row k of panels with `count` rows. */
INLINE void pack_row(const real *row, int64_t columns, int64_t count, int64_t k, real *out) {
    const int64_t width = PANEL * LANES;
    for (int64_t first = 0; first < columns; first += width) {
        real *to = out + first * count + k * width;
        for (int v = 0; v < PANEL; v++)
            store(to + v * LANES, load_some(row + first + v * LANES, most_of(0, columns - first - v * LANES)));
    }
}

/* Where row k has a column, a multiple of LANES, in panels with `count` rows. */
INLINE real *in_panels(real *panels, int64_t count, int64_t k, int64_t column) {
    const int64_t width = PANEL * LANES;
    return panels + column / width * width * count + k * width + column % width;
}

/* How many numbers the panels of a matrix (count, columns) take. */
INLINE int64_t panels_size(int64_t count, int64_t columns) {
    return divide_up(columns, PANEL * LANES) * PANEL * LANES * count;
}

/* Pack some of the gates of W, of `size` rows each, in panels of a matrix (num_gates * size, columns). */
static void pack_rows(const real *w, int64_t columns, int64_t size, const int *gates, int num_gates, real *out) {
    for (int64_t k = 0; k < num_gates * size; k++)
        pack_row(w + (gates[k / size] * size + k % size) * columns, columns, num_gates * size, k, out);
}

/* A tile of `product_in_panels`, added to the bias or to what is in `out`. */
INLINE void tile_in_panels(int rows, int panels, int width, const real *a, int64_t stride, const real *w,
                           int64_t panel_stride, int64_t count, const real *bias, real *out, int64_t out_stride) {
    vec sums[SUMS];
    for (int p = 0; p < panels; p++)
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < width; v++)
                sums[(p * rows + i) * width + v] =
                    load(bias ? bias + (p * width + v) * LANES : out + i * out_stride + (p * width + v) * LANES);
    multiply_add(rows, width, panels, a, stride, 1, w, panel_stride, count, sums);
    for (int p = 0; p < panels; p++)
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < width; v++)
                store(out + i * out_stride + (p * width + v) * LANES, sums[(p * rows + i) * width + v]);
}

/* out (rows, panels, width * LANES) = bias + a (rows, count) w, of packed w and bias. */
INLINE void product_in_panels(int width, int64_t rows, const real *a, int64_t stride, const real *w, int64_t num_panels,
                              int64_t count, const real *bias, real *out, int64_t out_stride) {
    for (int64_t k = 0; k < count; k += DEPTH) {
        int64_t depth = least_of(DEPTH, count - k);
#define CALL(ROWS, PANELS, ...) \
    tile_in_panels(ROWS, PANELS, width, a + first_row * stride + k, stride, \
                   w + (first_panel * count + k) * width * LANES, count * width * LANES, depth, \
                   k ? NULL : bias + first_panel * width * LANES, \
                   out + first_row * out_stride + first_panel * width * LANES, out_stride)
        FOR_TILES(rows, num_panels, width, 0, CALL, );
#undef CALL
    }
}

/* A tile of `product`. `left` is how many columns follow from its first one on. */
INLINE void product_tile(int rows, int panels, const real *a, int64_t row_stride, int64_t k_stride, const real *w,
                         int64_t panel_stride, int64_t count, int add, real *const *out, int64_t first, int64_t left) {
    vec sums[SUMS];
    for (int p = 0; p < panels; p++)
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < PANEL; v++) {
                int64_t at = (p * PANEL + v) * LANES;
                vec *sum = &sums[(p * rows + i) * PANEL + v];
                *sum = add && at < left ? load_some(out[i] + first + at, left - at) : splat(0);
            }
    multiply_add(rows, PANEL, panels, a, row_stride, k_stride, w, panel_stride, count, sums);
    for (int p = 0; p < panels; p++)
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < PANEL; v++) {
                int64_t at = (p * PANEL + v) * LANES;
                if (at < left) store_some(out[i] + first + at, sums[(p * rows + i) * PANEL + v], left - at);
            }
}

/* Each size is a function of its own: in one large function, the compiler would keep the loop's strides in memory. */
#define PRODUCT_TILE(ROWS, PANELS, UNUSED) \
    static __attribute__((noinline)) void product_tile_##ROWS##_##PANELS( \
        const real *a, int64_t row_stride, int64_t k_stride, const real *w, int64_t panel_stride, int64_t count, \
        int add, real *const *out, int64_t first, int64_t left) { \
        if (ROWS * PANELS * PANEL <= SUMS) \
            product_tile(ROWS, PANELS, a, row_stride, k_stride, w, panel_stride, count, add, out, first, left); \
    }
ALL_SIZES(PRODUCT_TILE, )

/* out (rows, columns) = a w, or out += a w, for a (rows, count) at any strides and packed w (count, columns), whose
   panels are `height` rows high. `out` has the address of each row; `last_first` is as in FOR_TILES. */
static void product(int64_t rows, int64_t columns, int64_t count, const real *a, int64_t row_stride, int64_t k_stride,
                    const real *w, int64_t height, int last_first, int add, real *const *out) {
    const int64_t width = PANEL * LANES, num_panels = divide_up(columns, width);
    for (int64_t k = 0; k == 0 || k < count; k += DEPTH) /* at least once: an empty sum is 0 */
        for (int64_t band = 0; band < rows; band += BAND) {
            int64_t depth = least_of(DEPTH, count - k), in_band = least_of(BAND, rows - band);
#define CALL(ROWS, PANELS, ...) \
    product_tile_##ROWS##_##PANELS(a + (band + first_row) * row_stride + k * k_stride, row_stride, k_stride, \
                                    w + first_panel * width * height + k * width, width * height, depth, add || k, \
                                    out + band + first_row, first_panel * width, columns - first_panel * width)
            FOR_TILES(in_band, num_panels, PANEL, last_first, CALL, );
#undef CALL
        }
}

/* sums[i] += w[i][k] * a[k] for `count` numbers k, lane by lane. Rows from `lanes` on don't exist; row 0 stands for
   them. */
INLINE void multiply_rows(const real *w, int64_t stride, int64_t lanes, const real *a, int64_t count, vec *sums) {
    vec factor = load_some(a, count);
#pragma GCC unroll 16
    for (int64_t i = 0; i < LANES; i++) sums[i] += load_some(w + (i < lanes ? i : 0) * stride, count) * factor;
}

/* For few rows, for which packing would cost more than the product: each sum runs over a row of W (N, K) in place. */
INLINE vec dot_products(const real *w, int64_t count, int64_t lanes, const real *a) {
    vec sums[LANES], total = splat(0);
    int64_t k = 0;
#pragma GCC unroll 16
    for (int64_t i = 0; i < LANES; i++) sums[i] = splat(0);
    if (lanes == LANES) /* so that it is a constant below */
        for (; k + LANES <= count; k += LANES) multiply_rows(w + k, count, LANES, a + k, LANES, sums);
    for (; k < count; k += LANES) multiply_rows(w + k, count, lanes, a + k, least_of(LANES, count - k), sums);
    transpose(sums);
#pragma GCC unroll 16
    for (int64_t i = 0; i < LANES; i++) total += sums[i];
    return total;
}
