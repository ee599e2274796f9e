// The attention half of a decoder layer on one instruction set (the argument) against float64.
#include <algorithm>
#include <numeric>

#include "reference_layer.h"

using namespace testing;

namespace {

std::vector<double> rotated(const double* x, const float* turns, size_t count) {
  std::vector<double> out;
  for (size_t i = 0; i < count; i += 2) {
    const double c = static_cast<double>(turns[i]), s = static_cast<double>(turns[i + 1]);
    out.push_back(x[i] * c - x[i + 1] * s);
    out.push_back(x[i] * s + x[i + 1] * c);
  }
  return out;
}

struct MlaShape {
  size_t hidden, heads, rank, nope, rope, v, query_rank; // query_rank 0: not compressed
  uint32_t type;
  float scale; // of the scores, so that several entries count
};

// Sequences of the given lengths, each token attending to its own; slots of every other sequence
// lie apart.
struct MlaProblem {
  MlaShape shape;
  Weight query_a, query_b, kv_a, key_up, value_up, output;
  std::vector<float> input_norm, query_norm, latent_norm, x, rotations, cache;
  std::vector<std::vector<int64_t>> slots;
  std::vector<ktops_context> contexts;

  MlaProblem(ktops_pool* pool, const MlaShape& s, const std::vector<size_t>& lengths) : shape(s) {
    std::mt19937 random(5);
    const size_t head = s.nope + s.rope, low = s.query_rank == 0 ? s.hidden : s.query_rank;
    const auto heads = static_cast<uint32_t>(s.heads);
    if (s.query_rank != 0)
      query_a = Weight(pool, random, s.type, s.query_rank, s.hidden);
    query_b = Weight(pool, random, s.type, s.heads * head, low);
    kv_a = Weight(pool, random, s.type, s.rank + s.rope, s.hidden);
    key_up = Weight(pool, random, KTOPS_TYPE_Q8_0, s.rank, s.nope, heads);
    value_up = Weight(pool, random, KTOPS_TYPE_F32, s.v, s.rank, heads);
    output = Weight(pool, random, s.type, s.hidden, s.heads * s.v);
    input_norm = random_floats(random, s.hidden);
    query_norm = random_floats(random, s.query_rank);
    latent_norm = random_floats(random, s.rank);
    x = random_floats(random, lengths.size() * s.hidden);
    rotations = random_floats(random, lengths.size() * s.rope);
    const size_t num_slots = std::accumulate(lengths.begin(), lengths.end(), size_t{0});
    cache = random_floats(random, num_slots * (s.rank + s.rope), 0.3f);
    slots.reserve(lengths.size());
    size_t first = 0;
    for (const size_t length : lengths) {
      std::vector<int64_t>& own = slots.emplace_back(length);
      std::iota(own.begin(), own.end(), static_cast<int64_t>(first));
      if (slots.size() % 2 == 0)
        std::shuffle(own.begin(), own.end(), random);
      contexts.push_back({slots.size() % 2 == 0 ? own.data() : nullptr, first, length});
      first += length;
    }
  }

  ktops_mla_decode_args args(float* y, float* own_cache) const {
    return {query_a.matrix,
            query_b.matrix,
            kv_a.matrix,
            key_up.matrix,
            value_up.matrix,
            output.matrix,
            input_norm.data(),
            shape.query_rank == 0 ? nullptr : query_norm.data(),
            latent_norm.data(),
            kEps,
            shape.scale,
            y,
            rotations.data(),
            own_cache,
            cache.size() / (shape.rank + shape.rope),
            contexts.data(),
            contexts.size()};
  }

