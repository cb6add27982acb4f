/* The equations of the cells: one step forward and one step back, for a vector of hidden units of one sequence.

   W stands for W_ih x plus the biases, U for W_hh h, with the state h before the step:

     RNN                h' = act(W + U)
     GRU                r, z = gate(W + U)     n = tanh(W_n + r * k)         h' = n + z * (h - n)   with k = U_n + b_hn
     GRU, reset before  r, z = gate(W + U)     n = tanh(W_n + U_n(r * h))    h' = n + z * (h - n)
     LSTM               i, f, o = gate(W + U)  g = tanh(W + U)   c' = f * c + i * g   h' = o * tanh(c')

   gate is the sigmoid, or the straight line slope * x + 1/2 cut off at 0 and 1. In an LSTM with a projection, this h'
   is then projected: the state after the step is W_hr h'.

   The names of gates and slots, and the stages of a step, are in `plans.h`. */

/* What a step of one sequence reads, and where it writes. */
typedef struct {
    const real *h; /* the state before */
    real *next;    /* the state after */
    real *c;       /* LSTM: the cell state before, replaced by the one after */
    real *reset;   /* GRU_RESET_BEFORE: r * h, from the first stage to the second */
    real *update;  /* GRU_RESET_BEFORE: z, likewise */
    real *output;  /* NULL with a projection, which writes it later */
    real *kept;    /* (num_kept, size), or NULL */
    real slope;    /* of the line that replaces the sigmoids, or 0 */
    int64_t size, first, left; /* H, the first hidden unit of the vector, and how many units follow from it on */
} cell_step;

INLINE void keep(const cell_step *s, int slot, vec x) {
    if (s->kept) store_some(s->kept + slot * s->size + s->first, x, s->left);
}

INLINE void finish(const cell_step *s, vec h) {
    store(s->next + s->first, h);
    if (!s->output) return;
    store_some(s->output + s->first, h, s->left);
    keep(s, KEPT_H, h);
}

/* The function `gate`. */
INLINE vec gate_of(const cell_step *s, vec x) {
    if (s->slope == 0) return sigmoid(x);
    vec line = x * splat(s->slope) + splat((real)0.5);
    line = choose(line < splat(0), splat(0), line); /* NaN stays NaN */
    return choose(line > splat(1), splat(1), line);
}

/* What the product with the state is added to: W, but for the gate n of a GRU, whose W is added after r has
   multiplied. */
INLINE void begin_sum(int cell, int gate, const real *w, const real *bias, vec *sum) {
    *sum = cell == GRU && gate == GATE_N ? load(bias) : load(w);
}

/* One stage of a step, from the sums W + U of its gates. For the gate n of a GRU the sum is k, and `w_n` is W. */
INLINE void step_forward(int cell, int stage, const vec *sums, vec w_n, const cell_step *s) {
    if (cell == RNN_TANH) finish(s, tanh_of(sums[0]));
    if (cell == RNN_RELU) finish(s, choose(sums[0] < splat(0), splat(0), sums[0]));
    if (cell == GRU) {
        vec k = sums[GATE_N];
        vec r = gate_of(s, sums[GATE_R]), z = gate_of(s, sums[GATE_Z]), n = tanh_of(w_n + r * k);
        keep(s, KEPT_R, r), keep(s, KEPT_Z, z), keep(s, KEPT_N, n), keep(s, KEPT_K, k);
        finish(s, n + z * (load(s->h + s->first) - n));
    }
    if (cell == GRU_RESET_BEFORE && stage == 0) {
        vec r = gate_of(s, sums[GATE_R]), z = gate_of(s, sums[GATE_Z]);
        store(s->reset + s->first, r * load(s->h + s->first));
        store(s->update + s->first, z);
        keep(s, KEPT_R, r), keep(s, KEPT_Z, z);
    }
    if (cell == GRU_RESET_BEFORE && stage == 1) {
        vec n = tanh_of(sums[0]), z = load(s->update + s->first);
        keep(s, KEPT_N, n);
        finish(s, n + z * (load(s->h + s->first) - n));
    }
    if (cell == LSTM) {
        vec i = gate_of(s, sums[GATE_I]), f = gate_of(s, sums[GATE_F]);
        vec g = tanh_of(sums[GATE_G]), o = gate_of(s, sums[GATE_O]);
        vec c = f * load(s->c + s->first) + i * g;
        store(s->c + s->first, c);
        keep(s, KEPT_I, i), keep(s, KEPT_F, f), keep(s, KEPT_G, g), keep(s, KEPT_O, o), keep(s, KEPT_C, c);
        finish(s, o * tanh_of(c));
    }
}

