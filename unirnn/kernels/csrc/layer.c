/* One layer in one direction, forward and backward, for one instruction set (ISA) and one type (DOUBLE).

   Without resets, a column of the batch is one sequence. With resets it holds several, one after another. They are
   independent, so each is computed as if it had a column of its own. The sequences are sorted by length, the longest
   first: those that have a step t are the first `active[t]`. Only valid steps are computed. They are numbered as
   *rows*, step by step: step t of the sequence at place s is row first_row[t] + s.

   Forward, each thread has its share of the sequences and takes them through all steps. It first multiplies the
   inputs of a chunk of steps with the weights, and then goes through the chunk step by step. Backward, the threads
   go back through a chunk of steps, again each with its sequences. Then each computes some rows of what the chunk
   adds to the gradients of the weights. */

#include "unirnn.h"

#include <stdlib.h>
#include <time.h>

#include "vector.h"
#include "products.h"
#include "cells.h"
#include "threads.h"

#define CHUNK 256         /* about how many rows a chunk has: forward at most, backward at least, if there are so many */
#define FEW 3             /* with up to this many rows, packing the weights would cost more than it gains */
#define THREAD_WORK 4e6   /* how many multiplications are worth a thread of their own */
#define THREAD_SEQUENCES 4

/* ---- a call --------------------------------------------------------------------------------------------------- */

/* The memory of a call. It is laid out twice: without a base the sizes are only added up, then pointers are given
   out. */
typedef struct {
    char *base;
    int64_t size;
} memory;

static void *give_out(memory *m, int64_t count, int64_t size) {
    void *found = m->base ? m->base + m->size : NULL;
    m->size += divide_up(count * size, 64) * 64;
    return found;
}

#define REALS(m, count) give_out(m, count, sizeof(real))

typedef struct {
    real *gates[2];  /* the products of a chunk's inputs with W_ih, for each block */
    real *input;     /* the inputs of a chunk */
    real *h, *next;  /* the state of each sequence, before and after a step */
    real *gated;     /* LSTM with a projection: o * tanh(c'), which is then projected */
    real **outputs;  /* LSTM with a projection: the rows of a step's output */
    real *reset, *update;
} thread_memory;

typedef struct {
    int64_t column, begin, length; /* its column, its first step there, and its number of steps */
    int has_initial, has_final;    /* whether it begins with its column's initial state, and ends with the final one */
} sequence;

typedef struct {
    const unirnn_layer *layer;
    const unirnn_gradients *d; /* NULL in a forward pass */
    const cell_plan *plan;
    int cell, few, num_threads; /* cell: the variant with sigmoids as gates */
    real slope;                 /* of the straight line that replaces the sigmoids; 0 if nothing does */
    int64_t T, B, I, H, P;      /* P: the size of h, less than H with a projection */
    int64_t stride;             /* from a state to the next: H, rounded up to whole panels */
    int64_t num_sequences, num_rows, num_steps;
    sequence *sequences;
    int64_t *active, *first_row, *shares;
    real *zeros;
    real *w_ih[2], *w_hh[2], *bias[2], *bias_n; /* packed, for each block */
    real *w_hr;                                 /* packed */
    real *c; /* the cell states; in a backward pass, their gradients */
    thread_memory threads[MOST_THREADS];
    /* backward */
    int64_t chunk_rows, gradient_stride;
    real *d_h, *d_reset, *gradients, *inputs, *before, *reset_h, *w_back, *w_hh_back[2];
    real **d_h_rows, **d_reset_rows, **d_input_rows;
    /* backward, LSTM with a projection: o * tanh(c') of a chunk, its gradient, and that of the projected state */
    real *gated, *d_gated, *d_projected;
    real **d_gated_rows;
} call;

static int has_projection(const call *c) { return c->layer->weight_hr != NULL; }

/* Step t of the sequence at a place. */
static const real *row_of(const call *c, const unirnn_steps *array, int64_t t, int64_t place) {
    const sequence *s = &c->sequences[place];
    return (const real *)array->data + (s->begin + t) * array->step + s->column * array->sequence;
}

static int64_t valid_steps(const call *c, int64_t column) {
    return c->layer->lengths ? c->layer->lengths[column] : c->T;
}

/* Go on to the next sequence of the batch, column by column; 0 if there is none. Before the first, the column is -1. */
static int next_sequence(const call *c, sequence *s) {
    const uint8_t *resets = c->layer->resets;
    int64_t begin = s->begin + s->length;
    if (s->column < 0 || begin == valid_steps(c, s->column)) s->column++, begin = 0;
    if (s->column == c->B) return 0;
    int64_t steps = valid_steps(c, s->column), end = steps;
    if (resets)
        for (end = least_of(begin + 1, steps); end < steps && !resets[end * c->B + s->column];) end++;
    int is_first = begin == 0, is_last = end == steps;
    int begins_with_reset = resets && end > begin && resets[begin * c->B + s->column];
    s->begin = begin, s->length = end - begin;
    s->has_initial = c->layer->reverse ? is_last : is_first && !begins_with_reset;
    s->has_final = c->layer->reverse ? is_first : is_last;
    return 1;
}

#define FOR_SEQUENCES(c, s) for (sequence s = {.column = -1}; next_sequence(c, &s);)

/* Sort the sequences, count the rows, and share the sequences out, so that each thread has about as many rows.

   With the lengths 3, 5 and 0, the sequences are sorted as 5, 3, 0; `active` is 2, 2, 2, 1, 1 and `first_row` is
   0, 2, 4, 6, 7, of 8 rows. */
