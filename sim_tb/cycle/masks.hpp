// The mask unit (rtl/mask_unit.py): when values enter, elements and words leave and beats are taken; no arithmetic.
//
// Cycles depend on a command's kind and shape alone, not on what is kept, nor on what the slots hold: whether a
// REPLAY's mask is there, the golden model says.
#pragma once

#include "values.hpp"

namespace maskwork {

constexpr int MASK_LATENCY = 4;                                     // rtl/mask_unit.py
constexpr int MASK_DEPTH = 16, MASK_MARGIN = MASK_LATENCY + 2;
constexpr int NORMS_LATENCY = 3;                                    // rtl/mask_norms.py
constexpr int STATISTICS_WORDS = 4;

enum MaskKind { GREATER, MAGNITUDE, PRUNE, DROPOUT, REPLAY_MASK, NORMS, PROJECT };

struct Masks {
    Unpack unpack;
    int words = 1, sums = 4;
    bool block = false;             // the queue is in block RAM: shows an element a cycle later

    int kind = 0;
    bool values = true;

    // pipeline (bit n: entered n + 1 cycles ago): values, last ones of a row, the last one
    uint32_t pipe = 0, closes = 0, lasts = 0;
    bool paused = false, room = true, shown = false;
    int level = 0;

    // elements to words
    int at = 0;
    int64_t element = 0, row = 0;
    bool packed = false, packed_last = false;

    // words of the reply (rtl/mask_reply.py)
    enum State : uint8_t { PACKED, FILL, STATISTICS, SUMS, COLUMN, READ, LOW, HIGH };
    State state = PACKED;
    bool full = false, last = false, final_row = false;
    int lane = 0, index = 0;
    int64_t column = 0;

    void create(const Config& c) {
        unpack.create(c);
        words = c.stream_words;
        sums = c.project_sums;
        block = !c.lut_ram;
    }

    void start(int of_kind, bool with_values, int64_t length, int64_t rows, bool packet_ended) {
        kind = of_kind;
        values = with_values;
        unpack.start(length, rows, packet_ended, values || (kind != DROPOUT && kind != REPLAY_MASK));
        element = row = 0;
    }

    bool elementwise() const { return kind < NORMS; }
    static bool entered(uint32_t line, int cycles) { return line >> (cycles - 1) & 1; }

    // One cycle in which the sequencer hands over the payload and takes words.
    Moved step(bool beat, bool beat_last, bool ready) {
        const bool visible = block ? shown : level > 0;
        const bool put = entered(pipe, MASK_LATENCY) && elementwise();
        const bool free = !full || ready, takes_packed = state == PACKED && free;
        const bool get = visible && (!packed || takes_packed);
        const bool row_ends = kind == PROJECT && entered(closes, 2), rows_end = entered(lasts, 2);
        const bool columns = kind == NORMS && entered(lasts, NORMS_LATENCY);
        const bool waits = kind == PROJECT || (kind == NORMS && unpack.length <= NORMS_LATENCY);
        const bool stood = kind == NORMS && entered(closes, NORMS_LATENCY);
        const Unpack::Given given = unpack.step(beat, beat_last, room && !paused);
        const Moved moved{given.pop, full && ready, last};
        const bool left = reply(free, row_ends, rows_end, columns);

        if (given.closes && waits) paused = true;
        if (stood || left) paused = false;
        pipe = pipe << 1 | given.issue;
        closes = closes << 1 | given.closes;
        lasts = lasts << 1 | given.last;
        room = level <= MASK_DEPTH - MASK_MARGIN;
        shown = level > get;
        level += put - get;
        if (get) {
            const bool ends_row = ++element == unpack.length;
            if (ends_row) element = 0;
            row += ends_row;
            packed_last = row == unpack.count;
            packed = (values ? at == unpack.per_word - 1 || packed_last : at == 31 || ends_row);
            at = packed ? 0 : at + 1;
        } else if (takes_packed) {
            packed = false;
        }
        return moved;
    }

    // Makes a word; whether the last of a row's sums.
    bool reply(bool free, bool row_ends, bool rows_end, bool columns) {
        bool makes = free, done = false, left = false;
        State next = state;
        switch (state) {
            case PACKED:
                makes = free && packed;
                index = 0;
                column = 0;
                final_row = rows_end;
                if (makes && packed_last) next = words > 1 ? FILL : STATISTICS;
                if (row_ends) next = SUMS;
                if (columns) next = COLUMN;
                break;
            case FILL:
                if (!lane) next = STATISTICS;
                makes = free && lane;
                break;
            case STATISTICS:
                if (free && index++ == STATISTICS_WORDS - 1) {
                    done = true;
                    next = PACKED;
                }
                break;
            case SUMS:
                if (free && index++ == sums - 1) {
                    left = true;
                    done = final_row;
                    next = PACKED;
                }
                break;
            case COLUMN:
                makes = false;
                next = READ;
                break;
            case READ:
                makes = false;
                next = LOW;
                break;
            case LOW:
                if (free) next = HIGH;
                break;
            case HIGH:
                if (free) {
                    done = ++column == unpack.length;
                    next = done ? PACKED : COLUMN;
                }
                break;
        }
        if (free) full = makes;
        if (makes) {
            last = done;
            lane = done || lane == words - 1 ? 0 : lane + 1;
        }
        state = next;
        return left;
    }
};

}  // namespace maskwork
