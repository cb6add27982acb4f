/* The interface of the compiled kernels: one layer in one direction, forward and backward.

   All sizes are numbers of elements. An array of steps is (T, B, F): its steps and its sequences lie at any distance,
   its F numbers beside each other. All other arrays are contiguous. A pointer to something that is not there is NULL.

   A call returns 0, or an error of `enum unirnn_status`, and has then written nothing. It allocates what it needs and
   frees it before it returns, and calls no other library than C's. */

#ifndef UNIRNN_H
#define UNIRNN_H

#include <stdint.h>

#if defined(_WIN32)
#define UNIRNN_EXPORT __declspec(dllexport)
#else
#define UNIRNN_EXPORT __attribute__((visibility("default")))
#endif

/* The number of this interface: another one for each change of the structs or of the functions. */
#define UNIRNN_INTERFACE 2

enum unirnn_status {
    UNIRNN_OK = 0,
    UNIRNN_NO_MEMORY = 1,
    UNIRNN_BAD_LENGTH = 2,
    UNIRNN_BAD_CELL = 3,
    UNIRNN_BAD_PROJECTION = 4
};

/* The gates of a cell are sigmoids, or straight lines that are cut off at 0 and 1: x/6 + 1/2 (HARD_SIGMOID), or
   0.2 x + 0.5 (HARD_SIGMOID_02). */
enum unirnn_cell {
    RNN_TANH,
    RNN_RELU,
    GRU,
    GRU_HARD_SIGMOID,
    GRU_HARD_SIGMOID_02,
    GRU_RESET_BEFORE,
    GRU_RESET_BEFORE_HARD_SIGMOID,
    GRU_RESET_BEFORE_HARD_SIGMOID_02,
    LSTM,
    LSTM_HARD_SIGMOID,
    LSTM_HARD_SIGMOID_02,
    UNIRNN_CELLS
};

enum unirnn_dtype { UNIRNN_FLOAT32, UNIRNN_FLOAT64 };

typedef struct {
    void *data;
    int64_t step;     /* from a step to the next */
    int64_t sequence; /* from a sequence to the next */
} unirnn_steps;

typedef struct {
    int32_t cell;        /* enum unirnn_cell */
    int32_t dtype;       /* enum unirnn_dtype, of all arrays but the lengths and the resets */
    int32_t reverse;     /* whether it runs from the last valid step to the first */
    int32_t num_threads; /* how many threads may compute; the results do not depend on it */
    int64_t steps, batch_size, input_size, hidden_size;
    int64_t proj_size;      /* P: to what the h of an LSTM is projected, less than H; 0: it is not, and P is H below */
    const int64_t *lengths; /* (B,): 0 <= n <= T; NULL if every step is valid */
    const uint8_t *resets;  /* (T, B): whether a new sequence begins at a step; NULL if none does */
    const void *weight_ih, *weight_hh;  /* (G*H, I) and (G*H, P), gates as torch has them */
    const void *bias_ih, *bias_hh;      /* (G*H,), or both NULL */
    const void *weight_hr;              /* (P, H), of the projection */
    unirnn_steps input;                 /* (T, B, I); its padding is never read */
    const void *h_0, *c_0;              /* (B, P) and (B, H); NULL is zeros */
    unirnn_steps output;                /* (T, B, P), zero in the padding; in a backward pass not used */
    void *h_n, *c_n;                    /* (B, P) and (B, H); in a backward pass not used */
    void *kept; /* (sum of the lengths, unirnn_kept * H): what a forward pass leaves for the backward pass; or NULL */
} unirnn_layer;

typedef struct {
    unirnn_steps d_output;      /* (T, B, P), or NULL */
    const void *d_h_n, *d_c_n;  /* (B, P) and (B, H), or NULL */
    unirnn_steps d_input;       /* (T, B, I), zero in the padding, or NULL if not wanted */
    void *d_h_0, *d_c_0;        /* (B, P) and (B, H); never NULL, but for the d_c_0 of a cell without c */
    /* Those of the weights that the layer has; all NULL if not wanted. */
    void *d_weight_ih, *d_weight_hh, *d_bias_ih, *d_bias_hh, *d_weight_hr;
} unirnn_gradients;

/* UNIRNN_INTERFACE, of the sources that the library was built from. */
UNIRNN_EXPORT int unirnn_interface(void);

/* Run a layer. */
UNIRNN_EXPORT int unirnn_forward(const unirnn_layer *layer);

/* Compute its gradients, from what the forward pass with the same layer has kept. */
UNIRNN_EXPORT int unirnn_backward(const unirnn_layer *layer, const unirnn_gradients *gradients);

/* How many arrays (H,) a cell keeps for each valid step. */
UNIRNN_EXPORT int unirnn_kept(int cell);

/* The name of the instruction set that is used: the best one that the processor has, or the one that the environment
   variable UNIRNN_ISA names, if the processor has it. */
UNIRNN_EXPORT const char *unirnn_isa(void);

/* The names of all instruction sets that this library has and this processor can run, separated by spaces. */
UNIRNN_EXPORT const char *unirnn_isas(void);

/* How many floating-point operations one thread does, at most, in a second: the peak of fused multiply-adds. */
UNIRNN_EXPORT double unirnn_peak(int dtype);

#endif
