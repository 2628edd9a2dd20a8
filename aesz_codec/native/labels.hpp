// Small labels (masks, signs), coded by their neighbours.  docs/format.md, section 12.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "closed_loop.hpp"
#include "models.hpp"

namespace aesz {

constexpr int kLabelBits = 4;
constexpr unsigned kAllAround = 0x7d;  // the bits of a context that stand for rows before

// Codes the labels 0..15 of an array of (planes, lines, width), in C order.
template <class Coder>
void code_labels(Coder& coder, uint8_t* labels, int64_t planes, int64_t lines, int64_t width) {
    struct Models {
        Bit regular[256];                             // is the label that of the pixel to the west (or its stand-in)?
        Bit value[1 << kLabelBits][1 << kLabelBits];  // else which: a binary tree, by the western label
    };
    const auto models = std::make_unique<Models>();
    const int64_t plane = lines * width;
    const std::vector<uint8_t> nothing(static_cast<std::size_t>(width + 2), 0);
    // Are those around a place in rows before not all alike?  At either end not all of them are there.
    std::vector<uint8_t> differs(static_cast<std::size_t>(width), 1);
    for (int64_t p = 0; p < planes; ++p)
        for (int64_t l = 0; l < lines; ++l) {
            uint8_t* row = labels + p * plane + l * width;
            const uint8_t* north = l ? row - width : nothing.data();
            const uint8_t* north2 = l > 1 ? row - 2 * width : nothing.data();
            const uint8_t* before = p ? row - plane : north;
            for (int64_t i = 1; i + 1 < width; ++i)
                differs[static_cast<std::size_t>(i)] =
                    static_cast<uint8_t>((north[i - 1] ^ north[i]) | (north[i + 1] ^ north[i]) | (north2[i] ^ north[i]) |
                                         (before[i] ^ north[i]) | (before[i + 1] ^ north[i]));
            for (int64_t i = 0; i < width; ++i) {
                const bool inside = i + 1 < width;
                const int west = i ? row[i - 1] : north[0];
                unsigned context = (i > 1 ? row[i - 2] == west : 1u) << 1 | static_cast<unsigned>(west != 0) << 7;
                bool alike;
                if (!differs[static_cast<std::size_t>(i)] && north[i] == west && context & 2u) {  // and so it stays
                    Bit regular = models->regular[context | kAllAround];
                    const int64_t first = i;
                    do {
                        alike = code_bit<true>(coder, regular, row[i] == west);
                    } while (alike && !differs[static_cast<std::size_t>(++i)]);
                    models->regular[context | kAllAround] = regular;
                    std::fill(row + first, row + i, static_cast<uint8_t>(west));
                    if (alike) --i;
                } else {
                    if (differs[static_cast<std::size_t>(i)]) {
                        context |= static_cast<unsigned>(north[i] == west);
                        context |= (i ? north[i - 1] == west : 1u) << 2;
                        context |= (inside ? north[i + 1] == west : 1u) << 3;
                        context |= static_cast<unsigned>(north2[i] == west) << 4;
                        context |= static_cast<unsigned>(before[i] == west) << 5;
                        context |= (inside ? before[i + 1] == west : 1u) << 6;
                    } else if (north[i] == west) {
                        context |= kAllAround;
                    }
                    alike = code_bit(coder, models->regular[context], row[i] == west);
                    if (alike) row[i] = static_cast<uint8_t>(west);
                }
                if (alike) continue;
                unsigned node = 1;
                for (int bit = kLabelBits - 1; bit >= 0; --bit)
                    node = 2 * node + static_cast<unsigned>(code_bit(coder, models->value[west][node], row[i] >> bit & 1));
                row[i] = static_cast<uint8_t>(node & ((1 << kLabelBits) - 1));
            }
        }
}

}  // namespace aesz
