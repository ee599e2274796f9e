// Rows shared out over NUMA nodes, on nodes that the tests make up: who owns what, who takes what
// first, and that nothing else changes. Where pages really go on a machine with several nodes:
// show_placement.cpp.
#include <atomic>
#include <set>

#include "../src/place.h"
#include "check.h"
#include "random_blocks.h"

using namespace testing;
using ktops::first_row_of;
using ktops::RowJobs;

namespace {

void check_ranges(size_t rows, uint32_t num_nodes) {
  CHECK(first_row_of(0, rows, num_nodes) == 0, "%zu rows, %u nodes", rows, num_nodes);
  CHECK(first_row_of(num_nodes, rows, num_nodes) == rows, "%zu rows, %u nodes", rows, num_nodes);
  for (uint32_t node = 0; node < num_nodes; ++node) {
    const size_t first = first_row_of(node, rows, num_nodes);
    const size_t end = first_row_of(node + 1, rows, num_nodes);
    CHECK(first % ktops::kNodeRows == 0 && first <= end, "node %u begins at %zu", node, first);
    CHECK(first <= rows * node / num_nodes && rows * node / num_nodes - first < ktops::kNodeRows,
          "node %u of %u begins at %zu of %zu", node, num_nodes, first, rows);
    for (size_t row = first; row < end; ++row)
      CHECK(ktops::node_of_row(row, rows, num_nodes) == node, "row %zu", row);
  }
}

// Every row of every matrix in one job, those of a node together, and one number for the same rows.
void check_row_jobs(size_t rows, size_t job_rows, size_t num_matrices, uint32_t num_nodes) {
  const RowJobs jobs(rows, job_rows, num_matrices, num_nodes);
  std::vector<uint32_t> times(rows * num_matrices);
  std::vector<std::set<size_t>> rows_of_part(jobs.num_parts());
  size_t index = 0;
  for (uint32_t node = 0; node < num_nodes; ++node) {
    CHECK(jobs.start(node) == index, "node %u starts at %zu", node, jobs.start(node));
    for (; index < jobs.end(node); ++index) {
      const RowJobs::Job job = jobs.job(index);
      CHECK(job.first_row < job.last_row && job.last_row - job.first_row <= job_rows, "size");
      CHECK(job.first_row >= first_row_of(node, rows, num_nodes) &&
                job.last_row <= first_row_of(node + 1, rows, num_nodes),
            "job %zu has rows of another node", index);
      rows_of_part[jobs.part(index)].insert(job.first_row);
      for (size_t row = job.first_row; row < job.last_row; ++row)
        ++times[job.matrix * rows + row];
    }
  }
  CHECK(index == jobs.count(), "%zu of %zu jobs belong to a node", index, jobs.count());
  for (const uint32_t count : times)
    CHECK(count == 1, "a row is in %u jobs", count);
  for (const auto& firsts : rows_of_part)
    CHECK(firsts.size() == 1, "%zu different rows have one number", firsts.size());
}

void set_nodes(ktops_pool* pool, const std::vector<int32_t>& nodes) {
  pool->lock();
  pool->set_nodes(nodes.data());
  pool->unlock();
}

void check_grouping() {
  const TestPool pool(5);
  CHECK(pool->num_nodes() == 1 && pool->threads_on(0) == 5, "one node by default");
  set_nodes(pool, {9, 2, 9, 4, 9});
  CHECK(pool->num_nodes() == 3, "%u nodes", pool->num_nodes());
  CHECK(pool->node_id(0) == 2 && pool->node_id(1) == 4 && pool->node_id(2) == 9, "their order");
  CHECK(pool->threads_on(0) == 1 && pool->threads_on(1) == 1 && pool->threads_on(2) == 3, "shares");
  CHECK(pool->cpu_of(0, 0) == 1 && pool->cpu_of(1, 0) == 3, "CPUs");
  CHECK(pool->cpu_of(2, 0) == 0 && pool->cpu_of(2, 1) == 2 && pool->cpu_of(2, 2) == 4, "CPUs");
  CHECK(pool->cpu_of(2, 3) == -1, "no more threads there");
  // A node without threads is not among them, so it has no rows to wait for.
  set_nodes(pool, {1, 1, 1, 1, 1});
  CHECK(pool->num_nodes() == 1 && pool->threads_on(0) == 5, "one of two nodes");
}

void check_too_many_nodes() {
  const TestPool pool(ktops::kMaxNodes + 1);
  std::vector<int32_t> nodes;
  for (uint32_t i = 0; i <= ktops::kMaxNodes; ++i)
    nodes.push_back(static_cast<int32_t>(i));
  set_nodes(pool, nodes);
  CHECK(pool->num_nodes() == 1 && pool->threads_on(0) == ktops::kMaxNodes + 1, "as one");
  nodes.back() = 0;
  set_nodes(pool, nodes);
  CHECK(pool->num_nodes() == ktops::kMaxNodes && pool->threads_on(0) == 2, "the most there can be");
}

// Each of two threads begins with its own node's rows, and neither is idle.
void check_own_rows_first(const std::vector<int32_t>& nodes) {
  const TestPool pool(2);
  set_nodes(pool, nodes);
  const size_t ends[] = {50, 100};
  const pthread_t caller = pthread_self();
  std::atomic<size_t> firsts[2] = {100, 100}; // of the caller and of the worker
  const auto body = [&](size_t index) {
    const bool is_caller = pthread_equal(pthread_self(), caller) != 0;
    size_t none = 100;
    if (firsts[is_caller ? 0 : 1].compare_exchange_strong(none, index))
      while (firsts[0] == 100 || firsts[1] == 100)
        sched_yield();
  };
  ktops_pool::Step step = ktops_pool::step(100, body);
  step.node_ends = ends;
  alarm(60);
  pool->lock();
  pool->run_steps(&step, 1);
  pool->unlock();
  alarm(0);
  for (size_t thread = 0; thread < 2; ++thread) {
    const size_t own = nodes[thread] == 0 ? 0 : 50;
    CHECK(firsts[thread] == own, "thread %zu began with %zu", thread, firsts[thread].load());
  }
}

// Every index runs once, and no thread comes back to a node that it has left.
void check_order(const std::vector<int32_t>& nodes, const std::vector<size_t>& counts) {
  const TestPool pool(static_cast<uint32_t>(nodes.size()));
  set_nodes(pool, nodes);
  std::vector<size_t> ends;
  for (const size_t count : counts)
    ends.push_back(count + (ends.empty() ? 0 : ends.back()));
  std::vector<pthread_t> runners(ends.back());
  std::vector<std::atomic<uint32_t>> runs(ends.back());
  std::vector<size_t> order(ends.back());
  std::atomic<size_t> num_begun{0};
  const auto body = [&](size_t index) {
    order[num_begun.fetch_add(1)] = index;
    runners[index] = pthread_self();
    runs[index].fetch_add(1);
  };
  ktops_pool::Step step = ktops_pool::step(ends.back(), body);
  step.node_ends = ends.data();
  pool->lock();
  pool->run_steps(&step, 1);
  pool->unlock();
  for (const auto& count : runs)
    CHECK(count.load() == 1, "an index ran %u times", count.load());
  for (const pthread_t runner : std::set<pthread_t>(runners.begin(), runners.end())) {
    std::vector<size_t> visited;
    for (const size_t index : order) {
      size_t node = 0;
      while (index >= ends[node])
        ++node;
      if (pthread_equal(runners[index], runner) && (visited.empty() || visited.back() != node))
        visited.push_back(node);
    }
    CHECK(std::set<size_t>(visited.begin(), visited.end()).size() == visited.size(),
          "a thread came back to a node");
  }
}

// While a node's only thread is held up, the others do its work.
void check_help() {
  const TestPool pool(3);
  set_nodes(pool, {0, 0, 7});
  constexpr size_t kEach = 40;
  const size_t ends[] = {kEach, 2 * kEach};
  std::atomic<size_t> num_done{0};
  std::atomic<bool> is_held{false};
  const auto body = [&](size_t index) {
    if (index >= kEach && !is_held.exchange(true))
      while (num_done.load() < 2 * kEach - kEach / 2) // its run may be half of the rest
        sched_yield();
    num_done.fetch_add(1);
  };
  ktops_pool::Step step = ktops_pool::step(2 * kEach, body);
  step.node_ends = ends;
  alarm(60);
  pool->lock();
  pool->run_steps(&step, 1);
  pool->unlock();
  alarm(0);
  CHECK(num_done == 2 * kEach, "%zu done", num_done.load());
}

// Steps that belong to nodes, and one that does not between them.
void check_steps(ktops_pool* pool, size_t count) {
  const size_t ends[] = {count / 3, count / 3, count}; // the second node has nothing
  std::vector<uint32_t> first_runs(count), second_runs(count);
  std::atomic<size_t> num_early{0};
  const auto first = [&](size_t index) { ++first_runs[index]; };
  const auto second = [&](size_t index) {
    for (const uint32_t runs : first_runs)
      num_early += runs != 1;
    ++second_runs[index];
  };
  const auto third = [&](size_t) {
    for (const uint32_t runs : second_runs)
      num_early += runs != 1;
  };
  ktops_pool::Step steps[] = {ktops_pool::step(count, first), ktops_pool::step(count, second),
                              ktops_pool::step(count, third)};
  steps[0].node_ends = steps[2].node_ends = ends;
  pool->lock();
  pool->run_steps(steps, 3);
  pool->unlock();
  CHECK(num_early == 0, "%zu indices: %zu early", count, num_early.load());
}

// Three nodes where there may be one: the threads touch all the same, and what belongs to a node
// that is not there is not counted as being there.
void check_placement() {
  constexpr uint64_t kRows = 2048, kCols = 4096, kExperts = 3;
  constexpr uint64_t kExpertBytes = kRows * (kCols / 32) * 34, kSmallBytes = 64 * (kCols / 32) * 34;
  const TestPool pool(3);
  set_nodes(pool, {0, 1000, 1001});
  ktops_buffer buffer;
  CHECK(ktops_alloc(kExperts * kExpertBytes + kSmallBytes, &buffer) == KTOPS_OK, "memory");
  auto* data = static_cast<uint8_t*>(buffer.address);
  const ktops_matrix experts{data, kRows, kCols, KTOPS_TYPE_Q8_0, 1, kExperts, 0};
  const ktops_matrix small{data + kExperts * kExpertBytes, 64, kCols, KTOPS_TYPE_Q8_0, 1, 1, 0};
  data[kExpertBytes] = 77;
  int32_t refusal = 0;
  for (const ktops_matrix* matrix : {&experts, &small})
    CHECK(ktops_place(pool, &buffer, matrix, &refusal) == KTOPS_OK, "place");
  CHECK(refusal != 0, "there is no node 1001");
  CHECK(data[kExpertBytes] == 77, "touching changed what was there");

  uint64_t wanted[3] = {}, there[3] = {}, expected[3] = {};
  for (uint64_t at = 0; at < buffer.num_bytes; at += 2 << 20) {
    const uint64_t end = std::min<uint64_t>(at + (2 << 20), buffer.num_bytes);
    const uint64_t middle = at + (end - at) / 2;
    const uint64_t row = middle % kExpertBytes / (kCols / 32 * 34);
    const uint64_t turn = at / (2 << 20) % 3;
    if (middle < kExperts * kExpertBytes)
      expected[row < 672 ? 0 : row < 1344 ? 1 : 2] += end - at;
    else
      expected[turn] += end - at;
  }
  for (const ktops_matrix* matrix : {&experts, &small})
    CHECK(ktops_count_placed(pool, &buffer, matrix, wanted, there, &refusal) == KTOPS_OK, "count");
  uint64_t all = 0;
  for (int node = 0; node < 3; ++node) {
    CHECK(wanted[node] == expected[node], "node %d: %lu bytes instead of %lu", node, wanted[node],
          expected[node]);
    all += wanted[node];
  }
  CHECK(all == buffer.num_bytes, "%lu of %lu bytes belong to a node", all, buffer.num_bytes);
  CHECK(there[1] == 0 && there[2] == 0, "pages on nodes that are not there");
  CHECK(refusal != 0 || there[0] != 0, "nothing is on node 0");
  CHECK(ktops_hold(&buffer, &refusal) == KTOPS_OK, "hold");
  CHECK(data[kExpertBytes] == 77, "holding changed what was there");
  ktops_free(&buffer);
}

void check_refusals() {
  const TestPool pool(2);
  const int32_t nodes[] = {0, 0};
  uint32_t num_nodes = 0;
  CHECK(ktops_pool_set_nodes(pool, nodes, 2, &num_nodes) == KTOPS_OK && num_nodes == 1, "one");
  CHECK(ktops_pool_set_nodes(pool, nodes, 1, &num_nodes) == KTOPS_ERROR_BAD_SHAPE, "too few");
  CHECK(ktops_pool_set_nodes(pool, nullptr, 2, &num_nodes) == KTOPS_ERROR_NULL_POINTER, "none");
  ktops_buffer buffer;
  CHECK(ktops_alloc(34 * 64, &buffer) == KTOPS_OK, "memory");
  ktops_matrix matrix{buffer.address, 64, 32, KTOPS_TYPE_Q8_0, 1, 1, 0};
  int32_t refusal = -1;
  CHECK(ktops_place(pool, &buffer, &matrix, &refusal) == KTOPS_OK && refusal == 0, "one node");
  matrix.rows = 65;
  CHECK(ktops_place(pool, &buffer, &matrix, &refusal) == KTOPS_ERROR_BAD_SHAPE, "beyond the end");
  matrix.rows = 1;
  matrix.data = static_cast<uint8_t*>(buffer.address) - 34;
  uint64_t bytes[2] = {};
  CHECK(ktops_count_placed(pool, &buffer, &matrix, bytes, bytes, &refusal) == KTOPS_ERROR_BAD_SHAPE,
        "before the beginning");
  ktops_free(&buffer);
}

} // namespace