static void arrange(call *c) {
    int64_t *next_place = c->active; /* while sorting: where the next sequence of T - i steps goes, at i */
    for (int64_t i = 0; i <= c->T; i++) next_place[i] = 0;
    FOR_SEQUENCES(c, s) next_place[c->T - s.length]++;
    for (int64_t i = 0, place = 0; i <= c->T; i++) {
        int64_t count = next_place[i];
        next_place[i] = place;
        place += count;
    }
    FOR_SEQUENCES(c, s) c->sequences[next_place[c->T - s.length]++] = s;
    /* Now next_place[T - n] is the number of sequences with at least n steps. */
    for (int64_t t = 0; t < c->T; t++) c->first_row[t] = next_place[c->T - 1 - t];
    c->num_rows = c->num_steps = 0;
    for (int64_t t = 0; t < c->T; t++) {
        c->active[t] = c->first_row[t];
        c->first_row[t] = c->num_rows;
        c->num_rows += c->active[t];
        c->num_steps += c->active[t] > 0;
    }
    c->active[c->T] = 0;
    int64_t nonempty = c->active[0];
    double work = (double)c->num_rows * c->H * (c->plan->num_gates * (c->I + c->P) + (has_projection(c) ? c->P : 0));
    int64_t most = least_of(nonempty / THREAD_SEQUENCES, (int64_t)(work / THREAD_WORK));
    c->num_threads = (int)most_of(1, least_of(least_of(c->layer->num_threads, MOST_THREADS), most));
    int64_t place = 0, rows = 0;
    for (int k = 0; k < c->num_threads; k++) {
        c->shares[k] = place;
        while (place < c->num_sequences && rows * c->num_threads < (k + 1) * c->num_rows)
            rows += c->sequences[place++].length;
    }
    c->shares[c->num_threads] = c->num_sequences;
}

/* How many sequences of a share [first, end) have a step t; they are its first ones. */
static int64_t active_in(const call *c, int64_t first, int64_t end, int64_t t) {
    return most_of(0, least_of(c->active[t], end) - first);
}

static int64_t panels_of_block(const call *c, const block *b) { return divide_up(c->H, b->units * LANES); }

static void lay_out_forward(call *c, memory *m) {
    for (int k = 0; k < c->plan->num_blocks; k++) {
        const block *b = &c->plan->blocks[k];
        int64_t columns = panels_of_block(c, b) * b->units * b->num_gates * LANES;
        c->bias[k] = REALS(m, columns);
        if (c->few) continue;
        c->w_ih[k] = REALS(m, columns * c->I);
        c->w_hh[k] = REALS(m, columns * c->P);
    }
    c->w_hr = REALS(m, has_projection(c) && !c->few ? panels_size(c->H, c->P) : 0);
    c->bias_n = REALS(m, c->stride);
    c->c = REALS(m, c->cell == LSTM ? c->num_sequences * c->stride : 0);
    for (int k = 0; k < c->num_threads; k++) {
        thread_memory *own = &c->threads[k];
        int64_t sequences = c->shares[k + 1] - c->shares[k], rows = most_of(CHUNK, sequences);
        own->h = REALS(m, sequences * c->stride);
        own->next = REALS(m, sequences * c->stride);
        own->reset = REALS(m, c->cell == GRU_RESET_BEFORE ? sequences * c->stride : 0);
        own->update = REALS(m, c->cell == GRU_RESET_BEFORE ? sequences * c->stride : 0);
        own->gated = REALS(m, has_projection(c) ? sequences * c->stride : 0);
        own->outputs = give_out(m, has_projection(c) ? sequences : 0, sizeof(real *));
        if (c->few) continue;
        rows = least_of(rows, c->num_rows);
        own->input = REALS(m, rows * c->I);
        for (int i = 0; i < c->plan->num_blocks; i++) {
            const block *b = &c->plan->blocks[i];
            own->gates[i] = REALS(m, rows * panels_of_block(c, b) * b->units * b->num_gates * LANES);
        }
    }
}

/* ---- forward -------------------------------------------------------------------------------------------------- */

/* The biases in the order of a block's panels. A GRU's b_hn is left out: it belongs to the product that r
   multiplies. */
static void pack_bias(const call *c, int k, real *out) {
    const block *b = &c->plan->blocks[k];
    const real *of_input = c->layer->bias_ih, *of_hidden = c->layer->bias_hh;
    for (int64_t first = 0; first < c->H; first += b->units * LANES)
        for (int u = 0; u < b->units; u++)
            for (int g = 0; g < b->num_gates; g++, out += LANES)
                for (int64_t lane = 0; lane < LANES; lane++) {
                    int64_t unit = first + u * LANES + lane, at = b->gates[g] * c->H + unit;
                    int added = !(c->cell == GRU && b->gates[g] == 2);
                    out[lane] = unit < c->H && of_input ? of_input[at] + (added ? of_hidden[at] : 0) : 0;
                }
}

static void pack_forward(call *c) {
    for (int k = 0; k < c->plan->num_blocks; k++) {
        const block *b = &c->plan->blocks[k];
        pack_bias(c, k, c->bias[k]);
        if (c->few) continue;
        pack_columns(c->layer->weight_ih, c->I, c->H, b->gates, b->num_gates, b->units, c->w_ih[k]);
        pack_columns(c->layer->weight_hh, c->P, c->H, b->gates, b->num_gates, b->units, c->w_hh[k]);
    }
    const int only[] = {0};
    if (has_projection(c) && !c->few) pack_columns(c->layer->weight_hr, c->H, c->P, only, 1, PANEL, c->w_hr);
    const real *bias_hh = c->layer->bias_hh;
    int has_bias_n = c->cell == GRU && bias_hh;
    for (int64_t i = 0; i < c->stride; i++) c->bias_n[i] = has_bias_n && i < c->H ? bias_hh[2 * c->H + i] : 0;
}