  // x and the cache after the call.
  void expected(std::vector<double>& y, std::vector<double>& after) const {
    const size_t width = shape.rank + shape.rope;
    after.assign(cache.begin(), cache.end());
    for (size_t t = 0; t < slots.size(); ++t) {
      const auto normed = norm(x.data() + t * shape.hidden, input_norm);
      const float* turns = rotations.data() + t * shape.rope;
      const auto kv = kv_a.times(normed);
      const auto latent = norm(kv, latent_norm);
      const auto key = rotated(kv.data() + shape.rank, turns, shape.rope);
      double* entry = after.data() + static_cast<size_t>(slots[t].back()) * width;
      std::copy(key.begin(), key.end(), std::copy_n(latent.begin(), shape.rank, entry));
      const auto query = shape.query_rank == 0
                             ? query_b.times(normed)
                             : query_b.times(norm(query_a.times(normed), query_norm));
      std::vector<double> heads;
      for (size_t h = 0; h < shape.heads; ++h) {
        const auto value = attended(t, h, query.data() + h * (shape.nope + shape.rope), after);
        heads.insert(heads.end(), value.begin(), value.end());
      }
      const auto out = output.times(heads);
      for (size_t i = 0; i < shape.hidden; ++i)
        y.push_back(static_cast<double>(x[t * shape.hidden + i]) + out[i]);
    }
  }

