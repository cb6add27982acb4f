/* One layer in one direction, forward and backward, for one instruction set (ISA) and one type (DOUBLE).

   Without resets, a column of the batch is one sequence. With resets it holds several, one after another. They are
   independent, so each is computed as if it had a column of its own. The sequences are sorted by length, the longest
   first: those that have a step t are the first `active[t]`. Only valid steps are computed. They are numbered as
   *rows*, step by step: step t of the sequence at place p is row first_row[t] + p.

   `call.h` puts a call in this order, `forward.h` and `backward.h` run it. These headers are included here only. */

#define _GNU_SOURCE /* for the processors of a thread, in `threads.h` */

#include "plans.h"

#include <stdlib.h>
#include <time.h>

#include "vector.h"
#include "products.h"
#include "cells.h"
#include "threads.h"
#include "call.h"
#include "forward.h"
#include "backward.h"

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
    char *order = malloc(c.num_sequences * sizeof(sequence) + (2 * c.T + 1 + MOST_THREADS + 1) * sizeof(int64_t) +
                         c.stride * sizeof(real));
    if (!order) return UNIRNN_NO_MEMORY;
    c.sequences = (sequence *)order;
    c.active = (int64_t *)(c.sequences + c.num_sequences);
    c.first_row = c.active + c.T + 1, c.shares = c.first_row + c.T;
    c.zeros = (real *)(c.shares + MOST_THREADS + 1);
    memset(c.zeros, 0, c.stride * sizeof(real));
    arrange(&c);
    c.few = c.num_rows <= FEW;
    lay_out(&c, &m);
    char *space = malloc(m.size + 64);
    if (!space) {
        free(order);
        return UNIRNN_NO_MEMORY;
    }
    m = (memory){space + 64 - (uintptr_t)space % 64, 0};
    lay_out(&c, &m);
    if (d) pack_backward(&c);
    else pack_forward(&c);
    run_team(c.num_threads, d ? run_backward : run_forward, &c);
    free(space);
    free(order);
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
        for (int repeat = 0; repeat < count; repeat++) {
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
