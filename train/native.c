/* What a step of sampling does with a few rows on one core, bound by memory: a product with a weight, attention over a
   cache, and RMSNorm. Weights and caches are float32 or, with -DBFLOAT16, bfloat16; all else is float32. Lengths that
   are summed over are multiples of LANES. */
#include <math.h>

#define LANES 16
#define STREAMS 2  /* a core reads faster from two places than from one */
#define AHEAD 2048 /* bytes */
#define MOST 4     /* rows at once */
#define WIDEST 128 /* of a head */

typedef float lanes __attribute__((vector_size(64), aligned(4)));
typedef float eight __attribute__((vector_size(32)));
typedef float four __attribute__((vector_size(16)));

#ifdef BFLOAT16
typedef unsigned short weight;
typedef unsigned short halves __attribute__((vector_size(32), aligned(2)));
typedef unsigned int words __attribute__((vector_size(64)));
static inline lanes load(const weight *w) { return (lanes)(__builtin_convertvector(*(const halves *)w, words) << 16); }
#else
typedef float weight;
static inline lanes load(const weight *w) { return *(const lanes *)w; }
#endif

static inline float total(lanes sums) { /* by halves: one lane after the other would take as long as a third of a row */
  const union { lanes all; eight halves[2]; } x = {sums};
  const union { eight all; four halves[2]; } y = {x.halves[0] + x.halves[1]};
  const four z = y.halves[0] + y.halves[1];
  return (z[0] + z[2]) + (z[1] + z[3]);
}

/* y[r][o] = sum over i of w[o][i] * x[r][i]: weights are read from memory once for all rows, in two streams, ahead of
   their use and past the caches of what else computes.

   Outputs `from` to `from + streams * each`; with `streams` and `rows` known, the sums stay in registers. */
static inline __attribute__((always_inline)) void few(const weight *w, const float *x, float *y, long out, long in,
                                                      long from, long each, const int streams, const int rows) {
  for (long o = from; o < from + each; o++) {
    lanes sums[STREAMS][MOST] = {0};
    for (long i = 0; i < in; i += LANES)
      for (int s = 0; s < streams; s++) {
        const weight *here = w + (o + s * each) * in + i;
        __builtin_prefetch((const char *)here + AHEAD, 0, 0);
        const lanes weights = load(here);
        for (int r = 0; r < rows; r++) sums[s][r] += weights * *(const lanes *)(x + r * in + i);
      }
    for (int s = 0; s < streams; s++)
      for (int r = 0; r < rows; r++) y[r * out + o + s * each] = total(sums[s][r]);
  }
}

#define IN_GROUPS_OF(n)                                                     \
  for (; rows >= n; rows -= n, x += n * in, y += n * out) {                 \
    few(w, x, y, out, in, 0, out / STREAMS, STREAMS, n);                    \
    few(w, x, y, out, in, out - out % STREAMS, out % STREAMS, 1, n);        \
  }

void product(const weight *w, const float *x, float *y, long out, long in, long rows) {
  IN_GROUPS_OF(4)
  IN_GROUPS_OF(2)
  IN_GROUPS_OF(1)
}

static inline __attribute__((always_inline)) void one_head(const float *q, const weight *keys, const weight *values,
                                                           float *out, float *scores, long length, const long width) {
  float most = -INFINITY, sum = 0;
  for (long t = 0; t < length; t++, keys += width) {
    lanes sums = {0};
    for (long i = 0; i < width; i += LANES) {
      __builtin_prefetch((const char *)(keys + i) + AHEAD, 0, 0);
      sums += load(keys + i) * *(const lanes *)(q + i);
    }
    scores[t] = total(sums) / sqrtf(width);
    most = fmaxf(most, scores[t]);
  }
  lanes sums[WIDEST / LANES] = {0};
  for (long t = 0; t < length; t++, values += width) {
    const float share = expf(scores[t] - most);
    sum += share;
    for (long i = 0; i < width; i += LANES) {
      __builtin_prefetch((const char *)(values + i) + AHEAD, 0, 0);
      sums[i / LANES] += load(values + i) * share;
    }
  }
  for (long i = 0; i < width; i += LANES) *(lanes *)(out + i) = sums[i / LANES] / sum;
}

/* out[h] = softmax(q[h] . keys[h] / sqrt(width)) . values[h] over `length` positions, for each head of each row: q, out
   [heads][width], keys, values [heads][stride]; scores [length] is scratch. */
void attend(const float *q, const weight *keys, const weight *values, float *out, float *scores, long heads, long length,
            long width, long stride) {
  for (long h = 0; h < heads; h++, q += width, out += width, keys += stride, values += stride)
    if (width == 64) one_head(q, keys, values, out, scores, length, 64); /* of most sizes: sums stay in registers */
    else one_head(q, keys, values, out, scores, length, width);
}

/* y[r] = x[r] / sqrt(mean of x[r]^2 + eps) * w */
void rms_norm(const float *x, const weight *w, float *y, long rows, long width, float eps) {
  for (; rows > 0; rows--, x += width, y += width) {
    lanes sums = {0};
    for (long i = 0; i < width; i += LANES) sums += *(const lanes *)(x + i) * *(const lanes *)(x + i);
    const float scale = 1 / sqrtf(total(sums) / width + eps);
    for (long i = 0; i < width; i += LANES) *(lanes *)(y + i) = *(const lanes *)(x + i) * scale * load(w + i);
  }
}
