/* Part of test_ops.c: the gradient norm and AdamW against torch.optim.AdamW and clip_grad_norm_ over three steps, and one step whose
   gradients are not finite; and steps that leave parts of a parameter alone. */

enum { TRAINED = 3, STEPS = 3 };
static const float LOSS_SCALE = 8;

typedef struct optimizer_trial {
    session *session;
    plan *plan;
    tensor *control, *norm, *param[TRAINED], *grad[TRAINED], *m[TRAINED], *v[TRAINED];
    float *start[TRAINED];
    int number; /* in the fixture */
} optimizer_trial;

static void optimizer_open(optimizer_trial *o, tensor_pool *pool, float max_norm) {
    static const int64_t SHAPES[TRAINED][2] = {{1, 7}, {33, 20}, {1, 70001}};
    error err;
    tape *t = tape_create(o->session->device);
    o->control = tape_input(t, "control", DTYPE_F32, 1, (int64_t[]){8});
    for (int k = 0; k < TRAINED; k++) {
        tensor **all[] = {&o->param[k], &o->grad[k], &o->m[k], &o->v[k]};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) *all[i] = tensor_pool_parameter(pool, "trained", 2, SHAPES[k], &err);
        o->start[k] = case_values(200 + (uint64_t)k, (size_t)tensor_count(o->param[k]), 1, 0);
        assert_true(tensor_write(o->session->device, o->param[k], o->start[k], &err));
    }
    o->norm = op_grad_norm(t, o->grad, TRAINED, o->control);
    for (int k = 0; k < TRAINED; k++) op_adamw(t, o->param[k], o->grad[k], o->m[k], o->v[k], o->control, o->norm, max_norm, NULL);
    note_ops(t);
    o->plan = plan_create(t, &err);
    assert_non_null(o->plan);
}

/* step: 0 and up. poison: put in place of one element of the last gradient, unless it is 0. */
static void optimizer_step(optimizer_trial *o, int step, float poison) {
    error err;
    device *d = o->session->device;
    for (int k = 0; k < TRAINED; k++) {
        float scale = LOSS_SCALE * (step == 1 ? 0x1p-10f : 1);
        size_t count = (size_t)tensor_count(o->grad[k]);
        float *values = case_values(210 + 10 * (uint64_t)step + (uint64_t)k, count, scale, 0);
        if (poison != 0 && k == TRAINED - 1) values[count / 2] = poison;
        assert_true(tensor_write(d, o->grad[k], values, &err));
        free(values);
    }
    double t = step + 1;
    const float control[8] = {0.01f, 0.9f, 0.99f, 1e-8f, 0.02f, (float)(1 - pow(0.9, t)), (float)(1 - pow(0.99, t)), 1 / LOSS_SCALE};
    assert_true(tensor_write(d, o->control, control, &err));
    assert_true(plan_run(o->plan, &err));
    for (int k = 0; k < TRAINED; k++) { /* every step ends with gradients of zero */
        size_t count = (size_t)tensor_count(o->grad[k]);
        float *values = memory_new(count, sizeof *values);
        assert_true(tensor_read(d, o->grad[k], values, &err));
        for (size_t i = 0; i < count; i++) assert_true(values[i] == 0);
        free(values);
    }
}

static void optimizer_compare(optimizer_trial *o, const tensor *x, const float *less, const char *what, int step, int k) {
    error err;
    session *s = o->session;
    size_t count = (size_t)tensor_count(x), samples;
    const float *expected = k < 0 ? case_file_need(&fixtures, &samples, NULL, "optimizer/%d/%s/%d", o->number, what, step)
                                  : case_file_need(&fixtures, &samples, NULL, "optimizer/%d/%s/%d/%d", o->number, what, step, k);
    size_t stride = (size_t)sample_step(x);
    float *values = memory_new(count, sizeof *values);
    assert_true(tensor_read(s->device, x, values, &err));
    for (size_t i = 0; i < samples; i++) values[i] = values[i * stride] - (less ? less[i * stride] : 0);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < samples; i++) {
        difference += pow((double)values[i] - (double)expected[i], 2);
        norm += pow((double)expected[i], 2);
    }
    double e = sqrt(difference / norm);
    if (e > s->worst_gradient) s->worst_gradient = e;
    if (!(e <= 2e-5)) fail_msg("%s, optimizer %d, %s of %d after step %d: error %g", s->label, o->number, what, k, step, e);
    free(values);
}

/* Copies of parameters and moments, one behind the other. */
static float *optimizer_state(const optimizer_trial *o, size_t *bytes) {
    error err;
    size_t total = 0, at = 0;
    for (int k = 0; k < TRAINED; k++) total += 3 * (size_t)tensor_count(o->param[k]);
    float *out = memory_new(total, sizeof *out);
    for (int k = 0; k < TRAINED; k++) {
        const tensor *all[] = {o->param[k], o->m[k], o->v[k]};
        for (int i = 0; i < 3; i++) {
            assert_true(tensor_read(o->session->device, all[i], out + at, &err));
            at += (size_t)tensor_count(all[i]);
        }
    }
    *bytes = total * sizeof *out;
    return out;
}

static void check_poison(optimizer_trial *o, float poison) {
    error err;
    size_t bytes;
    float *before = optimizer_state(o, &bytes), norm = 0;
    optimizer_step(o, STEPS, poison);
    float *after = optimizer_state(o, &bytes);
    assert_memory_equal(before, after, bytes);
    assert_true(tensor_read(o->session->device, o->norm, &norm, &err));
    assert_true(!isfinite(norm));
    free(before);
    free(after);
}

