/* What AMD's production compiler makes of our kernels, and what that is worth: bounds and a small simulation of one compute unit.
   Nothing runs on a card: this judges the code, never how fast a program is.

   The model, per compute unit (CU) and clock. A kernel's hottest loop is one list of instructions; the simulator lets the waves that fit
   on a CU (registers and shared memory decide how many) issue it in order, oldest first, one instruction of each kind per SIMD and
   clock, with the counters of s_waitcnt, barriers, register latencies, the queues of shared memory and the vector cache, and 500 clocks for
   a load from memory. Rates: AMD's instruction set guides and ROCm documents; clocks per instruction: the cost table in Mesa's
   aco_statistics.cpp; dual-issued pairs are charged 1 / 0.75 clocks (seb-v's measurements on an RX 7900 XTX). Held against published fp32
   kernels on that card it is 8 to 21 % optimistic. Not in the model: bank conflicts, L2 and DRAM, launch and tail effects, clocks. */
#ifndef VULORA_BENCH_GPU_STATIC_H
#define VULORA_BENCH_GPU_STATIC_H

#include "vulkan/internal.h"

/* Rates per CU and clock. */
typedef struct gpu_rates {
    const char *family; /* how its name begins */
    int simds;
    bool gcn;        /* 16 lanes wide: a wave of 64 takes 4 clocks */
    bool dual_issue; /* two fp32 operations per lane and clock */
    double lds_bytes, l1_bytes;
    int units;           /* of the card: null devices have none */
    double memory_bytes; /* of its memory, shared out among them */
} gpu_rates;

const gpu_rates *gpu_rates_find(const char *family);

/* One kernel as the driver compiled it. */
typedef struct compiled {
    int registers, spills, shared, waves /* per SIMD */, wave /* lanes */, group /* waves in a workgroup */;
    char *text; /* its instructions, one a line; NULL: the driver does not say */
} compiled;

/* A null device of the family the environment names, with what is needed to look into pipelines. False: no such driver. */
typedef struct null_device null_device;
null_device *null_device_open(void);
void null_device_close(null_device *d);
/* As the engine would have opened it: recordings can be made for it, but not ended. */
gpu *null_device_engine(null_device *d);
/* Compiles a pipeline of the engine anew and fetches what the driver tells. group_threads: threads in a workgroup. */
bool null_device_compile(null_device *d, const gpu_pipeline *p, const gpu_shader *shader, compiled *out);

/* Sums over a stretch of code. Clocks are those one wave keeps the unit busy. */
typedef struct mix {
    double flops; /* per lane, of multiply-adds */
    double math;  /* vector clocks of those */
    double valu;  /* all vector clocks */
    double transcendental;
    double lds_bytes, memory_bytes;     /* per lane */
    double vector, scalar, lds, memory; /* instructions */
} mix;

typedef struct isa {
    char **line;
    int *bytes; /* of each line's encoding */
    int count, wave;
} isa;

typedef struct loop {
    int first, last; /* lines */
    int parent;      /* -1: none */
    double trips;    /* inside one pass of the parent */
    mix own, total;
} loop;

enum { MOST_LOOPS = 256 };

/* How often loops inside the outermost one run, where that is known (it is then the outermost one that is judged): innermost loops with
   multiply-adds and without (they fill shared memory), and loops in between. */
typedef struct inner_loops {
    double multiply, fill, between;
} inner_loops;

/* The hottest loop of a kernel. */
typedef struct hot_loop {
    loop loops[MOST_LOOPS];
    int count, pick; /* -1: no loop, the whole kernel */
    mix whole, total;
    int bytes; /* of code; the instruction cache has 32 KiB */
} hot_loop;

isa isa_split(char *text, int wave);
void isa_free(isa *code);
int isa_label(const char *line); /* the number of the label that begins there, or -1 */
void isa_classify(const char *line, const gpu_rates *rates, int wave, mix *m);
/* known: NULL where the innermost loop is the one to judge. */
void hot_loop_find(const isa *code, const gpu_rates *rates, const inner_loops *known, hot_loop *out);

/* The kernel from end to end, for simulate: the hot loop `steps` times, loops behind it `after` times. */
hot_loop hot_loop_whole(const hot_loop *h, double steps, double after);

/* FLOP per clock and CU of the hot loop, with so many waves per SIMD. */
double simulate(const isa *code, const hot_loop *hot, const gpu_rates *rates, int waves, int group);

/* The least bytes that a lane moves with one access to memory, in the hot loop. */
int isa_least_access(const isa *code, const hot_loop *h);

/* A kernel that memory bounds, against its limits (streams.c). */
typedef struct stream_verdict {
    int access; /* as isa_least_access */
    double alu; /* share of the vector units' time that it takes at the full speed of the card's memory */
    bool slow, narrow, few_waves;
} stream_verdict;
/* False: no such kernel. */
bool stream_judge(const char *shader, const gpu_rates *rates, const isa *code, const hot_loop *h, int waves, stream_verdict *out);

/* What SD1.5 at 512x512 runs: records every case on that device and calls back once per kernel launch in it. target: what its
   figure should be at least (0: none is set). */
typedef struct case_kernel {
    const char *label; /* the operation and its shape */
    const gpu_pipeline *pipeline;
    bool has_trips;
    inner_loops trips;
    double useful; /* share of the products that is not padding */
    double target;
    double groups;       /* workgroups of the launch */
    double flops, bytes; /* of the launch; each operand read or written once */
    double steps, after; /* of matrix products: passes of the hot loop, and of loops behind it. 0: not known */
} case_kernel;
typedef void (*case_visit)(void *user, const case_kernel *k);
bool cases_run(gpu *g, const char *family, case_visit visit, void *user, error *err);

#endif
