/* The backward pass. The threads go back through a chunk of steps, each with its share of the sequences. Then each
   computes some rows of what the chunk adds to the gradients of the weights, and of the gradient of the input. */

/* The first gate of W_hh that multiplies r * h, and not h. */
static int first_of_reset_h(const call *c) { return c->cell == GRU_RESET_BEFORE ? GATE_N : c->plan->num_gates; }

static void lay_out_backward(call *c, memory *m) {
    int64_t rows = c->chunk_rows = least_of(c->num_rows, CHUNK + c->active[0]), gates = c->plan->num_gates;
    c->d_h = REALS(m, c->num_sequences * c->stride);
    c->cell_states = REALS(m, c->cell == LSTM ? c->num_sequences * c->stride : 0);
    c->d_reset = REALS(m, c->cell == GRU_RESET_BEFORE ? c->num_sequences * c->stride : 0);
    /* 64 bytes more, so that it is no power of two for the usual H: a column's numbers would share a few sets of the
       cache, which can't hold them all. */
    c->d_gates_stride = divide_up(c->plan->num_gradients * c->H, LANES) * LANES + 64 / sizeof(real);
    c->d_gates = REALS(m, rows * c->d_gates_stride);
    c->inputs = REALS(m, panels_size(rows, c->I));
    c->states = REALS(m, panels_size(rows, c->P));
    c->reset_h = REALS(m, c->cell == GRU_RESET_BEFORE ? panels_size(rows, c->H) : 0);
    c->w_ih_back = REALS(m, c->d->d_input.data ? panels_size(gates * c->H, c->I) : 0);
    c->w_hh_back[0] = REALS(m, panels_size(first_of_reset_h(c) * c->H, c->P));
    c->w_hh_back[1] = REALS(m, panels_size((gates - first_of_reset_h(c)) * c->H, c->P));
    c->d_h_rows = reserve(m, c->num_sequences, sizeof(real *));
    c->d_reset_rows = reserve(m, c->num_sequences, sizeof(real *));
    c->d_input_rows = reserve(m, rows, sizeof(real *));
    if (!has_projection(c)) return;
    c->w_hr = REALS(m, panels_size(c->P, c->H));
    c->gated = REALS(m, panels_size(rows, c->H));
    c->d_gated = REALS(m, c->num_sequences * c->stride);
    c->d_gated_rows = reserve(m, c->num_sequences, sizeof(real *));
    c->d_projected = REALS(m, rows * c->stride);
}

/* One stage of step t, for the n places from `first` on. `chunk_row` is the row in the chunk where the step begins.
   `is_usual` is a constant of the caller's: the gates are sigmoids, and there is no projection. */
INLINE void step_back_rows(int cell, int stage, int is_usual, const call *c, int64_t t, int64_t first, int64_t n,
                           int64_t chunk_row) {
    const int64_t H = c->H, P = c->P, before = c->layer->reverse ? t + 1 : t - 1;
    const int projected = !is_usual && cell == LSTM && has_projection(c);
    for (int64_t place = first; place < first + n; place++) {
        const sequence *s = &c->sequences[place];
        const int64_t row = chunk_row + place;
        const real *h = state_of(c, c->layer->h_0, P, s->column, s->has_initial);
        const real *cell_state = state_of(c, c->layer->c_0, H, s->column, s->has_initial);
        if (before >= 0 && place < c->active[before]) {
            const real *kept_before = kept_row(c, c->first_row[before] + place);
            h = kept_before + KEPT_H * H, cell_state = kept_before + KEPT_C * H;
        }
        cell_step_back step = {
            .kept = kept_row(c, c->first_row[t] + place),
            .h = h,
            .c = cell_state,
            .d_h = (projected ? c->d_gated : c->d_h) + place * c->stride,
            .d_c = c->cell_states + place * c->stride,
            .d_output = c->d->d_output.data && !projected ? step_of(c, &c->d->d_output, t, place) : NULL,
            .gradients = c->d_gates + row * c->d_gates_stride,
            .d_reset = c->d_reset + place * c->stride,
            .slope = is_usual ? 0 : c->slope,
            .size = H,
        };
        for (step.first = 0; step.first < H; step.first += LANES) {
            step.left = H - step.first;
            step_backward(cell, stage, &step);
        }
        if (stage) continue;
        /* What the weights were multiplied with, for their gradients. */
        if (c->d->d_weight_ih) {
            pack_row(step_of(c, &c->layer->input, t, place), c->I, c->chunk_rows, row, c->inputs);
            pack_row(h, P, c->chunk_rows, row, c->states);
        }
        if (c->d->d_input.data) c->d_input_rows[row] = (real *)step_of(c, &c->d->d_input, t, place);
        if ((cell == GRU_RESET_BEFORE || projected) && c->d->d_weight_ih)
            for (int64_t i = 0; i < H; i += LANES) {
                vec gate = load_some(step.kept + (projected ? KEPT_O : KEPT_R) * H + i, H - i);
                vec state = load_some(projected ? step.kept + KEPT_C * H + i : h + i, H - i);
                vec gated = gate * (projected ? tanh_of(state) : state);
                store(in_panels(projected ? c->gated : c->reset_h, c->chunk_rows, row, i), gated);
            }
    }
}

