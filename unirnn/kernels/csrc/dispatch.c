/* The library's functions: they refuse what is wrong, and choose the code for the type and the processor. */

#include "cpu.h"
#include "plans.h"

#include <stdlib.h>
#include <string.h>

typedef int (*run_function)(const unirnn_layer *, const unirnn_gradients *);
typedef double (*peak_function)(void);

typedef struct {
    const char *name;
    run_function run[2]; /* by enum unirnn_dtype */
    peak_function peak[2];
} instruction_set;

/* hatch_build.py defines INSTRUCTION_SETS(EACH): EACH(name) for each that the library is compiled for, best first. */
#define DECLARE(isa) \
    int unirnn_##isa##_float_run(const unirnn_layer *, const unirnn_gradients *); \
    int unirnn_##isa##_double_run(const unirnn_layer *, const unirnn_gradients *); \
    double unirnn_##isa##_float_peak(void); \
    double unirnn_##isa##_double_peak(void);
#define ENTRY(isa) \
    { \
        #isa, {unirnn_##isa##_float_run, unirnn_##isa##_double_run}, \
            {unirnn_##isa##_float_peak, unirnn_##isa##_double_peak} \
    },

INSTRUCTION_SETS(DECLARE)

static const instruction_set SETS[] = {INSTRUCTION_SETS(ENTRY)};

static int is_supported(const char *name) {
#if defined(__x86_64__) || defined(_M_X64)
    if (!strcmp(name, "avx512")) return cpu_has_avx512();
    if (!strcmp(name, "avx2")) return cpu_has_avx2();
#else
    (void)name;
#endif
    return 1;
}

#define NUM_SETS ((int)(sizeof(SETS) / sizeof(SETS[0])))

static const instruction_set *chosen(void) {
    static const instruction_set *found;
    if (found) return found;
    const char *wanted = getenv("UNIRNN_ISA");
    const instruction_set *best = NULL;
    for (int i = NUM_SETS - 1; i >= 0; i--) {
        if (!is_supported(SETS[i].name)) continue;
        best = &SETS[i];
        if (wanted && !strcmp(wanted, SETS[i].name)) break;
    }
    return found = best;
}

static int refuse(const unirnn_layer *layer) {
    if (layer->cell < 0 || layer->cell >= UNIRNN_CELLS) return UNIRNN_BAD_CELL;
    int is_lstm = VARIANTS[layer->cell].cell == LSTM;
    int can_project = is_lstm && layer->proj_size > 0 && layer->proj_size < layer->hidden_size;
    if (layer->weight_hr ? !can_project : layer->proj_size != 0) return UNIRNN_BAD_PROJECTION;
    for (int64_t b = 0; layer->lengths && b < layer->batch_size; b++)
        if (layer->lengths[b] < 0 || layer->lengths[b] > layer->steps) return UNIRNN_BAD_LENGTH;
    return UNIRNN_OK;
}

int unirnn_interface(void) { return UNIRNN_INTERFACE; }

int unirnn_forward(const unirnn_layer *layer) {
    int status = refuse(layer);
    return status ? status : chosen()->run[layer->dtype](layer, NULL);
}

int unirnn_backward(const unirnn_layer *layer, const unirnn_gradients *gradients) {
    int status = refuse(layer);
    return status ? status : chosen()->run[layer->dtype](layer, gradients);
}

int unirnn_kept(int cell) {
    return cell < 0 || cell >= UNIRNN_CELLS ? 0 : PLANS[VARIANTS[cell].cell].num_kept;
}

const char *unirnn_isa(void) { return chosen()->name; }

const char *unirnn_isas(void) {
    static char names[64];
    char *end = names;
    for (int i = 0; i < NUM_SETS; i++)
        if (is_supported(SETS[i].name)) {
            size_t length = strlen(SETS[i].name);
            if (end > names) *end++ = ' ';
            memcpy(end, SETS[i].name, length + 1);
            end += length;
        }
    return names;
}

double unirnn_peak(int dtype) { return chosen()->peak[dtype](); }