/* The rows of a step that belong to a thread's share of the sequences. */
typedef struct {
    const call *c;
    thread_memory *own;
    int64_t t, share, row; /* the step, the first sequence of the share, and its row */
    const real *gates;     /* the products of their inputs with W_ih, in panels */
    real *next;            /* where the cell writes h', which is the next state or yet to be projected */
} rows_of_step;

/* Where the cell writes its output; NULL with a projection, which writes it later. */
INLINE real *output_of(const rows_of_step *s, int64_t place) {
    if (has_projection(s->c)) return NULL;
    return (real *)row_of(s->c, &s->c->layer->output, s->t, s->share + place);
}

INLINE void forward_rows(int cell, int k, int rows, int panels, const rows_of_step *s, int64_t first_row,
                         int64_t first_panel) {
    const call *c = s->c;
    const block *b = &PLANS[cell].blocks[k];
    const int units = b->units, gates = b->num_gates, width = units * gates;
    const int64_t H = c->H, P = c->P, stride = c->stride, num_panels = divide_up(H, units * LANES);
    const int64_t row_size = num_panels * width * LANES;
    const real *w = s->gates + first_row * row_size + first_panel * width * LANES;
    vec sums[SUMS];
    for (int p = 0; p < panels; p++)
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < width; v++)
                begin_sums(cell, b->gates[v % gates], w + i * row_size + (p * width + v) * LANES,
                           c->bias_n + (first_panel + p) * units * LANES, &sums[(p * rows + i) * width + v]);
    const real *factor = (cell == GRU_RESET_BEFORE && k == 1 ? s->own->reset : s->own->h) + first_row * stride;
    const int64_t panel_size = width * LANES * P;
    multiply_add(rows, width, panels, factor, stride, 1, c->w_hh[k] + first_panel * panel_size, panel_size, P, sums);
    for (int i = 0; i < rows; i++) {
        const int64_t place = first_row + i, kept = PLANS[cell].kept * H;
        real *all_kept = c->layer->kept;
        step at = {
            .h = s->own->h + place * stride,
            .next = s->next + place * stride,
            .c = c->c + (s->share + place) * stride,
            .reset = s->own->reset + place * stride,
            .update = s->own->update + place * stride,
            .output = output_of(s, place),
            .kept = all_kept ? all_kept + (s->row + place) * kept : NULL,
            .slope = c->slope,
            .size = H,
        };
        for (int p = 0; p < panels; p++)
            for (int u = 0; u < units; u++) {
                at.first = ((first_panel + p) * units + u) * LANES;
                at.left = H - at.first;
                if (at.left <= 0) continue;
                vec w_n = cell == GRU ? load(w + i * row_size + (p * width + 2) * LANES) : splat(0);
                step_forward(cell, k, &sums[(p * rows + i) * width + u * gates], w_n, &at);
            }
    }
}

#define FORWARD(CELL, K, WIDTH) \
    static __attribute__((noinline)) void forward_##CELL##_##K(const rows_of_step *s, int64_t count) { \
        const int64_t num_panels = divide_up(s->c->H, PLANS[CELL].blocks[K].units * LANES); \
        FOR_BLOCKS(count, num_panels, WIDTH, s->t % 2, FORWARD_CALL_##CELL##_##K); \
    }
#define FORWARD_CALL_RNN_TANH_0(R, P) forward_rows(RNN_TANH, 0, R, P, s, first_row, first_panel)
#define FORWARD_CALL_RNN_RELU_0(R, P) forward_rows(RNN_RELU, 0, R, P, s, first_row, first_panel)
#define FORWARD_CALL_GRU_0(R, P) forward_rows(GRU, 0, R, P, s, first_row, first_panel)
#define FORWARD_CALL_GRU_RESET_BEFORE_0(R, P) forward_rows(GRU_RESET_BEFORE, 0, R, P, s, first_row, first_panel)
#define FORWARD_CALL_GRU_RESET_BEFORE_1(R, P) forward_rows(GRU_RESET_BEFORE, 1, R, P, s, first_row, first_panel)
#define FORWARD_CALL_LSTM_0(R, P) forward_rows(LSTM, 0, R, P, s, first_row, first_panel)
FORWARD(RNN_TANH, 0, 2)
FORWARD(RNN_RELU, 0, 2)
FORWARD(GRU, 0, 3)
FORWARD(GRU_RESET_BEFORE, 0, 2)
FORWARD(GRU_RESET_BEFORE, 1, 2)
FORWARD(LSTM, 0, 4)

typedef void (*forward_block)(const rows_of_step *s, int64_t count);

static const forward_block FORWARD_BLOCKS[UNIRNN_CELLS][2] = {
    [RNN_TANH] = {forward_RNN_TANH_0},
    [RNN_RELU] = {forward_RNN_RELU_0},
    [GRU] = {forward_GRU_0},
    [GRU_RESET_BEFORE] = {forward_GRU_RESET_BEFORE_0, forward_GRU_RESET_BEFORE_1},
    [LSTM] = {forward_LSTM_0},
};