int main() {
  for (const size_t rows : {1ul, 31ul, 32ul, 33ul, 576ul, 1408ul, 2048ul, 7168ul, 7169ul})
    for (const uint32_t num_nodes : {1u, 2u, 3u, 4u, 7u, 64u}) {
      check_ranges(rows, num_nodes);
      for (const size_t job_rows : {32ul, 96ul})
        check_row_jobs(rows, job_rows, 3, num_nodes);
    }
  check_row_jobs(100, 16, 1, 2);
  CHECK(RowJobs(100, 16, 0, 2).count() == 0, "no matrices, no jobs");
  CHECK(ktops::nodes_of_rows(2048, 4032, 2) == 2, "an expert of R1 is shared out");
  CHECK(ktops::nodes_of_rows(1408, 1152, 2) == 1, "one of V2-Lite is smaller than two pages");
  CHECK(ktops::nodes_of_rows(0, 4032, 2) == 1, "no rows");
  check_grouping();
  check_too_many_nodes();
  for (int i = 0; i < 20; ++i) {
    check_own_rows_first({0, 1});
    check_own_rows_first({1, 0});
    check_order({0, 1, 0, 1}, {100, 100});
    check_order({0, 0, 0, 1}, {100, 100});
    check_order({3, 2, 1, 0}, {5, 0, 7, 200});
    check_help();
  }
  {
    const TestPool pool(4);
    set_nodes(pool, {0, 1, 2, 0});
    for (size_t i = 0; i < 2000; ++i)
      check_steps(pool, i % 40);
  }
  check_placement();
  check_refusals();
  return result();
}
