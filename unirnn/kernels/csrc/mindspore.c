/* The kernels as operators of MindSpore (`ops.Custom`, func_type="aot"): for each cell and direction a forward and a
   backward function, which MindSpore finds by name and calls without Python.

   Both take x (T, B, I), h_0 and c_0 (B, H), the lengths (B,) int64, the resets (T, B) bool and the four weights; then

       forward:                                     gives the output, h_n, c_n;
       backward:  takes the gradients of these too, gives those of x, h_0, c_0 and of the four weights.

   The functions of an LSTM with a projection have PROJECTED in their names: its weight follows the four, and its
   gradient theirs; output and h are of its size.

   Resets of any other rank than 2 are none. An RNN or GRU has neither c_n nor its gradient; what stands for c_0 is not
   read, and its gradient is zero. All arrays are contiguous, and all but lengths and resets have one dtype. Nothing is
   stored between the two: backward runs the layer again. A function returns a code of `enum unirnn_status`, which
   MindSpore raises as an error. */

#if defined(__linux__)

#define _GNU_SOURCE
#include "unirnn.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum input { X, H_0, C_0, LENGTHS, RESETS, WEIGHT_IH, WEIGHT_HH, BIAS_IH, BIAS_HH, WEIGHT_HR };

/* Which operator it is. */
typedef struct {
    int cell, is_lstm, projected, reverse;
} operator;

static int num_inputs(operator op) { return op.projected ? WEIGHT_HR + 1 : WEIGHT_HR; }

/* OMP_NUM_THREADS, or all cores but one: MindSpore's thread that waits for a graph keeps a core busy, unless a graph
   runs in the thread that calls it. */
static int num_threads(void) {
    const char *wanted = getenv("OMP_NUM_THREADS");
    int number = wanted ? atoi(wanted) : 0;
    if (number > 0) return number;
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof(cores), &cores)) return 1;
    const char *blocking = getenv("MS_DEV_HOST_BLOCKING_RUN");
    number = CPU_COUNT(&cores) - !(blocking && !strcmp(blocking, "1"));
    return number > 0 ? number : 1;
}

static unirnn_steps steps_of(void *data, const unirnn_layer *layer, int64_t size) {
    return (unirnn_steps){data, layer->batch_size * size, size};
}

/* The layer without its results. For a dtype that the kernels don't have, its cell is one that they refuse. */
static unirnn_layer layer_of(operator op, void **params, int *ndims, int64_t **shapes, const char **dtypes) {
    unirnn_layer layer = {
        .cell = strcmp(dtypes[X], "float64") && strcmp(dtypes[X], "float32") ? UNIRNN_CELLS : op.cell,
        .dtype = strcmp(dtypes[X], "float64") ? UNIRNN_FLOAT32 : UNIRNN_FLOAT64,
        .reverse = op.reverse,
        .num_threads = num_threads(),
        .steps = shapes[X][0],
        .batch_size = shapes[X][1],
        .input_size = shapes[X][2],
        .hidden_size = op.projected ? shapes[WEIGHT_HR][1] : shapes[H_0][1],
        .proj_size = op.projected ? shapes[WEIGHT_HR][0] : 0,
        .lengths = params[LENGTHS],
        .resets = ndims[RESETS] == 2 ? params[RESETS] : NULL,
        .weight_ih = params[WEIGHT_IH],
        .weight_hh = params[WEIGHT_HH],
        .bias_ih = params[BIAS_IH],
        .bias_hh = params[BIAS_HH],
        .weight_hr = op.projected ? params[WEIGHT_HR] : NULL,
        .h_0 = params[H_0],
        .c_0 = op.is_lstm ? params[C_0] : NULL,
    };
    layer.input = steps_of(params[X], &layer, layer.input_size);
    return layer;
}

/* P, or H without a projection. */
static int64_t output_size(const unirnn_layer *layer) {
    return layer->proj_size ? layer->proj_size : layer->hidden_size;
}

static int forward(operator op, unirnn_layer layer, void **results) {
    layer.output = steps_of(results[0], &layer, output_size(&layer));
    layer.h_n = results[1];
    layer.c_n = op.is_lstm ? results[2] : NULL;
    return unirnn_forward(&layer);
}