/* The same for few rows, without packed weights. */
static void forward_few(const rows_of_step *s, int k, int64_t count) {
    const call *c = s->c;
    const block *b = &c->plan->blocks[k];
    const int64_t H = c->H, P = c->P, kept = c->plan->kept * H;
    const real *w_ih = c->layer->weight_ih, *w_hh = c->layer->weight_hh, *bias = c->bias[k];
    for (int64_t place = 0; place < count; place++) {
        const real *x = row_of(c, &c->layer->input, s->t, s->share + place);
        real *h = s->own->h + place * c->stride, *reset = s->own->reset + place * c->stride;
        real *all_kept = c->layer->kept;
        step at = {
            .h = h,
            .next = s->next + place * c->stride,
            .c = c->c + (s->share + place) * c->stride,
            .reset = reset,
            .update = s->own->update + place * c->stride,
            .output = output_of(s, place),
            .kept = all_kept ? all_kept + (s->row + place) * kept : NULL,
            .slope = c->slope,
            .size = H,
        };
        for (at.first = 0; at.first < H; at.first += LANES) {
            vec sums[4], w_n = splat(0);
            at.left = H - at.first;
            int64_t lanes = least_of(LANES, at.left);
            for (int g = 0; g < b->num_gates; g++) {
                int64_t row = b->gates[g] * H + at.first;
                vec w = load(bias + at.first * b->num_gates + g * LANES);
                w += dot_products(w_ih + row * c->I, c->I, lanes, x);
                vec u = dot_products(w_hh + row * P, P, lanes, k ? reset : h);
                if (c->cell == GRU && g == 2) w_n = w, w = load(c->bias_n + at.first);
                sums[g] = w + u;
            }
            switch (c->cell) {
                case RNN_TANH: step_forward(RNN_TANH, 0, sums, w_n, &at); break;
                case RNN_RELU: step_forward(RNN_RELU, 0, sums, w_n, &at); break;
                case GRU: step_forward(GRU, 0, sums, w_n, &at); break;
                case LSTM: step_forward(LSTM, 0, sums, w_n, &at); break;
                default:
                    if (k == 0) step_forward(GRU_RESET_BEFORE, 0, sums, w_n, &at);
                    else step_forward(GRU_RESET_BEFORE, 1, sums, w_n, &at);
            }
        }
    }
}

/* Project h' of a step, and write the output, the next state and what is kept, as the cell does without a
   projection. */
static void project_step(const rows_of_step *s, int64_t count) {
    const call *c = s->c;
    const int64_t H = c->H, P = c->P, kept = c->plan->kept * H;
    const real *gated = s->own->gated, *w_hr = c->layer->weight_hr;
    real **outputs = s->own->outputs, *all_kept = c->layer->kept;
    for (int64_t i = 0; i < count; i++) {
        outputs[i] = (real *)row_of(c, &c->layer->output, s->t, s->share + i);
        for (int64_t unit = 0; c->few && unit < P; unit += LANES) {
            int64_t lanes = least_of(LANES, P - unit);
            store_some(outputs[i] + unit, dot_products(w_hr + unit * H, H, lanes, gated + i * c->stride), lanes);
        }
    }
    if (!c->few) product(count, P, H, gated, c->stride, 1, c->w_hr, H, s->t % 2, 0, outputs);
    for (int64_t i = 0; i < count; i++) {
        memcpy(s->own->next + i * c->stride, outputs[i], P * sizeof(real));
        if (all_kept) memcpy(all_kept + (s->row + i) * kept, outputs[i], P * sizeof(real));
    }
}

/* Multiply the inputs of `chunk` steps, in the order in which they are run, with W_ih. */
static void project_chunk(const call *c, thread_memory *own, int64_t first, int64_t end, int64_t from, int64_t chunk,
                          int64_t turn) {
    int64_t rows = 0;
    for (int64_t k = 0, t = from; k < chunk; k++, t += turn) {
        int64_t n = active_in(c, first, end, t);
        for (int64_t i = 0; i < n; i++, rows++)
            memcpy(own->input + rows * c->I, row_of(c, &c->layer->input, t, first + i), c->I * sizeof(real));
    }
    for (int k = 0; k < c->plan->num_blocks; k++) {
        const block *b = &c->plan->blocks[k];
        int64_t panels = panels_of_block(c, b), width = b->units * b->num_gates;
        int64_t row_size = panels * width * LANES;
        const real *x = own->input, *w = c->w_ih[k], *bias = c->bias[k];
        if (width == 2) project(2, rows, x, c->I, w, panels, c->I, bias, own->gates[k], row_size);
        if (width == 3) project(3, rows, x, c->I, w, panels, c->I, bias, own->gates[k], row_size);
        if (width == 4) project(4, rows, x, c->I, w, panels, c->I, bias, own->gates[k], row_size);
    }
}

/* The row of a column in a state (B, size), or zeros. */
static const real *state_of(const call *c, const void *state, int64_t size, int64_t column, int there) {
    return state && there ? (const real *)state + column * size : c->zeros;
}

static void write_state(const real *row, int64_t size, int64_t column, void *state) {
    memcpy((real *)state + column * size, row, size * sizeof(real));
}

/* Write zeros to the padding at the end of each column whose last sequence is in the share. */
static void zero_padding(const call *c, const unirnn_steps *array, int64_t size, int64_t first, int64_t end) {
    for (int64_t place = first; place < end; place++) {
        const sequence *s = &c->sequences[place];
        if (s->begin + s->length != valid_steps(c, s->column)) continue;
        for (int64_t t = s->length; s->begin + t < c->T; t++)
            memset((real *)row_of(c, array, t, place), 0, size * sizeof(real));
    }
}

