/* The element-wise work of quantization-aware training, each in one pass.
 *
 * Values are float32; a block has `rows` rows of `cols` consecutive values,
 * row r has the clip value clip[r / group_size]. Results equal those of
 * gdrq_mm.functional bit for bit; sums are added up in another order.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define SPAN 8192 /* values at a time: two spans fit into the first cache */
#define SERIAL 32768 /* values that are not worth a second thread */
#define PIECE 64 /* values between two requests for memory ahead */
#define AHEAD 1024 /* values; hardware asks no further than to a page's end */
#define LINE 16 /* values that memory gives at a time */

typedef struct {
    float low, high, scale, divisor;
} grid_t;

static grid_t grid_of(float clip, int64_t levels, int is_signed,
                      float max_scale) {
    float scale = clip / levels;
    if (scale > max_scale) scale = max_scale;
    /* A scale that lost its precision divides by 1: the codes are 0. */
    grid_t grid = {is_signed ? -clip : 0.f, clip, scale,
                   scale >= FLT_MIN ? scale : 1.f};
    return grid;
}

/* Like torch.clamp, lets NaN pass. */
static inline float clamped(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

/* Weights are read from beyond the caches: ask for a later piece. */
static inline void fetch_ahead(const float *piece) {
    for (int i = 0; i < PIECE; i += LINE)
        __builtin_prefetch(piece + AHEAD + i);
}

static void quantize_span(const float *restrict x, float *restrict out,
                          int64_t n, grid_t grid) {
    for (int64_t at = 0; at < n; at += PIECE) {
        int64_t end = n - at < PIECE ? n : at + PIECE;
        fetch_ahead(x + at);
#pragma omp simd
        for (int64_t i = at; i < end; i++)
            out[i] = rintf(clamped(x[i], grid.low, grid.high) / grid.divisor)
                     * grid.scale;
    }
}

/* Of a span: sum |x|, and how many values are not zero. */
typedef struct {
    float sum, nonzero;
} seen_t;

static seen_t quantize_seen_span(const float *restrict x, float *restrict out,
                                 int64_t n, grid_t grid) {
    float sum = 0, nonzero = 0;
#pragma omp simd reduction(+ : sum, nonzero)
    for (int64_t i = 0; i < n; i++) {
        float value = x[i];
        sum += fabsf(value);
        nonzero += value != 0.f ? 1.f : 0.f;
        out[i] = rintf(clamped(value, grid.low, grid.high) / grid.divisor)
                 * grid.scale;
    }
    seen_t seen = {sum, nonzero};
    return seen;
}

/* The same behind a ReLU; x and out may be the same. */
static seen_t quantize_relu_span(const float *x, float *out, uint8_t *inside,
                                 int64_t n, grid_t grid) {
    float sum = 0, nonzero = 0;
#pragma omp simd reduction(+ : sum, nonzero)
    for (int64_t i = 0; i < n; i++) {
        float value = x[i];
        value = value < 0.f ? 0.f : value;
        sum += value;
        nonzero += value != 0.f ? 1.f : 0.f;
        inside[i] = x[i] > 0.f && x[i] <= grid.high;
        out[i] = rintf(clamped(value, 0.f, grid.high) / grid.divisor)
                 * grid.scale;
    }
    seen_t seen = {sum, nonzero};
    return seen;
}

/* Rows are cut into spans, numbered through; where the number `index` is. */
typedef struct {
    int64_t row, at, n; /* at: offset of its first value in the block */
} span_t;

static int64_t spans_per_row(int64_t cols) { return (cols + SPAN - 1) / SPAN; }

static span_t span_of(int64_t index, int64_t cols) {
    int64_t row = index / spans_per_row(cols);
    int64_t at = index % spans_per_row(cols) * SPAN;
    span_t span = {row, row * cols + at, cols - at < SPAN ? cols - at : SPAN};
    return span;
}

/* seen: sum |x|, number of values, of those that are not zero. The sums of
 * spans are added up in order, so that they do not depend on the number of
 * threads. */
static void add_up(float *seen, const seen_t *parts, int64_t spans,
                   int64_t values) {
    double total = 0, nonzero = 0;
    for (int64_t index = 0; index < spans; index++) {
        total += parts[index].sum;
        nonzero += parts[index].nonzero;
    }
    seen[0] += (float)total;
    seen[1] += (float)values;
    seen[2] += (float)nonzero;
}

void quantize(const float *x, float *out, const float *clip, int64_t rows,
              int64_t cols, int64_t group_size, int64_t levels,
              float max_scale, int is_signed, float *seen) {
    int64_t spans = rows * spans_per_row(cols);
    seen_t *parts = seen ? malloc(spans * sizeof(seen_t)) : NULL;
#pragma omp parallel for schedule(static) if (rows * cols > SERIAL)
    for (int64_t index = 0; index < spans; index++) {
        span_t span = span_of(index, cols);
        grid_t grid = grid_of(clip[span.row / group_size], levels, is_signed,
                              max_scale);
        const float *from = x + span.at;
        float *to = out + span.at;
        if (parts)
            parts[index] = quantize_seen_span(from, to, span.n, grid);
        else
            quantize_span(from, to, span.n, grid);
    }
    if (parts) add_up(seen, parts, spans, rows * cols);
    free(parts);
}

/* An even number of levels: the odd multiples of half a step. */
void quantize_even(const float *restrict x, float *restrict out,
                   const float *clip, int64_t rows, int64_t cols,
                   int64_t group_size, int64_t half) {
    int64_t spans = rows * spans_per_row(cols);
#pragma omp parallel for schedule(static) if (rows * cols > SERIAL)
    for (int64_t index = 0; index < spans; index++) {
        span_t span = span_of(index, cols);
        float high = clip[span.row / group_size], step = high / half;
        float divisor = step >= FLT_MIN ? step : 1.f, scale = step / 2;
        float last = half - 1;
        for (int64_t at = span.at; at < span.at + span.n; at += PIECE) {
            int64_t end = span.at + span.n;
            if (end - at > PIECE) end = at + PIECE;
            fetch_ahead(x + at);
#pragma omp simd
            for (int64_t i = at; i < end; i++) {
                float code = floorf(clamped(x[i], -high, high) / divisor);
                out[i] = (2 * (code > last ? last : code) + 1) * scale;
            }
        }
    }
}

void quantize_relu(const float *x, float *out, uint8_t *inside,
                   const float *clip, int64_t cols, int64_t levels,
                   float max_scale, float *seen) {
    grid_t grid = grid_of(*clip, levels, 0, max_scale);
    int64_t spans = spans_per_row(cols);
    seen_t *parts = seen ? malloc(spans * sizeof(seen_t)) : NULL;
#pragma omp parallel for schedule(static) if (cols > SERIAL)
    for (int64_t index = 0; index < spans; index++) {
        span_t span = span_of(index, cols);
        seen_t part = quantize_relu_span(x + span.at, out + span.at,
                                         inside + span.at, span.n, grid);
        if (parts) parts[index] = part;
    }
    if (parts) add_up(seen, parts, spans, cols);
    free(parts);
}

/* Straight-through: grad stays where x is inside the range. */
void mask_outside(const float *restrict x, float *restrict grad,
                  const float *clip, int64_t rows, int64_t cols,
                  int64_t group_size, int is_signed) {
    int64_t spans = rows * spans_per_row(cols);
#pragma omp parallel for schedule(static) if (rows * cols > SERIAL)
    for (int64_t index = 0; index < spans; index++) {
        span_t span = span_of(index, cols);
        float high = clip[span.row / group_size], low = is_signed ? -high : 0;
#pragma omp simd
        for (int64_t i = span.at; i < span.at + span.n; i++)
            grad[i] = x[i] >= low && x[i] <= high ? grad[i] : 0.f;
    }
}

/* Unsigned codes with a zero point: `clip` is the width of their range. */
static grid_t shifted_grid(float clip, float zero, int64_t levels) {
    float step = clip / levels;
    grid_t grid = {-zero, levels - zero, step < FLT_MIN ? FLT_MIN : step, 1};
    return grid;
}

void quantize_shifted(const float *restrict x, float *restrict out,
                      const float *clip, const float *zero, int64_t n,
                      int64_t levels) {
    grid_t grid = shifted_grid(*clip, *zero, levels);
#pragma omp parallel for simd schedule(static) if (parallel : n > SERIAL)
    for (int64_t i = 0; i < n; i++)
        out[i] = clamped(rintf(x[i] / grid.scale), grid.low, grid.high)
                 * grid.scale;
}

void mask_outside_shifted(const float *restrict x, float *restrict grad,
                          const float *clip, const float *zero, int64_t n,
                          int64_t levels) {
    grid_t grid = shifted_grid(*clip, *zero, levels);
#pragma omp parallel for simd schedule(static) if (parallel : n > SERIAL)
    for (int64_t i = 0; i < n; i++) {
        float ratio = x[i] / grid.scale;
        grad[i] = ratio >= grid.low && ratio <= grid.high ? grad[i] : 0.f;
    }
}

/* Scale-Clip (Eq. 7 to 9): clip = k * mean|x| of a group, clip x to it. */
void project(float *x, float *clip, int64_t rows, int64_t cols,
             int64_t group_size, float k) {
    int64_t groups = (rows + group_size - 1) / group_size;
#pragma omp parallel for schedule(static) if (rows * cols > SERIAL)
    for (int64_t group = 0; group < groups; group++) {
        int64_t first = group * group_size, last = first + group_size;
        int64_t n = ((last < rows ? last : rows) - first) * cols;
        float *values = x + first * cols;
        double total = 0;
        for (int64_t at = 0; at < n; at += SPAN) {
            int64_t end = n - at < SPAN ? n : at + SPAN;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = at; i < end; i++) sum += fabsf(values[i]);
            total += sum;
        }
        float bound = (float)(k * (float)(total / n));
        if (bound > FLT_MAX) bound = FLT_MAX;
        clip[group] = bound;
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            values[i] = clamped(values[i], -bound, bound);
    }
}
