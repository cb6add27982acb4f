/* The equations of the cells: one step forward and one step back, for a vector of hidden units of one sequence.

   W stands for W_ih x plus the biases, U for W_hh h, with the state h before the step:

     RNN                h' = act(W + U)
     GRU                r, z = s(W + U)    n = tanh(W_n + r * k)          h' = n + z * (h - n)    with k = U_n + b_hn
     GRU, reset before  r, z = s(W + U)    n = tanh(W_n + U_n(r * h))     h' = n + z * (h - n)
     LSTM               i, f, o = s(W + U)   g = tanh(W + U)   c' = f * c + i * g   h' = o * tanh(c')

   s is the sigmoid, or the straight line slope * x + 1/2 cut off at 0 and 1. In an LSTM with a projection, this h' is
   then projected: the state after the step is W_hr h'.

   The gates are computed in blocks of one product with the state each. Only the GRU with the reset gate before the
   product has two blocks, since its n needs r. */

typedef struct {
    int num_gates, gates[4]; /* which of torch's gates, in the order of a panel's vectors */
    int units;               /* how many vectors of hidden units a panel has */
} block;

typedef struct {
    int num_gates, num_blocks;
    block blocks[2];
    int kept;            /* how many arrays (H,) a step keeps for the backward pass: h', and those of `keep` */
    int gradients;       /* how many arrays (H,) of gradients a step back gives: of W, then of U */
    int of_input[4];     /* the order of the gradients of W, as numbers of torch's gates */
    int of_hidden_first; /* where the gradients of U begin; they are in torch's order, and share arrays with W's */
} cell_plan;

/* Each cell of the interface: which equations it has, and the slope of the line that replaces its sigmoids. */
typedef struct {
    int cell;
    double slope; /* 0 for sigmoids */
} cell_variant;

static const cell_variant VARIANTS[UNIRNN_CELLS] = {
    [RNN_TANH] = {RNN_TANH, 0},
    [RNN_RELU] = {RNN_RELU, 0},
    [GRU] = {GRU, 0},
    [GRU_HARD_SIGMOID] = {GRU, 1.0 / 6},
    [GRU_HARD_SIGMOID_02] = {GRU, 0.2},
    [GRU_RESET_BEFORE] = {GRU_RESET_BEFORE, 0},
    [GRU_RESET_BEFORE_HARD_SIGMOID] = {GRU_RESET_BEFORE, 1.0 / 6},
    [GRU_RESET_BEFORE_HARD_SIGMOID_02] = {GRU_RESET_BEFORE, 0.2},
    [LSTM] = {LSTM, 0},
    [LSTM_HARD_SIGMOID] = {LSTM, 1.0 / 6},
    [LSTM_HARD_SIGMOID_02] = {LSTM, 0.2},
};

/* By the cells that VARIANTS refers to. */
static const cell_plan PLANS[UNIRNN_CELLS] = {
    [RNN_TANH] = {1, 1, {{1, {0}, 2}}, 1, 1, {0}, 0},
    [RNN_RELU] = {1, 1, {{1, {0}, 2}}, 1, 1, {0}, 0},
    [GRU] = {3, 1, {{3, {0, 1, 2}, 1}}, 5, 4, {2, 0, 1}, 1},
    [GRU_RESET_BEFORE] = {3, 2, {{2, {0, 1}, 1}, {1, {2}, 2}}, 4, 3, {0, 1, 2}, 0},
    [LSTM] = {4, 1, {{4, {0, 1, 2, 3}, 1}}, 6, 4, {0, 1, 2, 3}, 0},
};

/* What a step of one sequence reads, and where it writes. */
typedef struct {
    const real *h; /* the state before */
    real *next;    /* the state after */
    real *c;       /* LSTM: the cell state before, replaced by the one after */
    real *reset;   /* GRU_RESET_BEFORE: r * h, from the first block to the second */
    real *update;  /* GRU_RESET_BEFORE: z, likewise */
    real *output;  /* NULL with a projection, which writes it later */
    real *kept;   /* (kept, size), or NULL */
    real slope;   /* of the line that replaces the sigmoids, or 0 */
    int64_t size, first, left; /* H, the first hidden unit of the vector, and how many units follow from it on */
} step;

INLINE void keep(const step *s, int place, vec x) {
    if (s->kept) store_some(s->kept + place * s->size + s->first, x, s->left);
}

INLINE void finish(const step *s, vec h) {
    store(s->next + s->first, h);
    if (!s->output) return;
    store_some(s->output + s->first, h, s->left);
    keep(s, 0, h);
}

/* The function s of a gate. */
INLINE vec gate_of(const step *s, vec x) {
    if (s->slope == 0) return sigmoid(x);
    vec line = x * splat(s->slope) + splat((real)0.5);
    line = choose(line < splat(0), splat(0), line); /* NaN stays NaN */
    return choose(line > splat(1), splat(1), line);
}

/* What the product with the state is added to: W, but for the gate n of a GRU, whose W is added after r has
   multiplied. */
INLINE void begin_sums(int cell, int gate, const real *w, const real *bias, vec *sum) {
    *sum = cell == GRU && gate == 2 ? load(bias) : load(w);
}

