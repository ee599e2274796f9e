// The packed layout on one instruction set (the argument): where README.md says each byte goes,
// from memory and from files, and back.
#include <cerrno>

#include "check.h"
#include "random_blocks.h"

using namespace testing;

namespace {

struct Case {
  size_t num_experts, rows, num_blocks;
};

constexpr Case kCases[] = {{1, 16, 1}, {1, 16, 2}, {1, 48, 3}, {1, 5, 2},
                           {1, 37, 5}, {3, 32, 4}, {4, 19, 3}, {2, 400, 14}};

// Bytes of a block that go to words, and those of its half.
struct Cut {
  size_t words_at, num_words, num_halves, half_at;
};

Cut cut_of(uint32_t type) {
  switch (type) {
  case KTOPS_TYPE_Q4_0:
    return {2, 4, 1, 0};
  case KTOPS_TYPE_Q5_0:
    return {2, 5, 1, 0};
  case KTOPS_TYPE_Q8_0:
    return {2, 8, 1, 0};
  case KTOPS_TYPE_Q4_K:
    return {0, 36, 0, 0};
  case KTOPS_TYPE_Q5_K:
    return {0, 44, 0, 0};
  default:
    return {0, 52, 1, 208}; // Q6_K
  }
}

// Packs one matrix byte by byte.
void pack_plainly(uint32_t type, size_t rows, size_t num_blocks, const uint8_t* from, uint8_t* to) {
  const size_t block_bytes = block_of(type).bytes, row_bytes = num_blocks * block_bytes;
  const Cut cut = cut_of(type);
  for (size_t row = 0; row < rows; ++row) {
    const uint8_t* source = from + row * row_bytes;
    if (row >= rows / 16 * 16) {
      memcpy(to + row * row_bytes, source, row_bytes);
      continue;
    }
    uint8_t* panel = to + row / 16 * 16 * row_bytes;
    for (size_t b = 0; b < num_blocks; ++b, source += block_bytes) {
      const size_t first = b / 2 * 2, count = std::min<size_t>(2, num_blocks - first);
      uint8_t* chunk = panel + first * 16 * block_bytes;
      uint8_t* words = chunk + (b - first) * cut.num_words * 64;
      for (size_t w = 0; w < cut.num_words; ++w)
        memcpy(words + 64 * w + 4 * (row % 16), source + cut.words_at + 4 * w, 4);
      uint8_t* halves = chunk + count * cut.num_words * 64 + (b - first) * 32;
      if (cut.num_halves != 0)
        memcpy(halves + 2 * (row % 16), source + cut.half_at, 2);
    }
  }
}

class File {
 public:
  File(const std::vector<uint8_t>& bytes, size_t offset) : file_(tmpfile()) {
    fseek(file_, static_cast<long>(offset), SEEK_SET);
    CHECK(fwrite(bytes.data(), 1, bytes.size(), file_) == bytes.size(), "writing");
    fflush(file_);
  }
  ~File() { fclose(file_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int descriptor() const { return fileno(file_); }

 private:
  FILE* file_;
};

void check_case(ktops_pool* pool, uint32_t type, uint32_t layout, const Case& shape) {
  std::mt19937 random(static_cast<uint32_t>(type + shape.rows));
  const auto [num_experts, rows, num_blocks] = shape;
  const size_t cols = num_blocks * block_of(type).size;
  const std::vector<uint8_t> file = random_weights(random, type, num_experts * rows * cols);
  ktops_matrix matrix{nullptr, rows, cols, type, layout, static_cast<uint32_t>(num_experts), 0};
  std::vector<uint8_t> expected = file;
  const size_t expert_bytes = file.size() / num_experts;
  for (size_t e = 0; e < num_experts && layout == KTOPS_LAYOUT_PANEL16; ++e)
    pack_plainly(type, rows, num_blocks, file.data() + e * expert_bytes,
                 expected.data() + e * expert_bytes);
  const std::vector<uint8_t> packed = laid_out(pool, matrix, file);
  CHECK(packed == expected, "%s [%zu, %zu, %zu]: packed otherwise", type_name(type), num_experts,
        rows, cols);

  const File stored(file, 77);
  std::vector<uint8_t> read(file.size(), 0xEE);
  matrix.data = read.data();
  const uint64_t num_rows = num_experts * rows;
  for (const uint64_t cut : {uint64_t{0}, std::min<uint64_t>(16, rows), num_rows}) {
    ktops_read_args first{matrix, 0, cut, 77, stored.descriptor(), 0};
    ktops_read_args second{matrix, cut, num_rows - cut, 77, stored.descriptor(), 0};
    CHECK(ktops_read(pool, &first) == KTOPS_OK && ktops_read(pool, &second) == KTOPS_OK, "reading");
    CHECK(read == expected, "%s: read otherwise, cut at %lu", type_name(type), cut);
    std::fill(read.begin(), read.end(), 0xEE);
  }

  const Guarded guarded(packed.data(), packed.size());
  matrix.data = guarded.data();
  Output values(num_rows * cols);
  CHECK(ktops_dequantize_rows(&matrix, 0, num_rows, values.data()) == KTOPS_OK, "dequantizing");
  CHECK(values.guards_hold(), "wrote beside the output");
  const std::vector<float> plain = dequantized(type, file, num_rows * cols);
  CHECK(memcmp(values.data(), plain.data(), plain.size() * sizeof(float)) == 0,
        "%s: other values come back", type_name(type));
}

void check_refusals(ktops_pool* pool) {
  std::vector<uint8_t> bytes(2 * 32 * 34), target(bytes.size());
  const File stored(bytes, 0);
  const auto status_of = [&](void (*change)(ktops_read_args&)) {
    ktops_read_args args{{target.data(), 32, 32, KTOPS_TYPE_Q8_0, KTOPS_LAYOUT_PANEL16, 2, 0},
                         0,
                         64,
                         0,
                         stored.descriptor(),
                         0};
    change(args);
    const int32_t status = ktops_read(pool, &args);
    return status == KTOPS_ERROR_FILE ? 100 + args.file_errno : status;
  };
  const auto expect = [&](int32_t expected, void (*change)(ktops_read_args&)) {
    const int32_t status = status_of(change);
    CHECK(status == expected, "%d instead of %d", status, expected);
  };
  using Args = ktops_read_args;
  expect(KTOPS_OK, [](Args&) {});
  expect(KTOPS_OK, [](Args& a) { a.num_rows = 0, a.target.data = nullptr, a.target.rows = 0; });
  expect(100, [](Args& a) { a.offset = 1; });
  expect(100 + EBADF, [](Args& a) { a.file = -1; });
  expect(KTOPS_ERROR_BAD_SHAPE, [](Args& a) { a.first_row = 8, a.num_rows = 8; });
  expect(KTOPS_ERROR_BAD_SHAPE, [](Args& a) { a.num_rows = 40; });
  expect(KTOPS_ERROR_BAD_SHAPE, [](Args& a) { a.first_row = 16; });
  expect(KTOPS_ERROR_BAD_SHAPE, [](Args& a) { a.first_row = UINT64_MAX; });
  expect(KTOPS_ERROR_UNKNOWN_LAYOUT, [](Args& a) { a.target.layout = 2; });
  expect(KTOPS_ERROR_UNKNOWN_LAYOUT, [](Args& a) { a.target.type = KTOPS_TYPE_F16; });
  expect(KTOPS_ERROR_NULL_POINTER, [](Args& a) { a.target.data = nullptr; });
  CHECK(ktops_read(pool, nullptr) == KTOPS_ERROR_NULL_POINTER, "no arguments");

  float values[32];
  ktops_matrix matrix{bytes.data(), 32, 32, KTOPS_TYPE_Q8_0, KTOPS_LAYOUT_PANEL16, 2, 0};
  CHECK(ktops_pack(pool, &matrix, nullptr) == KTOPS_ERROR_NULL_POINTER, "no source");
  CHECK(ktops_pack(pool, nullptr, bytes.data()) == KTOPS_ERROR_NULL_POINTER, "no target");
  CHECK(ktops_dequantize_rows(&matrix, 64, 1, values) == KTOPS_ERROR_BAD_SHAPE, "past the end");
  CHECK(ktops_dequantize_rows(&matrix, 63, 1, values) == KTOPS_OK, "the last row");
  CHECK(ktops_dequantize_rows(&matrix, 0, 1, nullptr) == KTOPS_ERROR_NULL_POINTER, "no target");
  CHECK(ktops_dequantize_rows(nullptr, 0, 1, values) == KTOPS_ERROR_NULL_POINTER, "no matrix");
}

} // namespace

int main(int argc, char** argv) {
  if (argc != 2 || !choose_isa(argv[1]))
    return kSkipped;
  const TestPool pool(3);
  for (const uint32_t type : kAllTypes)
    for (const Case& shape : kCases) {
      check_case(pool, type, KTOPS_LAYOUT_GGUF, shape);
      if (block_of(type).size > 1)
        check_case(pool, type, KTOPS_LAYOUT_PANEL16, shape);
    }
  check_refusals(pool);
  return result();
}