/* Read the states with which sequences of a share begin. `h` and `next` change places after each step, and a step
   writes only the states of the sequences that have it. So a state is read just before its sequence's first step,
   and is written to its place right after the last one. */
static void begin_sequences(call *c, thread_memory *own, int64_t share, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i++) {
        const sequence *s = &c->sequences[share + i];
        const real *h = state_of(c, c->layer->h_0, c->P, s->column, s->has_initial);
        write_state(h, c->P, 0, own->h + i * c->stride);
        if (c->cell != LSTM) continue;
        const real *cell_state = state_of(c, c->layer->c_0, c->H, s->column, s->has_initial);
        write_state(cell_state, c->H, 0, c->c + (share + i) * c->stride);
    }
}

static void end_sequences(const call *c, const thread_memory *own, int64_t share, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i++) {
        const sequence *s = &c->sequences[share + i];
        if (!s->has_final) continue;
        write_state(own->h + i * c->stride, c->P, s->column, c->layer->h_n);
        if (c->cell == LSTM) write_state(c->c + (share + i) * c->stride, c->H, s->column, c->layer->c_n);
    }
}

/* How many steps from t on have together at most CHUNK rows; at least one. */
static int64_t chunk_from(const call *c, int64_t first, int64_t end, int64_t t, int64_t turn, int64_t left) {
    int64_t steps = 1, rows = active_in(c, first, end, t);
    while (steps < left && rows + active_in(c, first, end, t + steps * turn) <= CHUNK)
        rows += active_in(c, first, end, t + steps++ * turn);
    return steps;
}

static void forward_step(const rows_of_step *s, int64_t count, int64_t row_of_chunk) {
    const call *c = s->c;
    for (int k = 0; k < c->plan->num_blocks; k++) {
        const block *b = &c->plan->blocks[k];
        rows_of_step at = *s;
        at.next = has_projection(c) ? s->own->gated : s->own->next;
        at.gates = c->few ? NULL : s->own->gates[k] + row_of_chunk * panels_of_block(c, b) * b->units * b->num_gates * LANES;
        if (c->few) forward_few(&at, k, count);
        else FORWARD_BLOCKS[c->cell][k](&at, count);
    }
    if (has_projection(c)) project_step(s, count);
}

/* All shares that a member of a team computes: its own, and those of threads that could not be made. */
#define FOR_SHARES(c, share, number, team_) for (int share = number; share < c->num_threads; share += team_->size)

static void forward_share(call *c, int share) {
    thread_memory *own = &c->threads[share];
    const int64_t first = c->shares[share], end = c->shares[share + 1], turn = c->layer->reverse ? -1 : 1;
    zero_padding(c, &c->layer->output, c->P, first, end);
    int64_t steps = 0, nonempty = active_in(c, first, end, 0), before = turn > 0 ? nonempty : 0;
    while (steps < c->T && active_in(c, first, end, steps)) steps++;
    begin_sequences(c, own, first, 0, before);
    int64_t left_of_chunk = 0, row_of_chunk = 0;
    for (int64_t k = 0, t = turn > 0 ? 0 : steps - 1; k < steps; k++, t += turn, left_of_chunk--) {
        int64_t count = active_in(c, first, end, t);
        if (!c->few && left_of_chunk == 0) {
            left_of_chunk = chunk_from(c, first, end, t, turn, steps - k);
            row_of_chunk = 0;
            project_chunk(c, own, first, end, t, left_of_chunk, turn);
        }
        begin_sequences(c, own, first, before, count); /* in the reverse direction; else there are none */
        end_sequences(c, own, first, count, before);   /* in the forward direction; else there are none */
        rows_of_step s = {.c = c, .own = own, .t = t, .share = first, .row = c->first_row[t] + first};
        forward_step(&s, count, row_of_chunk);
        real *after = own->next;
        own->next = own->h;
        own->h = after;
        before = count;
        row_of_chunk += count;
    }
    end_sequences(c, own, first, 0, before);
    begin_sequences(c, own, first, nonempty, end - first); /* empty sequences end as they begin */
    end_sequences(c, own, first, nonempty, end - first);
}

static void run_forward(void *argument, int number, team *team_) {
    call *c = argument;
    FOR_SHARES(c, share, number, team_) forward_share(c, share);
}

/* ---- backward ------------------------------------------------------------------------------------------------- */

/* The first gate of W_hh that multiplies r * h, and not h. */
static int of_reset_h(const call *c) { return c->cell == GRU_RESET_BEFORE ? 2 : c->plan->num_gates; }

static void lay_out_backward(call *c, memory *m) {
    int64_t rows = c->chunk_rows = least_of(c->num_rows, CHUNK + c->active[0]), gates = c->plan->num_gates;
    c->d_h = REALS(m, c->num_sequences * c->stride);
    c->c = REALS(m, c->cell == LSTM ? c->num_sequences * c->stride : 0);
    c->d_reset = REALS(m, c->cell == GRU_RESET_BEFORE ? c->num_sequences * c->stride : 0);
    /* No multiple of a page: a column's numbers would then share a few sets of the cache, which can't hold them all. */
    c->gradient_stride = divide_up(c->plan->gradients * c->H, LANES) * LANES + 64 / sizeof(real);
    c->gradients = REALS(m, rows * c->gradient_stride);
    c->inputs = REALS(m, panels_size(rows, c->I));
    c->before = REALS(m, panels_size(rows, c->P));
    c->reset_h = REALS(m, c->cell == GRU_RESET_BEFORE ? panels_size(rows, c->H) : 0);
    c->w_back = REALS(m, c->d->d_input.data ? panels_size(gates * c->H, c->I) : 0);
    c->w_hh_back[0] = REALS(m, panels_size(of_reset_h(c) * c->H, c->P));
    c->w_hh_back[1] = REALS(m, panels_size((gates - of_reset_h(c)) * c->H, c->P));
    c->d_h_rows = give_out(m, c->num_sequences, sizeof(real *));
    c->d_reset_rows = give_out(m, c->num_sequences, sizeof(real *));
    c->d_input_rows = give_out(m, rows, sizeof(real *));
    if (!has_projection(c)) return;
    c->w_hr = REALS(m, panels_size(c->P, c->H));
    c->gated = REALS(m, panels_size(rows, c->H));
    c->d_gated = REALS(m, c->num_sequences * c->stride);
    c->d_gated_rows = give_out(m, c->num_sequences, sizeof(real *));
    c->d_projected = REALS(m, rows * c->stride);
}

