// Runs a fuzz target over the files that it is given, without a fuzzer: whatever was found once stays tested wherever
// there is any compiler.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int count, char** arguments) {
  int inputs = 0;
  for (int i = 2; i < count; i++) {
    for (const auto& file : std::filesystem::directory_iterator(arguments[i])) {
      std::ifstream stream(file.path(), std::ios::binary);
      const std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
      // A copy of exactly its size, so that a sanitizer sees what is read beyond it.
      LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
      inputs++;
    }
  }
  // A target ends the process at the first thing that is wrong.
  std::printf("%s corpus: %d passed, %d failed\n", arguments[1], inputs, inputs == 0);
  return inputs == 0;
}
