/* The forward pass. Each thread takes its share of the sequences through all steps: it multiplies the inputs of a chunk
   of steps with W_ih, and then goes through the chunk step by step.

   A step has a product with W_hh for each stage of the cell. The equations are applied to a tile of the product while
   it is in registers, see `products.h`. */

static void lay_out_forward(call *c, memory *m) {
    for (int stage = 0; stage < c->plan->num_stages; stage++) {
        int64_t columns = stage_size(c, &c->plan->stages[stage]);
        c->bias[stage] = REALS(m, columns);
        if (c->few) continue;
        c->w_ih[stage] = REALS(m, columns * c->I);
        c->w_hh[stage] = REALS(m, columns * c->P);
    }
    c->w_hr = REALS(m, has_projection(c) && !c->few ? panels_size(c->H, c->P) : 0);
    c->bias_n = REALS(m, c->stride);
    c->cell_states = REALS(m, c->cell == LSTM ? c->num_sequences * c->stride : 0);
    for (int share = 0; share < c->num_threads; share++) {
        thread_memory *own = &c->threads[share];
        int64_t sequences = c->shares[share + 1] - c->shares[share], rows = most_of(CHUNK, sequences);
        own->h = REALS(m, sequences * c->stride);
        own->next = REALS(m, sequences * c->stride);
        own->reset = REALS(m, c->cell == GRU_RESET_BEFORE ? sequences * c->stride : 0);
        own->update = REALS(m, c->cell == GRU_RESET_BEFORE ? sequences * c->stride : 0);
        own->gated = REALS(m, has_projection(c) ? sequences * c->stride : 0);
        own->outputs = reserve(m, has_projection(c) ? sequences : 0, sizeof(real *));
        if (c->few) continue;
        rows = least_of(rows, c->num_rows);
        own->inputs = REALS(m, rows * c->I);
        for (int stage = 0; stage < c->plan->num_stages; stage++)
            own->from_input[stage] = REALS(m, rows * stage_size(c, &c->plan->stages[stage]));
    }
}

/* The biases in the order of a stage's panels. A GRU's b_hn is left out: it belongs to the product that r
   multiplies. */
static void pack_bias(const call *c, int stage, real *out) {
    const stage_plan *plan = &c->plan->stages[stage];
    const real *bias_ih = c->layer->bias_ih, *bias_hh = c->layer->bias_hh;
    for (int64_t first = 0; first < c->H; first += plan->units * LANES)
        for (int u = 0; u < plan->units; u++)
            for (int g = 0; g < plan->num_gates; g++, out += LANES)
                for (int64_t lane = 0; lane < LANES; lane++) {
                    int64_t unit = first + u * LANES + lane, at = plan->gates[g] * c->H + unit;
                    int added = !(c->cell == GRU && plan->gates[g] == GATE_N);
                    out[lane] = unit < c->H && bias_ih ? bias_ih[at] + (added ? bias_hh[at] : 0) : 0;
                }
}

static void pack_forward(call *c) {
    for (int stage = 0; stage < c->plan->num_stages; stage++) {
        const stage_plan *plan = &c->plan->stages[stage];
        pack_bias(c, stage, c->bias[stage]);
        if (c->few) continue;
        pack_columns(c->layer->weight_ih, c->I, c->H, plan->gates, plan->num_gates, plan->units, c->w_ih[stage]);
        pack_columns(c->layer->weight_hh, c->P, c->H, plan->gates, plan->num_gates, plan->units, c->w_hh[stage]);
    }
    const int only[] = {0};
    if (has_projection(c) && !c->few) pack_columns(c->layer->weight_hr, c->H, c->P, only, 1, PANEL, c->w_hr);
    const real *bias_hh = c->layer->bias_hh;
    int has_bias_n = c->cell == GRU && bias_hh;
    for (int64_t i = 0; i < c->stride; i++) c->bias_n[i] = has_bias_n && i < c->H ? bias_hh[GATE_N * c->H + i] : 0;
}

/* A step of a share. Its sequences are counted from the first of the share. */
typedef struct {
    const call *c;
    thread_memory *own;
    int64_t t, first, row;  /* the step, the first place of the share, and its row */
    const real *from_input; /* the products of their inputs with W_ih, in panels */
    real *next;             /* where the cell writes h', which is the next state or yet to be projected */
} share_step;