/* `is_plain` is a constant of the caller's: the gates are sigmoids, and there is no projection. */
INLINE void step_back_rows(int cell, int k, int is_plain, const call *c, int64_t t, int64_t first, int64_t n,
                           int64_t chunk_row) {
    const int64_t H = c->H, P = c->P, kept = PLANS[cell].kept * H, gradients = c->gradient_stride;
    const int projected = !is_plain && cell == LSTM && has_projection(c);
    const int64_t before = c->layer->reverse ? t + 1 : t - 1;
    const real *all_kept = c->layer->kept;
    for (int64_t s = first; s < first + n; s++) {
        const sequence *own = &c->sequences[s];
        const real *h = state_of(c, c->layer->h_0, P, own->column, own->has_initial);
        const real *cell_state = state_of(c, c->layer->c_0, H, own->column, own->has_initial);
        if (before >= 0 && s < c->active[before]) {
            h = all_kept + (c->first_row[before] + s) * kept;
            cell_state = h + 5 * H;
        }
        step_back at = {
            .kept = all_kept + (c->first_row[t] + s) * kept,
            .h = h,
            .c = cell_state,
            .d_h = (projected ? c->d_gated : c->d_h) + s * c->stride,
            .d_c = c->c + s * c->stride,
            .d_output = c->d->d_output.data && !projected ? row_of(c, &c->d->d_output, t, s) : NULL,
            .gradients = c->gradients + (chunk_row + s) * gradients,
            .d_reset = c->d_reset + s * c->stride,
            .slope = is_plain ? 0 : c->slope,
            .size = H,
        };
        for (at.first = 0; at.first < H; at.first += LANES) {
            at.left = H - at.first;
            step_backward(cell, k, &at);
        }
        if (k) continue;
        /* What the weights were multiplied with, for their gradients. */
        int64_t row = chunk_row + s;
        if (c->d->d_weight_ih) {
            pack_row(row_of(c, &c->layer->input, t, s), c->I, c->chunk_rows, row, c->inputs);
            pack_row(h, P, c->chunk_rows, row, c->before);
        }
        if (c->d->d_input.data) c->d_input_rows[row] = (real *)row_of(c, &c->d->d_input, t, s);
        if ((cell == GRU_RESET_BEFORE || projected) && c->d->d_weight_ih)
            for (int64_t i = 0; i < H; i += LANES) {
                vec gate = load_some(at.kept + (projected ? 4 : 1) * H + i, H - i);
                vec state = load_some(projected ? at.kept + 5 * H + i : h + i, H - i);
                vec gated = gate * (projected ? tanh_of(state) : state);
                int64_t panel = i / (PANEL * LANES), v = i / LANES % PANEL;
                real *to = projected ? c->gated : c->reset_h;
                store(to + (panel * c->chunk_rows + row) * PANEL * LANES + v * LANES, gated);
            }
    }
}

static void step_back_block(const call *c, int k, int64_t t, int64_t first, int64_t n, int64_t chunk_row) {
    const int is_plain = c->slope == 0 && !has_projection(c);
#define STEP_BACK(CELL, K) \
    if (is_plain) step_back_rows(CELL, K, 1, c, t, first, n, chunk_row); \
    else step_back_rows(CELL, K, 0, c, t, first, n, chunk_row);
    switch (c->cell) {
        case RNN_TANH: step_back_rows(RNN_TANH, 0, 1, c, t, first, n, chunk_row); break;
        case RNN_RELU: step_back_rows(RNN_RELU, 0, 1, c, t, first, n, chunk_row); break;
        case GRU: STEP_BACK(GRU, 0) break;
        case LSTM: STEP_BACK(LSTM, 0) break;
        default:
            if (k == 0) {
                STEP_BACK(GRU_RESET_BEFORE, 0)
            } else {
                STEP_BACK(GRU_RESET_BEFORE, 1)
            }
    }
#undef STEP_BACK
}

/* Go back through the projection of a step, from the gradient of the projected state to that of the cell's h'. */
static void step_back_projection(const call *c, int64_t t, int64_t first, int64_t n, int64_t chunk_row) {
    for (int64_t s = first; s < first + n; s++) {
        real *d_h = c->d_h + s * c->stride, *d = c->d_projected + (chunk_row + s) * c->stride;
        const real *d_output = c->d->d_output.data ? row_of(c, &c->d->d_output, t, s) : NULL;
        for (int64_t i = 0; i < c->P; i++) {
            d[i] = d_h[i] + (d_output ? d_output[i] : 0);
            d_h[i] = 0; /* step_back_share adds the products with W_hh */
        }
    }
    const real *d = c->d_projected + (chunk_row + first) * c->stride;
    product(n, c->H, c->P, d, c->stride, 1, c->w_hr, c->P, t % 2, 0, c->d_gated_rows + first);
}