static int backward(operator op, unirnn_layer layer, void **d_results) {
    if (layer.cell == UNIRNN_CELLS) return UNIRNN_BAD_CELL;
    void **d_inputs = d_results + (op.is_lstm ? 3 : 2);
    const int64_t size = layer.dtype == UNIRNN_FLOAT64 ? 8 : 4, state = layer.batch_size * layer.hidden_size;
    int64_t valid = 0;
    for (int64_t b = 0; b < layer.batch_size; b++) {
        if (layer.lengths[b] < 0 || layer.lengths[b] > layer.steps) return UNIRNN_BAD_LENGTH;
        valid += layer.lengths[b];
    }
    /* Only what is kept is needed here, so all steps of the output may be written to the same place. With a projection
       they may not, since the output is read again, with resets for several sequences of a column at a time. */
    const int64_t outputs = op.projected ? layer.steps * layer.batch_size * layer.proj_size : state;
    char *memory = malloc((outputs + 2 * state + valid * unirnn_kept(layer.cell) * layer.hidden_size) * size);
    if (!memory) return UNIRNN_NO_MEMORY;
    layer.output = steps_of(memory, &layer, output_size(&layer));
    if (!op.projected) layer.output.step = 0;
    layer.h_n = memory + outputs * size;
    layer.c_n = memory + (outputs + state) * size;
    layer.kept = memory + (outputs + 2 * state) * size;
    unirnn_gradients d = {
        .d_output = steps_of(d_results[0], &layer, output_size(&layer)),
        .d_h_n = d_results[1],
        .d_c_n = op.is_lstm ? d_results[2] : NULL,
        .d_input = steps_of(d_inputs[0], &layer, layer.input_size),
        .d_h_0 = d_inputs[1],
        .d_c_0 = op.is_lstm ? d_inputs[2] : NULL,
        .d_weight_ih = d_inputs[3],
        .d_weight_hh = d_inputs[4],
        .d_bias_ih = d_inputs[5],
        .d_bias_hh = d_inputs[6],
        .d_weight_hr = op.projected ? d_inputs[7] : NULL,
    };
    int status = unirnn_forward(&layer);
    if (!status) status = unirnn_backward(&layer, &d);
    if (!status && !op.is_lstm) memset(d_inputs[2], 0, state * size);
    free(memory);
    return status;
}

#define ARGUMENTS \
    int count, void **params, int *ndims, int64_t **shapes, const char **dtypes, void *stream, void *extra
#define OPERATORS(name, ...) \
    UNIRNN_EXPORT int unirnn_mindspore_##name##_forward(ARGUMENTS); \
    UNIRNN_EXPORT int unirnn_mindspore_##name##_backward(ARGUMENTS); \
    int unirnn_mindspore_##name##_forward(ARGUMENTS) { \
        (void)count, (void)stream, (void)extra; \
        operator op = {__VA_ARGS__}; \
        return forward(op, layer_of(op, params, ndims, shapes, dtypes), params + num_inputs(op)); \
    } \
    int unirnn_mindspore_##name##_backward(ARGUMENTS) { \
        (void)count, (void)stream, (void)extra; \
        operator op = {__VA_ARGS__}; \
        return backward(op, layer_of(op, params, ndims, shapes, dtypes), params + num_inputs(op)); \
    }
#define BOTH_WAYS(name, cell, is_lstm, projected) \
    OPERATORS(name, cell, is_lstm, projected, 0) OPERATORS(name##_reverse, cell, is_lstm, projected, 1)
#define WITH_ONE_STATE(cell) BOTH_WAYS(cell, cell, 0, 0)
#define WITH_TWO_STATES(cell) BOTH_WAYS(cell, cell, 1, 0) BOTH_WAYS(cell##_PROJECTED, cell, 1, 1)

WITH_ONE_STATE(RNN_TANH)
WITH_ONE_STATE(RNN_RELU)
WITH_ONE_STATE(GRU)
WITH_ONE_STATE(GRU_HARD_SIGMOID)
WITH_ONE_STATE(GRU_HARD_SIGMOID_02)
WITH_ONE_STATE(GRU_RESET_BEFORE)
WITH_ONE_STATE(GRU_RESET_BEFORE_HARD_SIGMOID)
WITH_ONE_STATE(GRU_RESET_BEFORE_HARD_SIGMOID_02)
WITH_TWO_STATES(LSTM)
WITH_TWO_STATES(LSTM_HARD_SIGMOID)
WITH_TWO_STATES(LSTM_HARD_SIGMOID_02)

#endif