/* What the cell reads for sequence i of the share, and where it writes. */
INLINE cell_step step_of_sequence(const share_step *s, int64_t i) {
    const call *c = s->c;
    const int64_t at = i * c->stride;
    return (cell_step){
        .h = s->own->h + at,
        .next = s->next + at,
        .c = c->cell_states + s->first * c->stride + at,
        .reset = s->own->reset + at,
        .update = s->own->update + at,
        .output = has_projection(c) ? NULL : (real *)step_of(c, &c->layer->output, s->t, s->first + i),
        .kept = c->layer->kept ? kept_row(c, s->row + i) : NULL,
        .slope = c->slope,
        .size = c->H,
    };
}

/* A tile of a stage: the sums W + U of some sequences and panels, and then the equations. */
INLINE void forward_tile(int cell, int stage, int rows, int panels, const share_step *s, int64_t first_row,
                         int64_t first_panel) {
    const call *c = s->c;
    const stage_plan *plan = &PLANS[cell].stages[stage];
    const int units = plan->units, gates = plan->num_gates, width = units * gates;
    const int64_t H = c->H, P = c->P, stride = c->stride, num_panels = divide_up(H, units * LANES);
    const int64_t row_size = num_panels * width * LANES, panel_size = width * LANES * P;
    const real *w = s->from_input + first_row * row_size + first_panel * width * LANES;
    vec sums[SUMS];
    for (int p = 0; p < panels; p++)
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < width; v++)
                begin_sum(cell, plan->gates[v % gates], w + i * row_size + (p * width + v) * LANES,
                          c->bias_n + (first_panel + p) * units * LANES, &sums[(p * rows + i) * width + v]);
    const real *factor = (cell == GRU_RESET_BEFORE && stage == 1 ? s->own->reset : s->own->h) + first_row * stride;
    const real *w_hh = c->w_hh[stage] + first_panel * panel_size;
    multiply_add(rows, width, panels, factor, stride, 1, w_hh, panel_size, P, sums);
    for (int i = 0; i < rows; i++) {
        cell_step step = step_of_sequence(s, first_row + i);
        for (int p = 0; p < panels; p++)
            for (int u = 0; u < units; u++) {
                step.first = ((first_panel + p) * units + u) * LANES;
                step.left = H - step.first;
                if (step.left <= 0) continue;
                vec w_n = cell == GRU ? load(w + i * row_size + (p * width + GATE_N) * LANES) : splat(0);
                step_forward(cell, stage, &sums[(p * rows + i) * width + u * gates], w_n, &step);
            }
    }
}

/* A stage of all sequences of a share that have the step. WIDTH: the vectors of a panel, as PLANS has them. */
#define FORWARD(CELL, STAGE, WIDTH) \
    static __attribute__((noinline)) void forward_##CELL##_##STAGE(const share_step *s, int64_t count) { \
        const int64_t num_panels = divide_up(s->c->H, PLANS[CELL].stages[STAGE].units * LANES); \
        FOR_TILES(count, num_panels, WIDTH, s->t % 2, FORWARD_TILE, CELL, STAGE); \
    }
#define FORWARD_TILE(ROWS, PANELS, CELL, STAGE) forward_tile(CELL, STAGE, ROWS, PANELS, s, first_row, first_panel)
FORWARD(RNN_TANH, 0, 2)
FORWARD(RNN_RELU, 0, 2)
FORWARD(GRU, 0, 3)
FORWARD(GRU_RESET_BEFORE, 0, 2)
FORWARD(GRU_RESET_BEFORE, 1, 2)
FORWARD(LSTM, 0, 4)

typedef void (*forward_stage)(const share_step *s, int64_t count);

static const forward_stage FORWARD_STAGES[UNIRNN_CELLS][2] = {
    [RNN_TANH] = {forward_RNN_TANH_0},
    [RNN_RELU] = {forward_RNN_RELU_0},
    [GRU] = {forward_GRU_0},
    [GRU_RESET_BEFORE] = {forward_GRU_RESET_BEFORE_0, forward_GRU_RESET_BEFORE_1},
    [LSTM] = {forward_LSTM_0},
};