static void step_back_share(const call *c, int64_t t, int share, int64_t chunk_row) {
    const int64_t first = c->shares[share], n = active_in(c, first, c->shares[share + 1], t);
    const int64_t H = c->H, width = c->gradient_stride;
    if (!n) return;
    const real *of_hidden = c->gradients + (chunk_row + first) * width + c->plan->of_hidden_first * H;
    int of_h = of_reset_h(c);
    if (has_projection(c)) step_back_projection(c, t, first, n, chunk_row);
    step_back_block(c, 0, t, first, n, chunk_row);
    if (c->cell == GRU_RESET_BEFORE) {
        product(n, H, H, of_hidden + 2 * H, width, 1, c->w_hh_back[1], H, t % 2, 0, c->d_reset_rows + first);
        step_back_block(c, 1, t, first, n, chunk_row);
    }
    product(n, c->P, of_h * H, of_hidden, width, 1, c->w_hh_back[0], of_h * H, t % 2, 1, c->d_h_rows + first);
}

/* Add what a chunk contributes to the rows [first, end) of the gradients of W_ih, W_hh and W_hr, taken as one
   matrix. */
static void add_to_weights(const call *c, int64_t rows, int64_t first, int64_t end, int add) {
    const int64_t H = c->H, gates = c->plan->num_gates;
    while (first < end) {
        int of_projection = first >= 2 * gates * H, of_hidden = !of_projection && first >= gates * H;
        int64_t at = first - (of_projection ? 2 : of_hidden) * gates * H, place = at / H, unit = at % H;
        int64_t count = least_of(least_of(GROUP, H - unit), end - first), width = c->gradient_stride;
        int64_t gate = of_hidden ? place : c->plan->of_input[place], columns = of_hidden ? c->P : c->I;
        const real *from = c->gradients + ((of_hidden ? c->plan->of_hidden_first : 0) + place) * H + unit;
        real *to = of_hidden ? c->d->d_weight_hh : c->d->d_weight_ih;
        real *bias = of_hidden ? c->d->d_bias_hh : c->d->d_bias_ih;
        const real *factor = !of_hidden ? c->inputs : gate >= of_reset_h(c) ? c->reset_h : c->before;
        if (of_projection) {
            from = c->d_projected + unit, width = c->stride;
            to = c->d->d_weight_hr, bias = NULL;
            factor = c->gated, columns = H, gate = 0;
        }
        to += (gate * H + unit) * columns;
        real *to_rows[GROUP];
        for (int64_t i = 0; i < count; i++) to_rows[i] = to + i * columns;
        product(count, columns, rows, from, 1, width, factor, c->chunk_rows, 0, add, to_rows);
        if (bias) {
            bias += gate * H + unit;
            for (int64_t i = 0; i < count; i += LANES) {
                vec sum = add ? load_some(bias + i, count - i) : splat(0);
                for (int64_t row = 0; row < rows; row++) sum += load_some(from + row * width + i, count - i);
                store_some(bias + i, sum, count - i);
            }
        }
        first += count;
    }
}

/* Read the gradients of the final states of a share's sequences. */
static void begin_backward(call *c, int share) {
    const int64_t first = c->shares[share], end = c->shares[share + 1], H = c->H;
    for (int64_t s = first; s < end; s++) {
        const sequence *own = &c->sequences[s];
        const real *d_h = state_of(c, c->d->d_h_n, c->P, own->column, own->has_final);
        write_state(d_h, c->P, 0, c->d_h + s * c->stride);
        if (c->cell == LSTM) {
            const real *d_c = state_of(c, c->d->d_c_n, H, own->column, own->has_final);
            write_state(d_c, H, 0, c->c + s * c->stride);
        }
        c->d_h_rows[s] = c->d_h + s * c->stride;
        c->d_reset_rows[s] = c->d_reset + s * c->stride;
        if (has_projection(c)) c->d_gated_rows[s] = c->d_gated + s * c->stride;
    }
    if (c->d->d_input.data) zero_padding(c, &c->d->d_input, c->I, first, end);
}

/* Write the gradients of the initial states of a share's sequences. */
static void end_backward(const call *c, int share) {
    for (int64_t s = c->shares[share]; s < c->shares[share + 1]; s++) {
        const sequence *own = &c->sequences[s];
        /* In the forward direction, a reset at step 0 replaces the initial state, whose gradient is then zero. */
        int is_without = !c->layer->reverse && own->begin == 0 && !own->has_initial;
        if (!own->has_initial && !is_without) continue;
        write_state(is_without ? c->zeros : c->d_h + s * c->stride, c->P, own->column, c->d->d_h_0);
        if (c->cell != LSTM) continue;
        write_state(is_without ? c->zeros : c->c + s * c->stride, c->H, own->column, c->d->d_c_0);
    }
}