/* What a step back of one sequence reads, and where it writes. */
typedef struct {
    const real *kept;      /* of the step */
    const real *h, *c;     /* the state before the step */
    real *d_h, *d_c;       /* the gradient of the state after; then what passes to the state before without a product */
    const real *d_output;  /* or NULL */
    real *gradients;       /* (num_gradients, size): of W and U */
    real *d_reset;         /* GRU_RESET_BEFORE: the gradient of r * h, a product that the second stage reads */
    real slope;            /* of the line that replaces the sigmoids, or 0 */
    int64_t size, first, left;
} cell_step_back;

INLINE vec kept_of(const cell_step_back *s, int slot) {
    return load_some(s->kept + slot * s->size + s->first, s->left);
}

INLINE void give(const cell_step_back *s, int slot, vec x) {
    store_some(s->gradients + slot * s->size + s->first, x, s->left);
}

/* The derivative of `gate`, from its value. */
INLINE vec slope_of_gate(const cell_step_back *s, vec gate) {
    if (s->slope == 0) return gate * (splat(1) - gate);
    return choose((gate > splat(0)) & (gate < splat(1)), splat(s->slope), splat(0));
}

INLINE vec slope_of_tanh(vec t) { return splat(1) - t * t; }

INLINE void step_backward(int cell, int stage, const cell_step_back *s) {
    vec d_h = load(s->d_h + s->first);
    if (stage == 0 && s->d_output) d_h += load_some(s->d_output + s->first, s->left);
    if (cell == RNN_TANH) give(s, 0, d_h * slope_of_tanh(kept_of(s, KEPT_H)));
    if (cell == RNN_RELU) give(s, 0, choose(kept_of(s, KEPT_H) <= splat(0), splat(0), d_h)); /* NaN passes it */
    if (cell == RNN_TANH || cell == RNN_RELU || cell == LSTM) store(s->d_h + s->first, splat(0));
    if (cell == GRU || (cell == GRU_RESET_BEFORE && stage == 0)) {
        vec z = kept_of(s, KEPT_Z), n = kept_of(s, KEPT_N);
        vec d_n = d_h * (splat(1) - z) * slope_of_tanh(n);
        vec d_z = d_h * (load_some(s->h + s->first, s->left) - n) * slope_of_gate(s, z);
        store(s->d_h + s->first, d_h * z);
        if (cell == GRU) {
            vec r = kept_of(s, KEPT_R), d_k = d_n * r;
            give(s, GRU_D_W_N, d_n);
            give(s, GRU_D_R, d_n * kept_of(s, KEPT_K) * slope_of_gate(s, r));
            give(s, GRU_D_Z, d_z);
            give(s, GRU_D_U_N, d_k);
        } else {
            give(s, GATE_Z, d_z), give(s, GATE_N, d_n);
        }
    }
    if (cell == GRU_RESET_BEFORE && stage == 1) {
        vec r = kept_of(s, KEPT_R), d_reset = load(s->d_reset + s->first);
        give(s, GATE_R, d_reset * load_some(s->h + s->first, s->left) * slope_of_gate(s, r));
        store(s->d_h + s->first, d_h + d_reset * r);
    }
    if (cell == LSTM) {
        vec i = kept_of(s, KEPT_I), f = kept_of(s, KEPT_F), g = kept_of(s, KEPT_G), o = kept_of(s, KEPT_O);
        vec t = tanh_of(kept_of(s, KEPT_C));
        vec d_c = load(s->d_c + s->first) + d_h * o * slope_of_tanh(t);
        give(s, GATE_I, d_c * g * slope_of_gate(s, i));
        give(s, GATE_F, d_c * load_some(s->c + s->first, s->left) * slope_of_gate(s, f));
        give(s, GATE_G, d_c * i * slope_of_tanh(g));
        give(s, GATE_O, d_h * t * slope_of_gate(s, o));
        store(s->d_c + s->first, d_c * f);
    }
}