/* The same for few rows, without packed weights. The products of the inputs are computed here too. */
static void forward_few(const share_step *s, int stage, int64_t count) {
    const call *c = s->c;
    const stage_plan *plan = &c->plan->stages[stage];
    const int64_t H = c->H, P = c->P;
    const real *w_ih = c->layer->weight_ih, *w_hh = c->layer->weight_hh, *bias = c->bias[stage];
    for (int64_t i = 0; i < count; i++) {
        const real *x = step_of(c, &c->layer->input, s->t, s->first + i);
        cell_step step = step_of_sequence(s, i);
        for (step.first = 0; step.first < H; step.first += LANES) {
            vec sums[4], w_n = splat(0);
            step.left = H - step.first;
            int64_t lanes = least_of(LANES, step.left);
            for (int g = 0; g < plan->num_gates; g++) {
                int64_t row = plan->gates[g] * H + step.first;
                vec w = load(bias + step.first * plan->num_gates + g * LANES);
                w += dot_products(w_ih + row * c->I, c->I, lanes, x);
                vec u = dot_products(w_hh + row * P, P, lanes, stage ? step.reset : step.h);
                if (c->cell == GRU && g == GATE_N) w_n = w, w = load(c->bias_n + step.first);
                sums[g] = w + u;
            }
            switch (c->cell) {
                case RNN_TANH: step_forward(RNN_TANH, 0, sums, w_n, &step); break;
                case RNN_RELU: step_forward(RNN_RELU, 0, sums, w_n, &step); break;
                case GRU: step_forward(GRU, 0, sums, w_n, &step); break;
                case LSTM: step_forward(LSTM, 0, sums, w_n, &step); break;
                default:
                    if (stage == 0) step_forward(GRU_RESET_BEFORE, 0, sums, w_n, &step);
                    else step_forward(GRU_RESET_BEFORE, 1, sums, w_n, &step);
            }
        }
    }
}

/* Project h' of a step, and write the output, the next state and what is kept, as the cell does without a
   projection. */
static void project_step(const share_step *s, int64_t count) {
    const call *c = s->c;
    const int64_t H = c->H, P = c->P;
    const real *gated = s->own->gated, *w_hr = c->layer->weight_hr;
    real **outputs = s->own->outputs;
    for (int64_t i = 0; i < count; i++) {
        outputs[i] = (real *)step_of(c, &c->layer->output, s->t, s->first + i);
        for (int64_t unit = 0; c->few && unit < P; unit += LANES) {
            int64_t lanes = least_of(LANES, P - unit);
            store_some(outputs[i] + unit, dot_products(w_hr + unit * H, H, lanes, gated + i * c->stride), lanes);
        }
    }
    if (!c->few) product(count, P, H, gated, c->stride, 1, c->w_hr, H, s->t % 2, 0, outputs);
    for (int64_t i = 0; i < count; i++) {
        memcpy(s->own->next + i * c->stride, outputs[i], P * sizeof(real));
        if (c->layer->kept) memcpy(kept_row(c, s->row + i), outputs[i], P * sizeof(real));
    }
}

/* Multiply the inputs of a chunk of steps, in the order in which they are run, with W_ih. */
static void multiply_inputs(const call *c, thread_memory *own, int64_t first, int64_t end, int64_t t, int64_t steps,
                            int64_t direction) {
    int64_t rows = 0;
    for (int64_t done = 0; done < steps; done++, t += direction) {
        int64_t n = active_in(c, first, end, t);
        for (int64_t place = first; place < first + n; place++, rows++)
            memcpy(own->inputs + rows * c->I, step_of(c, &c->layer->input, t, place), c->I * sizeof(real));
    }
    for (int stage = 0; stage < c->plan->num_stages; stage++) {
        const stage_plan *plan = &c->plan->stages[stage];
        int64_t panels = panels_of_stage(c, plan), width = plan->units * plan->num_gates, size = stage_size(c, plan);
        const real *x = own->inputs, *w = c->w_ih[stage], *bias = c->bias[stage];
        if (width == 2) product_in_panels(2, rows, x, c->I, w, panels, c->I, bias, own->from_input[stage], size);
        if (width == 3) product_in_panels(3, rows, x, c->I, w, panels, c->I, bias, own->from_input[stage], size);
        if (width == 4) product_in_panels(4, rows, x, c->I, w, panels, c->I, bias, own->from_input[stage], size);
    }
}