 private:
  std::vector<double> attended(size_t t, size_t h, const double* query,
                               const std::vector<double>& entries) const {
    const size_t width = shape.rank + shape.rope;
    auto wanted = key_up.times({query, query + shape.nope}, h);
    const auto turned = rotated(query + shape.nope, rotations.data() + t * shape.rope, shape.rope);
    wanted.insert(wanted.end(), turned.begin(), turned.end());
    std::vector<double> scores, latent(shape.rank);
    for (const int64_t slot : slots[t])
      scores.push_back(static_cast<double>(shape.scale) *
                       std::inner_product(wanted.begin(), wanted.end(),
                                          entries.data() + static_cast<size_t>(slot) * width, 0.0));
    const double peak = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (size_t i = 0; i < scores.size(); ++i) {
      const double* entry = entries.data() + static_cast<size_t>(slots[t][i]) * width;
      const double weight = std::exp(scores[i] - peak);
      total += weight;
      for (size_t r = 0; r < shape.rank; ++r)
        latent[r] += weight * entry[r];
    }
    for (double& value : latent)
      value /= total;
    return value_up.times(latent, h);
  }
};

void check_mla(ktops_pool* pool, const MlaShape& shape, const std::vector<size_t>& lengths) {
  const MlaProblem problem(pool, shape, lengths);
  Output y(problem.x.size()), cache(problem.cache.size());
  std::copy(problem.x.begin(), problem.x.end(), y.data());
  std::copy(problem.cache.begin(), problem.cache.end(), cache.data());
  const ktops_mla_decode_args args = problem.args(y.data(), cache.data());
  const int32_t status = ktops_mla_decode(pool, &args);
  CHECK(status == KTOPS_OK, "%s", ktops_status_string(status));
  CHECK(y.guards_hold() && cache.guards_hold(), "wrote beside the output");
  std::vector<double> expected, entries;
  problem.expected(expected, entries);
  const double error = relative_error(y.data(), expected.data(), expected.size());
  const double entry_error = relative_error(cache.data(), entries.data(), entries.size());
  CHECK(error < kAllowedError && entry_error < kAllowedError,
        "%s, %zu heads, rank %zu, %zu sequences, the first of %zu: %.2e, cache %.2e",
        type_name(shape.type), shape.heads, shape.rank, lengths.size(), lengths[0], error,
        entry_error);

  // Nor threads nor neighbours change a bit.
  const TestPool alone(1);
  for (size_t t = 0; t < lengths.size(); ++t) {
    std::vector<float> own_y(problem.x.begin() + static_cast<ptrdiff_t>(t * shape.hidden),
                             problem.x.begin() + static_cast<ptrdiff_t>((t + 1) * shape.hidden));
    std::vector<float> own_cache = problem.cache;
    ktops_mla_decode_args own = problem.args(own_y.data(), own_cache.data());
    own.contexts += t;
    own.rotations += t * shape.rope;
    own.num_tokens = 1;
    CHECK(ktops_mla_decode(alone, &own) == KTOPS_OK, "alone");
    CHECK(memcmp(own_y.data(), y.data() + t * shape.hidden, shape.hidden * sizeof(float)) == 0,
          "token %zu of %zu differs alone", t, lengths.size());
  }
}

// Rows of the large projections shared out over nodes, with rank 64 not those of kv_a: the same
// bits.
void check_nodes(size_t rank) {
  const MlaShape shape{1041, 16, rank, 32, 16, 32, 704, KTOPS_TYPE_F32, 0.005f};
  const TestPool pool(4), shared(4);
  const int32_t nodes[] = {3, 0, 3, 0};
  shared->lock();
  shared->set_nodes(nodes);
  shared->unlock();
  const MlaProblem problem(pool, shape, {9, 40});
  const auto num_nodes = [&](const Weight& weight) {
    const ktops_matrix& matrix = weight.matrix;
    return ktops::nodes_of_rows(matrix.rows, matrix.cols * sizeof(float), shared->num_nodes());
  };
  for (const Weight* weight : {&problem.query_a, &problem.query_b, &problem.output})
    CHECK(num_nodes(*weight) == 2, "not shared out");
  CHECK(num_nodes(problem.kv_a) == (rank == 64 ? 1 : 2), "kv_a");
  const auto result = [&](ktops_pool* by) {
    std::vector<float> y = problem.x, cache = problem.cache;
    const ktops_mla_decode_args args = problem.args(y.data(), cache.data());
    CHECK(ktops_mla_decode(by, &args) == KTOPS_OK, "%u nodes", by->num_nodes());
    y.insert(y.end(), cache.begin(), cache.end());
    return y;
  };
  const std::vector<float> plain = result(pool);
  CHECK(memcmp(plain.data(), result(shared).data(), plain.size() * sizeof(float)) == 0,
        "rank %zu: they differ", rank);
}

void check_refusals(ktops_pool* pool) {
  const MlaProblem problem(pool, {64, 2, 32, 32, 16, 32, 0, KTOPS_TYPE_Q8_0, 0.02f}, {3});
  std::vector<float> y = problem.x, cache = problem.cache;
  const auto status = [&](const auto& spoil) {
    ktops_mla_decode_args args = problem.args(y.data(), cache.data());
    spoil(args);
    return ktops_mla_decode(pool, &args);
  };
  const ktops_context beyond{nullptr, 1, 3}, empty{nullptr, 0, 0};
  const int64_t negative = -1;
  const ktops_context before{&negative, 0, 1};
  for (const ktops_context* context : {&beyond, &empty, &before})
    CHECK(status([&](auto& args) { args.contexts = context; }) == KTOPS_ERROR_BAD_SHAPE, "context");
  CHECK(status([](auto& args) { args.kv_a.rows = 31; }) == KTOPS_ERROR_BAD_SHAPE, "kv_a");
  CHECK(status([](auto& args) { args.output.cols = 32; }) == KTOPS_ERROR_BAD_SHAPE, "output");
  CHECK(status([](auto& args) { args.x = nullptr; }) == KTOPS_ERROR_NULL_POINTER, "x");
  CHECK(status([](auto& args) { args.score_scale = 0; }) == KTOPS_ERROR_BAD_SHAPE, "scale");
}

} // namespace

int main(int argc, char** argv) {
  if (argc != 2 || !choose_isa(argv[1]))
    return kSkipped;
  const TestPool pool(3);
  check_mla(pool, {256, 4, 64, 32, 16, 32, 96, KTOPS_TYPE_Q8_0, 0.02f}, {1, 40, 17});
  check_mla(pool, {256, 18, 72, 32, 6, 24, 0, KTOPS_TYPE_F16, 0.005f}, {70, 33, 1, 2, 129});
  check_mla(pool, {512, 16, 512, 128, 64, 128, 0, KTOPS_TYPE_Q4_K, 0.0005f}, {1100, 60});
  for (const size_t rank : {64, 512})
    check_nodes(rank);
  check_refusals(pool);
  return result();
}
