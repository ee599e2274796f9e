// Multi-head latent attention of single new tokens, as the steps of one job: the threads are woken
// once for all of it. Nothing is expanded: the up-projection of keys is applied to the queries,
// that of values to the weighted sum of latents.
#include "attention.h"

#include <algorithm>

#include "context.h"
#include "projection.h"

namespace ktops {
namespace {

constexpr size_t kMostSteps = 9;

struct Sizes {
  size_t num_tokens, hidden, query_rank, heads, nope, rope, rank, v;

  explicit Sizes(const ktops_mla_decode_args& args)
      : num_tokens(args.num_tokens), hidden(args.kv_a.cols), query_rank(args.query_b.cols),
        heads(args.key_up.num_experts), nope(args.key_up.cols),
        rope(args.kv_a.rows - args.key_up.rows), rank(args.key_up.rows), v(args.value_up.rows) {}
  size_t query() const { return heads * (nope + rope); }
  size_t width() const { return rank + rope; }
};

// Turns interleaved pairs by [cosine, sine].
void rotate(const float* x, const float* rotations, size_t num_values, float* out) {
  for (size_t i = 0; i < num_values; i += 2) {
    out[i] = x[i] * rotations[i] - x[i + 1] * rotations[i + 1];
    out[i + 1] = x[i] * rotations[i + 1] + x[i + 1] * rotations[i];
  }
}

class MlaDecode {
 public:
  MlaDecode(Carver& carver, const ktops_pool& pool, const ktops_mla_decode_args& args)
      : args_(args), sizes_(args), kernels_(pool.kernels()),
        context_(carver, {sizes_.heads, sizes_.rank, sizes_.width(), args.score_scale},
                 args.contexts, args.num_tokens) {
    const size_t tokens = args.num_tokens;
    const ktops_matrix& query_in = is_compressed() ? args.query_a : args.query_b;
    input_ = Activations(carver, query_in.type, sizes_.hidden, tokens);
    kv_input_ = input_.serves(args.kv_a.type)
                    ? input_
                    : Activations(carver, args.kv_a.type, sizes_.hidden, tokens);
    query_input_ = is_compressed()
                       ? Activations(carver, args.query_b.type, sizes_.query_rank, tokens)
                       : input_;
    key_input_ = Activations(carver, args.key_up.type, sizes_.nope, sizes_.heads * tokens);
    value_input_ = Activations(carver, args.value_up.type, sizes_.rank, sizes_.heads * tokens);
    output_input_ = Activations(carver, args.output.type, sizes_.heads * sizes_.v, tokens);
    normed_ = carver.take<float>(tokens * sizes_.hidden);
    low_query_ = carver.take<float>(is_compressed() ? 2 * tokens * sizes_.query_rank : 0);
    query_ = carver.take<float>(tokens * sizes_.query());
    kv_ = carver.take<float>(tokens * sizes_.width());
    latent_query_ = carver.take<float>(tokens * sizes_.heads * context_.query_floats());
    latent_ = carver.take<float>(tokens * sizes_.heads * sizes_.rank);
    attended_ = carver.take<float>(tokens * sizes_.heads * sizes_.v);
    y_ = carver.take<float>(tokens * sizes_.hidden);
    if (is_compressed())
      query_a_ = Projection(args.query_a, tokens, pool);
    query_b_ = Projection(args.query_b, tokens, pool);
    kv_a_ = Projection(args.kv_a, tokens, pool);
    output_ = Projection(args.output, tokens, pool);
  }

  void run(ktops_pool& pool);

 private:
  bool is_small() const;
  bool is_compressed() const { return args_.query_a.data != nullptr; }
  const Projection& first_query() const { return is_compressed() ? query_a_ : query_b_; }

  void take_input(size_t token) const;
  void project_input(const ProjectionPair::Job& job) const;
  void take_low_query(size_t token) const;
  void enter_or_absorb(size_t index) const;
  void enter_cache(size_t token) const;
  void absorb_key(size_t head) const;
  void apply_value(size_t head) const;
  void add_output(size_t index) const;