/* max_norm: 0 for no clipping. */
static void check_optimizer(session *s, float max_norm) {
    optimizer_trial o = {.session = s, .number = max_norm > 0};
    tensor_pool *pool = tensor_pool_create(s->device);
    optimizer_open(&o, pool, max_norm);
    s->worst_gradient = 0;
    for (int step = 0; step < STEPS; step++) {
        optimizer_step(&o, step, 0);
        optimizer_compare(&o, o.norm, NULL, "norm", step, -1);
        for (int k = 0; k < TRAINED; k++) {
            optimizer_compare(&o, o.param[k], o.start[k], "moved", step, k);
            optimizer_compare(&o, o.m[k], NULL, "m", step, k);
            optimizer_compare(&o, o.v[k], NULL, "v", step, k);
        }
    }
    print_message("%-8s AdamW, clipping at %g: %.1e\n", s->label, (double)max_norm, s->worst_gradient);
    check_poison(&o, INFINITY);
    check_poison(&o, NAN);
    plan_free(o.plan);
    tensor_pool_free(pool);
    for (int k = 0; k < TRAINED; k++) free(o.start[k]);
}

/* ---- gates ---- */

/* As in make_op_fixtures.py: periods, ranks, inner; and the ranks that each step trains. */
static const int64_t GATED[TRAINED][3] = {{1, 6, 5}, {7, 6, 1}, {3, 6, 10}};
static const int WINDOWS[][2] = {{0, 2}, {2, 4}, {0, 2}, {0, 0}, {4, 6}, {2, 4}};
enum { WINDOW_COUNT = sizeof WINDOWS / sizeof *WINDOWS };

static void gated_open(optimizer_trial *o, tensor_pool *pool, tensor **gates) {
    error err;
    tape *t = tape_create(o->session->device);
    o->control = tape_input(t, "control", DTYPE_F32, 1, (int64_t[]){8});
    /* The second of two gates counts. */
    *gates = tape_input(t, "gates", DTYPE_F32, 2, (int64_t[]){2, 4});
    update_gate all[TRAINED];
    for (int k = 0; k < TRAINED; k++) {
        tensor **tensors[] = {&o->param[k], &o->grad[k], &o->m[k], &o->v[k]};
        for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) *tensors[i] = tensor_pool_parameter(pool, "gated", 3, GATED[k], &err);
        o->start[k] = case_values(230 + (uint64_t)k, (size_t)tensor_count(o->param[k]), 1, 0);
        assert_true(tensor_write(o->session->device, o->param[k], o->start[k], &err));
        all[k] = (update_gate){*gates, 1, GATED[k][2], GATED[k][1]};
        op_gate_gradient(t, o->grad[k], &all[k]);
    }
    o->norm = op_grad_norm(t, o->grad, TRAINED, o->control);
    for (int k = 0; k < TRAINED; k++) op_adamw(t, o->param[k], o->grad[k], o->m[k], o->v[k], o->control, o->norm, 0.5f, &all[k]);
    note_ops(t);
    o->plan = plan_create(t, &err);
    assert_non_null(o->plan);
}

static void gated_step(optimizer_trial *o, tensor *gates, int step) {
    error err;
    device *d = o->session->device;
    for (int k = 0; k < TRAINED; k++) {
        float *values = case_values(240 + 10 * (uint64_t)step + (uint64_t)k, (size_t)tensor_count(o->grad[k]), 1, 0);
        assert_true(tensor_write(d, o->grad[k], values, &err));
        free(values);
    }
    int t = 0;
    for (int before = 0; before <= step; before++) t += WINDOWS[before][0] == WINDOWS[step][0] && WINDOWS[before][1];
    const float control[8] = {0.01f, 0.9f, 0.99f, 1e-8f, 0.02f, NAN, NAN, 1};
    const float values[8] = {
        0, 6, NAN, NAN, (float)WINDOWS[step][0], (float)WINDOWS[step][1], (float)(1 - pow(0.9, t)), (float)(1 - pow(0.99, t))};
    assert_true(tensor_write(d, o->control, control, &err) && tensor_write(d, gates, values, &err));
    assert_true(plan_run(o->plan, &err));
}

static void check_gated_optimizer(session *s) {
    optimizer_trial o = {.session = s};
    tensor_pool *pool = tensor_pool_create(s->device);
    tensor *gates;
    gated_open(&o, pool, &gates);
    for (int step = 0; step < WINDOW_COUNT; step++) gated_step(&o, gates, step);
    s->worst_gradient = 0;
    for (int k = 0; k < TRAINED; k++) {
        error err;
        size_t count = (size_t)tensor_count(o.param[k]), samples;
        const float *expected = case_file_need(&fixtures, &samples, NULL, "gated_optimizer/0/moved/%d", k);
        assert_int_equal(samples, count);
        float *values = memory_new(count, sizeof *values);
        assert_true(tensor_read(s->device, o.param[k], values, &err));
        for (size_t i = 0; i < count; i++) values[i] -= o.start[k][i];
        double e = relative_error(values, expected, count);
        if (!(e <= 2e-5)) fail_msg("%s, gated optimizer, parameter %d: error %g", s->label, k, e);
        s->worst_gradient = e > s->worst_gradient ? e : s->worst_gradient;
        free(values);
        free(o.start[k]);
    }
    print_message("%-8s AdamW with gates: %.1e\n", s->label, s->worst_gradient);
    plan_free(o.plan);
    tensor_pool_free(pool);
}