/* Read the states with which some sequences of a share begin. `h` and `next` are swapped after each step, and a step
   writes only the states of the sequences that have it. So a state is read just before its sequence's first step, and
   is written to h_n and c_n right after the last one. */
static void begin_sequences(call *c, thread_memory *own, int64_t first, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i++) {
        const sequence *s = &c->sequences[first + i];
        const real *h = state_of(c, c->layer->h_0, c->P, s->column, s->has_initial);
        write_state(h, c->P, 0, own->h + i * c->stride);
        if (c->cell != LSTM) continue;
        const real *cell_state = state_of(c, c->layer->c_0, c->H, s->column, s->has_initial);
        write_state(cell_state, c->H, 0, c->cell_states + (first + i) * c->stride);
    }
}

static void end_sequences(const call *c, const thread_memory *own, int64_t first, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i++) {
        const sequence *s = &c->sequences[first + i];
        if (!s->has_final) continue;
        write_state(own->h + i * c->stride, c->P, s->column, c->layer->h_n);
        if (c->cell == LSTM) write_state(c->cell_states + (first + i) * c->stride, c->H, s->column, c->layer->c_n);
    }
}

/* How many of the `left` steps from t on have together at most CHUNK rows; at least one. */
static int64_t chunk_from(const call *c, int64_t first, int64_t end, int64_t t, int64_t direction, int64_t left) {
    int64_t steps = 1, rows = active_in(c, first, end, t);
    while (steps < left && rows + active_in(c, first, end, t + steps * direction) <= CHUNK)
        rows += active_in(c, first, end, t + steps++ * direction);
    return steps;
}

/* One step of a share. `chunk_row` is the row in the chunk where the step begins. */
static void forward_step(const share_step *s, int64_t count, int64_t chunk_row) {
    const call *c = s->c;
    for (int stage = 0; stage < c->plan->num_stages; stage++) {
        const stage_plan *plan = &c->plan->stages[stage];
        share_step of_stage = *s;
        of_stage.next = has_projection(c) ? s->own->gated : s->own->next;
        of_stage.from_input = c->few ? NULL : s->own->from_input[stage] + chunk_row * stage_size(c, plan);
        if (c->few) forward_few(&of_stage, stage, count);
        else FORWARD_STAGES[c->cell][stage](&of_stage, count);
    }
    if (has_projection(c)) project_step(s, count);
}

static void forward_share(call *c, int share) {
    thread_memory *own = &c->threads[share];
    const int64_t first = c->shares[share], end = c->shares[share + 1], direction = c->layer->reverse ? -1 : 1;
    zero_padding(c, &c->layer->output, c->P, first, end);
    int64_t steps = 0, nonempty = active_in(c, first, end, 0), before = direction > 0 ? nonempty : 0;
    while (steps < c->T && active_in(c, first, end, steps)) steps++;
    begin_sequences(c, own, first, 0, before);
    int64_t left_of_chunk = 0, chunk_row = 0;
    for (int64_t done = 0, t = direction > 0 ? 0 : steps - 1; done < steps; done++, t += direction, left_of_chunk--) {
        int64_t count = active_in(c, first, end, t);
        if (!c->few && left_of_chunk == 0) {
            left_of_chunk = chunk_from(c, first, end, t, direction, steps - done);
            chunk_row = 0;
            multiply_inputs(c, own, first, end, t, left_of_chunk, direction);
        }
        begin_sequences(c, own, first, before, count); /* in the reverse direction; else there are none */
        end_sequences(c, own, first, count, before);   /* in the forward direction; else there are none */
        share_step s = {.c = c, .own = own, .t = t, .first = first, .row = c->first_row[t] + first};
        forward_step(&s, count, chunk_row);
        real *after = own->next;
        own->next = own->h;
        own->h = after;
        before = count;
        chunk_row += count;
    }
    end_sequences(c, own, first, 0, before);
    begin_sequences(c, own, first, nonempty, end - first); /* empty sequences end as they begin */
    end_sequences(c, own, first, nonempty, end - first);
}

static void run_forward(void *argument, int number, thread_team *team) {
    call *c = argument;
    FOR_SHARES(c, share, number, team) forward_share(c, share);
}
