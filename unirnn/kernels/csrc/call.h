/* A call: its memory, its sequences in the order in which they are computed, and what both passes do with states.

   Names in this file, `forward.h` and `backward.h`: `c` as a variable is always the call. A *place* is the number of a sequence after
   sorting, a *row* the number of a valid step, as `layer.c` explains. A *share* is the range [first, end) of the places
   that one thread computes. */

#define CHUNK 256          /* how many rows a chunk has: at most so many forward, or a step; about so many backward */
#define FEW 3              /* with up to this many rows, packing the weights would cost more than it gains */
#define THREAD_WORK 4e6    /* how many multiplications are worth a thread of their own */
#define THREAD_SEQUENCES 4 /* how many sequences are */

/* The memory of a call. It is laid out twice: without a base the sizes are only added up, then pointers are given
   out. */
typedef struct {
    char *base;
    int64_t size;
} memory;

static void *reserve(memory *m, int64_t count, int64_t size) {
    void *found = m->base ? m->base + m->size : NULL;
    m->size += divide_up(count * size, 64) * 64;
    return found;
}

#define REALS(m, count) reserve(m, count, sizeof(real))

/* A part of a column: all of it, or what lies between two resets. */
typedef struct {
    int64_t column, begin, length; /* its column, its first step there, and its number of steps */
    int has_initial, has_final;    /* whether it begins with its column's initial state, and ends with the final one */
} sequence;

/* Forward: what a thread has for its share. The states are by place, counted from the first of the share. */
typedef struct {
    real *inputs;           /* of a chunk */
    real *from_input[2];    /* the products of a chunk's inputs with W_ih, for each stage */
    real *h, *next;         /* the states before and after a step */
    real *reset, *update;   /* GRU_RESET_BEFORE: r * h and z, from the first stage to the second */
    real *gated, **outputs; /* LSTM with a projection: o * tanh(c'), and where it is projected to */
} thread_memory;

typedef struct {
    const unirnn_layer *layer;
    const unirnn_gradients *d; /* NULL in a forward pass */
    const cell_plan *plan;
    int cell;              /* the variant with sigmoids as gates */
    real slope;            /* of the straight line that replaces the sigmoids; 0 if nothing does */
    int64_t T, B, I, H, P; /* P: the size of h, less than H with a projection */
    int64_t stride;        /* from a state to the next: H, rounded up to whole panels */
    int few, num_threads;  /* few: there are so few rows that no weights are packed */
    int64_t num_sequences, num_rows, num_steps;
    sequence *sequences;         /* by place */
    int64_t *active, *first_row; /* by step: how many sequences have it, and its first row */
    int64_t *shares;             /* where each share begins, and where the last one ends */
    real *zeros;                 /* a state */
    real *cell_states;           /* by place; in a backward pass, their gradients */
    real *w_hr;                  /* packed */

    /* Forward. */
    real *w_ih[2], *w_hh[2], *bias[2], *bias_n; /* packed, for each stage; bias_n is b_hn of a GRU */
    thread_memory threads[MOST_THREADS];

    /* Backward. Of a chunk's rows: the gradients that the steps give, and, in panels, what the weights multiplied. */
    int64_t chunk_rows, d_gates_stride;
    real *d_gates, *inputs, *states, *reset_h;
    real *w_ih_back, *w_hh_back[2]; /* packed for products with the transposes; [1] are the gates that multiply r * h */
    real *d_h, *d_reset;            /* by place; d_reset is the gradient of r * h */
    real **d_h_rows, **d_reset_rows, **d_input_rows; /* where products write gradients */
    /* LSTM with a projection: o * tanh(c') of a chunk, its gradient, and that of the projected state. */
    real *gated, *d_gated, *d_projected;
    real **d_gated_rows;
} call;

static int has_projection(const call *c) { return c->layer->weight_hr != NULL; }

/* Step t of the sequence at a place, in an array of steps. */
static const real *step_of(const call *c, const unirnn_steps *array, int64_t t, int64_t place) {
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
    /* Now next_place[T - n] is the number of sequences with at least n steps: these are the numbers of `active`, in
       another order. Both arrays have the same memory, so the numbers pass through `first_row`. */
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
    for (int share = 0; share < c->num_threads; share++) {
        c->shares[share] = place;
        while (place < c->num_sequences && rows * c->num_threads < (share + 1) * c->num_rows)
            rows += c->sequences[place++].length;
    }
    c->shares[c->num_threads] = c->num_sequences;
}

/* How many sequences of a share have step t; they are its first ones. */
static int64_t active_in(const call *c, int64_t first, int64_t end, int64_t t) {
    return most_of(0, least_of(c->active[t], end) - first);
}

static int64_t panels_of_stage(const call *c, const stage_plan *plan) { return divide_up(c->H, plan->units * LANES); }

/* How many numbers all panels of a stage have for one row. */
static int64_t stage_size(const call *c, const stage_plan *plan) {
    return panels_of_stage(c, plan) * plan->units * plan->num_gates * LANES;
}

/* Where a step keeps what the backward pass needs; see the slots in `plans.h`. */
static real *kept_row(const call *c, int64_t row) {
    return (real *)c->layer->kept + row * c->plan->num_kept * c->H;
}

/* The row of a column in a state (B, size), or zeros. */
static const real *state_of(const call *c, const void *state, int64_t size, int64_t column, int is_given) {
    return state && is_given ? (const real *)state + column * size : c->zeros;
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
            memset((real *)step_of(c, array, t, place), 0, size * sizeof(real));
    }
}

/* All shares that a member of a team computes: its own, and those of threads that could not be made. */
#define FOR_SHARES(c, share, number, team) for (int share = number; share < c->num_threads; share += team->size)