/* One block of a step, from the sums W + U of its gates. For the gate n of a GRU the sum is k, and `w_n` is W. */
INLINE void step_forward(int cell, int block, const vec *sums, vec w_n, const step *s) {
    if (cell == RNN_TANH) finish(s, tanh_of(sums[0]));
    if (cell == RNN_RELU) finish(s, choose(sums[0] < splat(0), splat(0), sums[0]));
    if (cell == GRU) {
        vec r = gate_of(s, sums[0]), z = gate_of(s, sums[1]), n = tanh_of(w_n + r * sums[2]);
        keep(s, 1, r), keep(s, 2, z), keep(s, 3, n), keep(s, 4, sums[2]);
        finish(s, n + z * (load(s->h + s->first) - n));
    }
    if (cell == GRU_RESET_BEFORE && block == 0) {
        vec r = gate_of(s, sums[0]), z = gate_of(s, sums[1]);
        store(s->reset + s->first, r * load(s->h + s->first));
        store(s->update + s->first, z);
        keep(s, 1, r), keep(s, 2, z);
    }
    if (cell == GRU_RESET_BEFORE && block == 1) {
        vec n = tanh_of(sums[0]), z = load(s->update + s->first);
        keep(s, 3, n);
        finish(s, n + z * (load(s->h + s->first) - n));
    }
    if (cell == LSTM) {
        vec i = gate_of(s, sums[0]), f = gate_of(s, sums[1]), g = tanh_of(sums[2]), o = gate_of(s, sums[3]);
        vec c = f * load(s->c + s->first) + i * g;
        store(s->c + s->first, c);
        keep(s, 1, i), keep(s, 2, f), keep(s, 3, g), keep(s, 4, o), keep(s, 5, c);
        finish(s, o * tanh_of(c));
    }
}

/* What a step back of one sequence reads, and where it writes. */
typedef struct {
    const real *kept;      /* of the step */
    const real *h, *c;     /* the state before the step */
    real *d_h, *d_c;       /* the gradient of the state after; then what passes to the state before without a product */
    const real *d_output;  /* or NULL */
    real *gradients;       /* (gradients, size): of W and U */
    real *d_reset;         /* GRU_RESET_BEFORE: the gradient of r * h, a product that the second block reads */
    real slope;            /* of the line that replaces the sigmoids, or 0 */
    int64_t size, first, left;
} step_back;

INLINE vec kept_of(const step_back *s, int place) { return load_some(s->kept + place * s->size + s->first, s->left); }

INLINE void give(const step_back *s, int place, vec x) {
    store_some(s->gradients + place * s->size + s->first, x, s->left);
}

/* The derivative of s, from the value of s. */
INLINE vec slope_of_gate(const step_back *s, vec gate) {
    if (s->slope == 0) return gate * (splat(1) - gate);
    return choose((gate > splat(0)) & (gate < splat(1)), splat(s->slope), splat(0));
}

INLINE vec slope_of_tanh(vec t) { return splat(1) - t * t; }

INLINE void step_backward(int cell, int block, const step_back *s) {
    vec d_h = load(s->d_h + s->first);
    if (block == 0 && s->d_output) d_h += load_some(s->d_output + s->first, s->left);
    if (cell == RNN_TANH) give(s, 0, d_h * slope_of_tanh(kept_of(s, 0)));
    if (cell == RNN_RELU) give(s, 0, choose(kept_of(s, 0) > splat(0), d_h, splat(0)));
    if (cell == RNN_TANH || cell == RNN_RELU || cell == LSTM) store(s->d_h + s->first, splat(0));
    if (cell == GRU || (cell == GRU_RESET_BEFORE && block == 0)) {
        vec z = kept_of(s, 2), n = kept_of(s, 3);
        vec d_n = d_h * (splat(1) - z) * slope_of_tanh(n);
        vec d_z = d_h * (load_some(s->h + s->first, s->left) - n) * slope_of_gate(s, z);
        store(s->d_h + s->first, d_h * z);
        if (cell == GRU) {
            vec r = kept_of(s, 1), d_k = d_n * r;
            give(s, 0, d_n), give(s, 1, d_n * kept_of(s, 4) * slope_of_gate(s, r)), give(s, 2, d_z), give(s, 3, d_k);
        } else {
            give(s, 1, d_z), give(s, 2, d_n);
        }
    }
    if (cell == GRU_RESET_BEFORE && block == 1) {
        vec r = kept_of(s, 1), d_reset = load(s->d_reset + s->first);
        give(s, 0, d_reset * load_some(s->h + s->first, s->left) * slope_of_gate(s, r));
        store(s->d_h + s->first, d_h + d_reset * r);
    }
    if (cell == LSTM) {
        vec i = kept_of(s, 1), f = kept_of(s, 2), g = kept_of(s, 3), o = kept_of(s, 4), t = tanh_of(kept_of(s, 5));
        vec d_c = load(s->d_c + s->first) + d_h * o * slope_of_tanh(t);
        give(s, 0, d_c * g * slope_of_gate(s, i));
        give(s, 1, d_c * load_some(s->c + s->first, s->left) * slope_of_gate(s, f));
        give(s, 2, d_c * i * slope_of_tanh(g));
        give(s, 3, d_h * t * slope_of_gate(s, o));
        store(s->d_c + s->first, d_c * f);
    }
}