static void run_backward(void *argument, int number, team *team_) {
    call *c = argument;
    const int64_t turn = c->layer->reverse ? 1 : -1, gates = c->plan->num_gates;
    FOR_SHARES(c, share, number, team_) begin_backward(c, share);
    /* This thread's rows of the weights' gradients, in whole vectors. */
    int64_t all = 2 * gates * c->H + (has_projection(c) ? c->P : 0);
    int64_t from = all * number / team_->size / LANES * LANES;
    int64_t to = number + 1 == team_->size ? all : all * (number + 1) / team_->size / LANES * LANES;
    if (!c->num_steps && c->d->d_weight_ih) add_to_weights(c, 0, from, to, 0);
    for (int64_t done = 0, t = turn > 0 ? 0 : c->num_steps - 1; done < c->num_steps;) {
        int64_t steps = 0, rows = 0, begin = done;
        while (done + steps < c->num_steps && rows < CHUNK) rows += c->active[t + steps++ * turn];
        int64_t first_row = c->first_row[turn > 0 ? t : t - steps + 1];
        FOR_SHARES(c, share, number, team_)
            for (int64_t k = 0, at = t; k < steps; k++, at += turn) step_back_share(c, at, share, c->first_row[at] - first_row);
        done += steps, t += steps * turn;
        wait_for_all(team_);
        if (c->d->d_weight_ih) add_to_weights(c, rows, from, to, begin > 0);
        if (c->d->d_input.data) {
            const int64_t a = rows * number / team_->size, b = rows * (number + 1) / team_->size;
            const int64_t width = c->gradient_stride, size = gates * c->H;
            product(b - a, c->I, size, c->gradients + a * width, width, 1, c->w_back, size, 0, 0, c->d_input_rows + a);
        }
        wait_for_all(team_);
    }
    FOR_SHARES(c, share, number, team_) end_backward(c, share);
}

static void pack_backward(call *c) {
    const int hidden[] = {0, 1, 2, 3};
    int first = of_reset_h(c), gates = c->plan->num_gates;
    if (c->d->d_input.data) pack_rows(c->layer->weight_ih, c->I, c->H, c->plan->of_input, gates, c->w_back);
    pack_rows(c->layer->weight_hh, c->P, c->H, hidden, first, c->w_hh_back[0]);
    pack_rows(c->layer->weight_hh, c->P, c->H, hidden + first, gates - first, c->w_hh_back[1]);
    if (has_projection(c)) pack_rows(c->layer->weight_hr, c->H, c->P, hidden, 1, c->w_hr);
}

/* ---- entry points -------------------------------------------------------------------------------------------- */

static void lay_out(call *c, memory *m) {
    if (c->d) lay_out_backward(c, m);
    else lay_out_forward(c, m);
}

static int run(const unirnn_layer *layer, const unirnn_gradients *d) {
    const cell_variant *variant = &VARIANTS[layer->cell];
    call c = {.layer = layer, .d = d, .plan = &PLANS[variant->cell], .cell = variant->cell, .slope = variant->slope};
    c.T = layer->steps, c.B = layer->batch_size, c.I = layer->input_size, c.H = layer->hidden_size;
    c.P = has_projection(&c) ? layer->proj_size : c.H;
    c.stride = divide_up(c.H, PANEL * LANES) * PANEL * LANES;
    memory m = {NULL, 0};
    if (layer->resets) FOR_SEQUENCES(&c, s) c.num_sequences++;
    else c.num_sequences = c.B;
    char *plan = malloc(c.num_sequences * sizeof(sequence) + (2 * c.T + 1 + MOST_THREADS + 1) * sizeof(int64_t) +
                        c.stride * sizeof(real));
    if (!plan) return UNIRNN_NO_MEMORY;
    c.sequences = (sequence *)plan;
    c.active = (int64_t *)(c.sequences + c.num_sequences);
    c.first_row = c.active + c.T + 1, c.shares = c.first_row + c.T;
    c.zeros = (real *)(c.shares + MOST_THREADS + 1);
    memset(c.zeros, 0, c.stride * sizeof(real));
    arrange(&c);
    c.few = c.num_rows <= FEW;
    lay_out(&c, &m);
    char *space = malloc(m.size + 64);
    if (!space) {
        free(plan);
        return UNIRNN_NO_MEMORY;
    }
    m = (memory){space + 64 - (uintptr_t)space % 64, 0};
    lay_out(&c, &m);
    if (d) pack_backward(&c);
    else pack_forward(&c);
    run_team(c.num_threads, d ? run_backward : run_forward, &c);
    free(space);
    free(plan);
    return UNIRNN_OK;
}

#define NAME_(isa, type, what) unirnn_##isa##_##type##_##what
#define NAME__(isa, type, what) NAME_(isa, type, what)
#if DOUBLE
#define NAME(what) NAME__(ISA, double, what)
#else
#define NAME(what) NAME__(ISA, float, what)
#endif

int NAME(run)(const unirnn_layer *layer, const unirnn_gradients *gradients);

/* Forward if `gradients` is NULL, else backward. */
int NAME(run)(const unirnn_layer *layer, const unirnn_gradients *gradients) { return run(layer, gradients); }

double NAME(peak)(void);

/* Operations a second, with as many independent sums as the registers hold. */
double NAME(peak)(void) {
    const int count = 100000;
    double best = 0;
    volatile real source = (real)0.5;
    for (int attempt = 0; attempt < 3; attempt++) {
        vec sums[SUMS], factor = splat(source), total = splat(0);
        for (int i = 0; i < SUMS; i++) sums[i] = splat(source);
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        for (int k = 0; k < count; k++) {
#pragma GCC unroll 24
            for (int i = 0; i < SUMS; i++) sums[i] = sums[i] * factor + factor;
        }
        clock_gettime(CLOCK_MONOTONIC, &end);
        for (int i = 0; i < SUMS; i++) total += sums[i];
        source = total[0] > 0 ? (real)0.5 : (real)0.25;
        double seconds = (end.tv_sec - begin.tv_sec) + 1e-9 * (end.tv_nsec - begin.tv_nsec);
        double rate = 2.0 * count * SUMS * LANES / seconds;
        if (rate > best) best = rate;
    }
    return best;
}