static void step_back_stage(const call *c, int stage, int64_t t, int64_t first, int64_t n, int64_t chunk_row) {
    const int is_usual = c->slope == 0 && !has_projection(c);
#define STEP_BACK(CELL, STAGE) \
    if (is_usual) step_back_rows(CELL, STAGE, 1, c, t, first, n, chunk_row); \
    else step_back_rows(CELL, STAGE, 0, c, t, first, n, chunk_row);
    switch (c->cell) {
        case RNN_TANH: step_back_rows(RNN_TANH, 0, 1, c, t, first, n, chunk_row); break;
        case RNN_RELU: step_back_rows(RNN_RELU, 0, 1, c, t, first, n, chunk_row); break;
        case GRU: STEP_BACK(GRU, 0) break;
        case LSTM: STEP_BACK(LSTM, 0) break;
        default:
            if (stage == 0) {
                STEP_BACK(GRU_RESET_BEFORE, 0)
            } else {
                STEP_BACK(GRU_RESET_BEFORE, 1)
            }
    }
#undef STEP_BACK
}

/* Go back through the projection of a step, from the gradient of the projected state to that of the cell's h'. */
static void step_back_projection(const call *c, int64_t t, int64_t first, int64_t n, int64_t chunk_row) {
    for (int64_t place = first; place < first + n; place++) {
        real *d_h = c->d_h + place * c->stride, *d = c->d_projected + (chunk_row + place) * c->stride;
        const real *d_output = c->d->d_output.data ? step_of(c, &c->d->d_output, t, place) : NULL;
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
    const int64_t H = c->H, width = c->d_gates_stride;
    if (!n) return;
    const real *d_u = c->d_gates + (chunk_row + first) * width + c->plan->slot_of_u * H;
    int of_h = first_of_reset_h(c); /* the gates of U before it are products of h */
    if (has_projection(c)) step_back_projection(c, t, first, n, chunk_row);
    step_back_stage(c, 0, t, first, n, chunk_row);
    if (c->cell == GRU_RESET_BEFORE) {
        product(n, H, H, d_u + GATE_N * H, width, 1, c->w_hh_back[1], H, t % 2, 0, c->d_reset_rows + first);
        step_back_stage(c, 1, t, first, n, chunk_row);
    }
    product(n, c->P, of_h * H, d_u, width, 1, c->w_hh_back[0], of_h * H, t % 2, 1, c->d_h_rows + first);
}

/* Add what a chunk contributes to the rows [first, end) of the gradients of W_ih, W_hh and W_hr, taken as one
   matrix. */
static void add_to_weights(const call *c, int64_t rows, int64_t first, int64_t end, int add) {
    const int64_t H = c->H, gates = c->plan->num_gates;
    while (first < end) {
        int of_hr = first >= 2 * gates * H, of_hh = !of_hr && first >= gates * H;
        int64_t at = first - (of_hr ? 2 : of_hh) * gates * H, slot = at / H, unit = at % H;
        int64_t count = least_of(least_of(BAND, H - unit), end - first), width = c->d_gates_stride;
        int64_t gate = of_hh ? slot : c->plan->gates_of_w[slot], columns = of_hh ? c->P : c->I;
        const real *from = c->d_gates + ((of_hh ? c->plan->slot_of_u : 0) + slot) * H + unit;
        real *to = of_hh ? c->d->d_weight_hh : c->d->d_weight_ih;
        real *bias = of_hh ? c->d->d_bias_hh : c->d->d_bias_ih;
        const real *factor = !of_hh ? c->inputs : gate >= first_of_reset_h(c) ? c->reset_h : c->states;
        if (of_hr) {
            from = c->d_projected + unit, width = c->stride;
            to = c->d->d_weight_hr, bias = NULL;
            factor = c->gated, columns = H, gate = 0;
        }
        to += (gate * H + unit) * columns;
        real *to_rows[BAND];
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
    for (int64_t place = first; place < end; place++) {
        const sequence *s = &c->sequences[place];
        const real *d_h = state_of(c, c->d->d_h_n, c->P, s->column, s->has_final);
        write_state(d_h, c->P, 0, c->d_h + place * c->stride);
        if (c->cell == LSTM) {
            const real *d_c = state_of(c, c->d->d_c_n, H, s->column, s->has_final);
            write_state(d_c, H, 0, c->cell_states + place * c->stride);
        }
        c->d_h_rows[place] = c->d_h + place * c->stride;
        c->d_reset_rows[place] = c->d_reset + place * c->stride;
        if (has_projection(c)) c->d_gated_rows[place] = c->d_gated + place * c->stride;
    }
    if (c->d->d_input.data) zero_padding(c, &c->d->d_input, c->I, first, end);
}

/* Write the gradients of the initial states of a share's sequences. */
static void end_backward(const call *c, int share) {
    for (int64_t place = c->shares[share]; place < c->shares[share + 1]; place++) {
        const sequence *s = &c->sequences[place];
        /* In the forward direction, a reset at step 0 replaces the initial state, whose gradient is then zero. */
        int is_without = !c->layer->reverse && s->begin == 0 && !s->has_initial;
        if (!s->has_initial && !is_without) continue;
        write_state(is_without ? c->zeros : c->d_h + place * c->stride, c->P, s->column, c->d->d_h_0);
        if (c->cell != LSTM) continue;
        write_state(is_without ? c->zeros : c->cell_states + place * c->stride, c->H, s->column, c->d->d_c_0);
    }
}

static void run_backward(void *argument, int number, thread_team *team) {
    call *c = argument;
    const int64_t direction = c->layer->reverse ? 1 : -1, gates = c->plan->num_gates;
    FOR_SHARES(c, share, number, team) begin_backward(c, share);
    /* This thread's rows of the weights' gradients, in whole vectors. */
    int64_t all = 2 * gates * c->H + (has_projection(c) ? c->P : 0);
    int64_t from = all * number / team->size / LANES * LANES;
    int64_t to = number + 1 == team->size ? all : all * (number + 1) / team->size / LANES * LANES;
    if (!c->num_steps && c->d->d_weight_ih) add_to_weights(c, 0, from, to, 0);
    for (int64_t done = 0, t = direction > 0 ? 0 : c->num_steps - 1; done < c->num_steps;) {
        int64_t steps = 0, rows = 0, begin = done;
        while (done + steps < c->num_steps && rows < CHUNK) rows += c->active[t + steps++ * direction];
        int64_t first_row = c->first_row[direction > 0 ? t : t - steps + 1];
        FOR_SHARES(c, share, number, team)
            for (int64_t i = 0, at = t; i < steps; i++, at += direction)
                step_back_share(c, at, share, c->first_row[at] - first_row);
        done += steps, t += steps * direction;
        wait_for_all(team);
        if (c->d->d_weight_ih) add_to_weights(c, rows, from, to, begin > 0);
        if (c->d->d_input.data) {
            const int64_t a = rows * number / team->size, b = rows * (number + 1) / team->size;
            const int64_t width = c->d_gates_stride, size = gates * c->H;
            product(b - a, c->I, size, c->d_gates + a * width, width, 1, c->w_ih_back, size, 0, 0, c->d_input_rows + a);
        }
        wait_for_all(team);
    }
    FOR_SHARES(c, share, number, team) end_backward(c, share);
}

static void pack_backward(call *c) {
    const int in_order[] = {0, 1, 2, 3};
    int first = first_of_reset_h(c), gates = c->plan->num_gates;
    if (c->d->d_input.data) pack_rows(c->layer->weight_ih, c->I, c->H, c->plan->gates_of_w, gates, c->w_ih_back);
    pack_rows(c->layer->weight_hh, c->P, c->H, in_order, first, c->w_hh_back[0]);
    pack_rows(c->layer->weight_hh, c->P, c->H, in_order + first, gates - first, c->w_hh_back[1]);
    if (has_projection(c)) pack_rows(c->layer->weight_hr, c->H, c->P, in_order, 1, c->w_hr);
}
