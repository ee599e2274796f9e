// Reading weights from the page cache: as they are, and packed on the way.
//
//   ktops_bench_read THREADS MIB FILE      the file is written, and removed at the end
//
// Both go into new memory every time, in turns; medians are printed.
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <unistd.h>

#include "bench_common.h"

namespace {

constexpr size_t kCols = 7168;
constexpr int kRounds = 5;

// GB/s
double read_speed(ktops_pool* pool, int file, uint32_t type, uint64_t rows, uint32_t layout) {
  const testing::Block block = testing::block_of(type);
  const uint64_t num_bytes = rows * (kCols / block.size * block.bytes);
  ktops_buffer buffer;
  if (ktops_alloc(num_bytes, &buffer) != KTOPS_OK)
    exit(1);
  ktops_read_args args{{buffer.address, rows, kCols, type, layout, 1, 0}, 0, rows, 0, file, 0};
  const double start = now();
  if (ktops_read(pool, &args) != KTOPS_OK)
    exit(1);
  const double seconds = now() - start;
  ktops_free(&buffer);
  return static_cast<double>(num_bytes) / 1e9 / seconds;
}

} // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: %s THREADS MIB FILE\n", argv[0]);
    return 2;
  }
  const int threads = atoi(argv[1]);
  const size_t num_bytes = static_cast<size_t>(atoi(argv[2])) << 20;
  const char* path = argv[3];
  std::vector<int32_t> cpus;
  for (int i = 0; i < threads; ++i)
    cpus.push_back(i);
  ktops_pool* pool = nullptr;
  if (ktops_pool_create(cpus.data(), static_cast<uint32_t>(cpus.size()), &pool) != KTOPS_OK)
    return 1;
  const int file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  std::mt19937 random(1);
  std::vector<uint8_t> piece(size_t{16} << 20);
  for (uint8_t& byte : piece)
    byte = static_cast<uint8_t>(random());
  for (size_t done = 0; done < num_bytes; done += piece.size())
    if (write(file, piece.data(), piece.size()) != static_cast<ssize_t>(piece.size()))
      return 1;
  printf("%d threads, GB/s\n type    read  packed   share\n", threads);
  for (const uint32_t type : testing::kAllTypes) {
    const testing::Block block = testing::block_of(type);
    if (block.size == 1)
      continue;
    const uint64_t rows = num_bytes / (kCols / block.size * block.bytes) / 16 * 16;
    std::vector<double> read, packed, share;
    for (int i = 0; i < kRounds; ++i) {
      read.push_back(read_speed(pool, file, type, rows, KTOPS_LAYOUT_GGUF));
      packed.push_back(read_speed(pool, file, type, rows, KTOPS_LAYOUT_PANEL16));
      share.push_back(packed.back() / read.back());
    }
    printf("%5s %7.1f %7.1f %7.2f\n", testing::type_name(type), median(read), median(packed),
           median(share));
  }
  close(file);
  unlink(path);
  ktops_pool_destroy(pool);
}