  const ktops_mla_decode_args& args_;
  const Sizes sizes_;
  const KernelTable& kernels_;
  ContextAttention context_;
  Activations input_, kv_input_, query_input_, key_input_, value_input_, output_input_;
  Projection query_a_, query_b_, kv_a_, output_;
  float* normed_;       // [tokens, hidden]
  float* low_query_;    // [2, tokens, query rank]: before the norm and after
  float* query_;        // [tokens, heads, nope + rope]
  float* kv_;           // [tokens, rank + rope]
  float* latent_query_; // [tokens, heads, query_floats]: what is multiplied with the cache
  float* latent_;       // [heads, tokens, rank]
  float* attended_;     // [tokens, heads, v]
  float* y_;            // [tokens, hidden]
};

void MlaDecode::take_input(size_t token) const {
  float* normed = normed_ + token * sizes_.hidden;
  kernels_.rms_norm(args_.x + token * sizes_.hidden, args_.input_norm, args_.norm_eps, normed,
                    sizes_.hidden);
  input_.store(kernels_, token, 0, normed, sizes_.hidden);
  if (!input_.serves(args_.kv_a.type))
    kv_input_.store(kernels_, token, 0, normed, sizes_.hidden);
}

void MlaDecode::project_input(const ProjectionPair::Job& job) const {
  if (job.is_second)
    kv_a_.run(job.index, kv_input_, kv_);
  else
    first_query().run(job.index, input_, is_compressed() ? low_query_ : query_);
}

void MlaDecode::take_low_query(size_t token) const {
  const size_t size = sizes_.query_rank;
  float* normed = low_query_ + (sizes_.num_tokens + token) * size;
  kernels_.rms_norm(low_query_ + token * size, args_.query_norm, args_.norm_eps, normed, size);
  query_input_.store(kernels_, token, 0, normed, size);
}

void MlaDecode::enter_or_absorb(size_t index) const {
  if (index < sizes_.heads)
    absorb_key(index);
  else
    enter_cache(index - sizes_.heads);
}

void MlaDecode::enter_cache(size_t token) const {
  const ktops_context& context = args_.contexts[token];
  const uint64_t last = context.num_slots - 1;
  const size_t slot = context.slots == nullptr ? context.first_slot + last
                                               : static_cast<size_t>(context.slots[last]);
  float* entry = args_.cache + slot * sizes_.width();
  const float* kv = kv_ + token * sizes_.width();
  kernels_.rms_norm(kv, args_.latent_norm, args_.norm_eps, entry, sizes_.rank);
  rotate(kv + sizes_.rank, args_.rotations + token * sizes_.rope, sizes_.rope, entry + sizes_.rank);
}

// The query of a head for all tokens, in the latent space.
void MlaDecode::absorb_key(size_t head) const {
  const size_t tokens = sizes_.num_tokens, floats = context_.query_floats();
  for (size_t t = 0; t < tokens; ++t) {
    const float* query = query_ + (t * sizes_.heads + head) * (sizes_.nope + sizes_.rope);
    float* target = latent_query_ + (t * sizes_.heads + head) * floats;
    key_input_.store(kernels_, head * tokens + t, 0, query, sizes_.nope);
    rotate(query + sizes_.nope, args_.rotations + t * sizes_.rope, sizes_.rope,
           target + sizes_.rank);
    std::fill(target + sizes_.width(), target + floats, 0.0f);
  }
  const WeightRows rows = weight_rows(args_.key_up, head, kernels_);
  multiply_rows(rows, key_input_,
                {0, rows.rows, rows.row(rows.rows), head * tokens, tokens,
                 latent_query_ + head * floats, sizes_.heads * floats});
}

void MlaDecode::apply_value(size_t head) const {
  const size_t tokens = sizes_.num_tokens;
  for (size_t t = 0; t < tokens; ++t) {
    float* latent = latent_ + (head * tokens + t) * sizes_.rank;
    context_.join(kernels_, t, head, latent);
    value_input_.store(kernels_, head * tokens + t, 0, latent, sizes_.rank);
  }
  const WeightRows rows = weight_rows(args_.value_up, head, kernels_);
  multiply_rows(rows, value_input_,
                {0, rows.rows, rows.row(rows.rows), head * tokens, tokens,
                 attended_ + head * sizes_.v, sizes_.heads * sizes_.v});
}

void MlaDecode::add_output(size_t index) const {
  const RowJobs::Job job = output_.job(index);
  output_.run(index, output_input_, y_);
  for (size_t t = 0; t < sizes_.num_tokens; ++t)
    for (size_t row = job.first_row; row < job.last_row; ++row)
      args_.x[t * sizes_.hidden + row] += y_[t * sizes_.hidden + row];
}

bool MlaDecode::is_small() const {
  double num_bytes = 0, num_weights = 0;
  for (const ktops_matrix* matrix : {&args_.query_a, &args_.query_b, &args_.kv_a, &args_.key_up,
                                     &args_.value_up, &args_.output}) {
    const WeightRows rows = weight_rows(*matrix, 0, kernels_);
    const auto count = static_cast<double>(rows.rows * matrix->num_experts);
    num_bytes += count * static_cast<double>(rows.row_bytes);
    num_weights += count * static_cast<double>(rows.cols);
  }
  double num_slots = 0;
  for (size_t t = 0; t < sizes_.num_tokens; ++t)
    num_slots += static_cast<double>(args_.contexts[t].num_slots);
  const double products = 2 * num_slots * static_cast<double>(sizes_.heads * sizes_.width());
  return is_small_job(num_bytes, products + num_weights * static_cast<double>(sizes_.num_tokens));
}

void MlaDecode::run(ktops_pool& pool) {
  context_.cut();
  const size_t tokens = sizes_.num_tokens;
  const ProjectionPair inputs(first_query(), kv_a_);
  const auto input = [this](size_t t) { take_input(t); };
  const auto project = [&](size_t index) { project_input(inputs.job(index)); };
  const auto low_query = [this](size_t t) { take_low_query(t); };
  const auto query = [this](size_t index) { query_b_.run(index, query_input_, query_); };
  const auto enter = [this](size_t index) { enter_or_absorb(index); };
  const auto attend = [this](size_t index) {
    context_.attend(kernels_, index, latent_query_, args_.cache);
  };
  const auto value = [this](size_t head) { apply_value(head); };
  const auto store = [this](size_t t) {
    const size_t size = sizes_.heads * sizes_.v;
    output_input_.store(kernels_, t, 0, attended_ + t * size, size);
  };
  const auto add = [this](size_t index) { add_output(index); };
  const auto prepare_project = [&](size_t index, size_t n) {
    const ProjectionPair::Job job = inputs.job(index);
    (job.is_second ? kv_a_ : first_query()).prefetch(job.index, n);
  };
  const auto prepare_query = [this](size_t index, size_t n) { query_b_.prefetch(index, n); };
  const auto prepare_key = [this](size_t index, size_t n) {
    if (index < sizes_.heads)
      prefetch_rows(weight_rows(args_.key_up, index, kernels_), 0, sizes_.rank, n);
  };
  const auto prepare_value = [this](size_t head, size_t n) {
    prefetch_rows(weight_rows(args_.value_up, head, kernels_), 0, sizes_.v, n);
  };
  const auto prepare_add = [this](size_t index, size_t n) { output_.prefetch(index, n); };

  ktops_pool::Step steps[kMostSteps];
  size_t count = 0;
  steps[count++] = ktops_pool::step(tokens, input);
  steps[count] = ktops_pool::step(inputs.num_jobs(), project, prepare_project);
  steps[count++].node_ends = inputs.node_ends();
  if (is_compressed()) {
    steps[count++] = ktops_pool::step(tokens, low_query);
    steps[count] = ktops_pool::step(query_b_.num_jobs(), query, prepare_query);
    steps[count++].node_ends = query_b_.node_ends();
  }
  steps[count++] = ktops_pool::step(sizes_.heads + tokens, enter, prepare_key);
  steps[count++] = ktops_pool::step(context_.num_pieces(), attend);
  steps[count++] = ktops_pool::step(sizes_.heads, value, prepare_value);
  steps[count++] = ktops_pool::step(tokens, store);
  steps[count] = ktops_pool::step(output_.num_jobs(), add, prepare_add);
  steps[count++].node_ends = output_.node_ends();
  if (is_small())
    ktops_pool::run_alone(steps, count);
  else
    pool.run_steps(steps, count);
}

} // namespace

int32_t mla_decode(ktops_pool& pool, const ktops_mla_decode_args& args) {
  Carver measure(nullptr);
  MlaDecode(measure, pool, args);
  std::byte* base = pool.scratch().reserve(measure.used());
  if (base == nullptr)
    return KTOPS_ERROR_OUT_OF_MEMORY;
  Carver carver(base);
  MlaDecode(carver, pool, args).run(pool);
  return KTOPS_OK;
}

} // namespace ktops
