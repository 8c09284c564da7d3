// Intel AMX: registers of 16 rows x 64 bytes, and the product of two of them in bfloat16 with sums in float32.
//
// c[m][n] += a[m][.] b[.][n] processes 32 values of k at once: even and odd ones are two chains of additions in order of k,
// starting at zero, whose sum is added to c (Intel's Instruction Set Extensions reference, TDPBF16PS). So an output's bits
// depend only on its own row and column, and a matmul gives the same bits as its transpose.
#pragma once

#include <cstdint>
#include <type_traits>

#include "vector.h"

#if defined(FXHLO_BF16_DOT) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define FXHLO_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fxhlo {

constexpr int kTileSide = 16;                      // rows of a tile, and words per row
constexpr int kTileDepth = 2 * kTileSide;          // bfloat16 values per row
constexpr int kTileWords = kTileSide * kTileSide;  // words of a full tile
constexpr int kTileLine = 4 * kTileSide;           // bytes of a row

#if defined(FXHLO_TILES)

// Linux allows a process to use AMX after it has requested permission once.
inline bool has_tiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

// This thread's tile configuration, released by the destructor. Setting it zeroes all tiles.
class TileShapes {
 public:
  TileShapes() = default;
  ~TileShapes() {
    if (set_) asm volatile("tilerelease" ::: "memory");
  }
  TileShapes(const TileShapes&) = delete;
  TileShapes& operator=(const TileShapes&) = delete;

  // Tiles 0 to 5 hold `rows` rows (sums, and left operands), 6 and 7 hold 16 (right operands).
  void set(int rows) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int tile = 0; tile < 8; ++tile) {
      shapes.row_bytes[tile] = kTileLine;
      shapes.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : kTileSide);
    }
    asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
    set_ = true;
  }

 private:
  bool set_ = false;
};

// stride: bytes from one row to the next.
template <int Tile>
inline void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
inline void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}
template <int Sums, int A, int B>
inline void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(A), "i"(B));
}

#else

inline bool has_tiles() { return false; }

struct TileShapes {
  void set(int) {}
};

#endif

// Whether matmuls of T use AMX.
template <typename T>
bool tiled() {
  return std::is_same_v<T, BFloat16> && has_tiles();
}

}  // namespace fxhlo
