/* Tables of the cells: their gates, and the order of the arrays that a step stores. `cells.h` has the equations. */

#ifndef PLANS_H
#define PLANS_H

#include "unirnn.h"

/* The gates, in torch's order. An RNN has one, number 0. */
enum { GATE_R, GATE_Z, GATE_N };         /* GRU */
enum { GATE_I, GATE_F, GATE_G, GATE_O }; /* LSTM */

/* The slots of the arrays (H,) that a forward step keeps for the backward pass. The state after the step comes first;
   with a projection, it has P numbers. */
enum { KEPT_H };
enum { KEPT_R = 1, KEPT_Z, KEPT_N, KEPT_K };         /* GRU; k = U_n + b_hn only if r multiplies it */
enum { KEPT_I = 1, KEPT_F, KEPT_G, KEPT_O, KEPT_C }; /* LSTM; c is the cell state after the step */

/* The slots of the arrays (H,) that a step back gives: the gradients of the gates' sums W + U, as `cells.h` calls them.
   For most cells the slot is the number of the gate. A GRU has one slot more, since r multiplies U_n, and so the
   gradients of W_n and U_n differ. */
enum { GRU_D_W_N, GRU_D_R, GRU_D_Z, GRU_D_U_N };

/* A step is computed in stages, with one product with the state each: the gates that follow the same product. */
typedef struct {
    int num_gates, gates[4]; /* in the order of a panel's vectors */
    int units;               /* how many vectors of hidden units a panel has */
} stage_plan;

typedef struct {
    int num_gates, num_stages;
    stage_plan stages[2];
    int num_kept;      /* how many arrays a step keeps */
    int num_gradients; /* how many arrays of gradients a step back gives */
    int gates_of_w[4]; /* the gates whose gradients of W are in the first slots */
    int slot_of_u;     /* where the gradients of U begin, in the order of the gates */
} cell_plan;

static const cell_plan PLANS[UNIRNN_CELLS] = {
    [RNN_TANH] = {.num_gates = 1, .num_stages = 1, .stages = {{1, {0}, 2}}, .num_kept = 1, .num_gradients = 1},
    [RNN_RELU] = {.num_gates = 1, .num_stages = 1, .stages = {{1, {0}, 2}}, .num_kept = 1, .num_gradients = 1},
    [GRU] = {
        .num_gates = 3,
        .num_stages = 1,
        .stages = {{3, {GATE_R, GATE_Z, GATE_N}, 1}},
        .num_kept = KEPT_K + 1,
        .num_gradients = GRU_D_U_N + 1,
        .gates_of_w = {GATE_N, GATE_R, GATE_Z},
        .slot_of_u = GRU_D_R,
    },
    [GRU_RESET_BEFORE] = {
        .num_gates = 3,
        .num_stages = 2, /* since n needs r */
        .stages = {{2, {GATE_R, GATE_Z}, 1}, {1, {GATE_N}, 2}},
        .num_kept = KEPT_N + 1,
        .num_gradients = 3,
        .gates_of_w = {GATE_R, GATE_Z, GATE_N},
    },
    [LSTM] = {
        .num_gates = 4,
        .num_stages = 1,
        .stages = {{4, {GATE_I, GATE_F, GATE_G, GATE_O}, 1}},
        .num_kept = KEPT_C + 1,
        .num_gradients = 4,
        .gates_of_w = {GATE_I, GATE_F, GATE_G, GATE_O},
    },
};

/* Each cell of the interface: which of the cells above it is, and the slope of the line that replaces its sigmoids. */
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

#endif
