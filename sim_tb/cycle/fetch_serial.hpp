// Serial fetch unit of a cluster, of devices without LUT RAM (rtl/fetch_serial.py, choose_ring of lane_choice.py).
#pragma once

#include "fetch.hpp"

namespace maskwork {

// Either fetch unit of a cluster: Fetch::step is a cycle of the one with registers, `step_serial` of this one. What the
// cluster sees of both is in Fetch, whose `word_number` counts halfwords here, and whose `state` says idle or not.
struct SerialFetch : Fetch {
    enum Step : uint8_t {
        S_IDLE, S_COPY, S_COPIED, S_ROW, S_MASK, S_CHOOSE, S_START, S_HEADER, S_COUNT, S_COUNTED, S_RESTORE, S_VALUE,
        S_LIMIT, S_DELTA, S_SEGMENT, S_END, S_ROWS, S_TAKEN
    };
    enum Level { L_M2, L_M1, L_M0, L_T1, L_T0 };
    static constexpr int PARTS = 4;     // seg, k, x, y

    Step at = S_IDLE;
    int level = L_M1, part = 0;
    uint16_t left[5] = {};              // of each loop's count
    bool taps = false, last_tap = false;
    // of choose_ring
    uint32_t ring_able = 0;

    // The ring that comes next, of a cluster of one lane.
    void choose_ring(uint32_t room, bool next_row, int index) {
        const int ring = index & (config->rings - 1);
        place.lanes = 1;
        able_now = ring_able >> ring & 1;
        ring_able = room & ~coming;
        wait = (coming || next_row) ? 0 : std::min(wait + 1, SETTLED);
    }

    // The place of the row that is given away: that of a ring follows `index` at once.
    void take_place() {
        if (config->lanes_per_cluster > 1) return;
        place.ring = static_cast<uint8_t>(index & (config->rings - 1));
        place.slot = static_cast<uint8_t>(index);
    }

    void give(const Item& item, bool& leaves, Item& out) const {
        out = item;
        out.lanes = chosen_lanes;
        out.ring = chosen_ring;
        leaves = true;
    }

    // The level's deltas, added to the state of rows or of taps.
    void step_state() {
        RunField deltas[PARTS];
        for (int n = 0; n < PARTS; ++n) deltas[n] = static_cast<RunField>(M2_SEG + PARTS * level + n);
        if (taps) step_tap(deltas[0], deltas[1], deltas[2], deltas[3]);
        else step_row(deltas[0], deltas[1], deltas[2], deltas[3]);
    }

    // See Fetch::step.
    bool step_serial(bool space, uint32_t room, const Banks& banks, const std::vector<uint32_t>* masks, Item& out) {
        coming = 0;
        taken = sent = false;
        bool leaves = false, next_row = false, takes_word = false;
        const int words = config->mask_words(), old_index = index;
        switch (at) {
            case S_IDLE:
                if (run_ready) {
                    const Run& given = runs.front();
                    takes_word = word_number & 1;
                    if (word_number == 2 * config->run[ROW_WORDS].word + (config->run[ROW_WORDS].lsb >= 16)) {
                        row_words = static_cast<int>(given.fields[ROW_WORDS]);
                    }
                    if (++word_number == 2 * config->run_words) begin_run(next_row);
                }
                break;
            case S_COPY:
                at = S_COPIED;
                break;
            case S_COPIED:
                restore();
                at = level == L_T0 ? S_ROW : S_COPY;
                ++level;
                break;
            case S_ROW:
                mask_step = 0;
                at = field(USE_C) ? S_MASK : S_CHOOSE;
                break;
            case S_MASK:
                if (mask_step++ == words + 1) at = S_CHOOSE;
                break;
            case S_CHOOSE:
                header = 0;
                if (able_now && wait == SETTLED && space) {
                    take_place();
                    const int rings = config->rings;
                    for (int n = 0; n < config->lanes_per_cluster; ++n) {
                        coming |= static_cast<uint32_t>(place.lanes >> n & 1) << (n * rings + place.ring);
                    }
                    if (field(FIRST) && !field(SHARE)) table[static_cast<size_t>(index) % table.size()] = place;
                    chosen_lanes = place.lanes;
                    chosen_ring = place.ring;
                    make_row(masks);
                    at = S_START;
                }
                break;
            case S_START:
                give(raw_item(Kind::START), leaves, out);
                taps = true;
                last_tap = false;
                level = L_T0;
                begin_taps();
                at = S_HEADER;
                if (known()) at = any_wanted() ? S_COUNT : S_END;
                break;
            case S_HEADER:
                if (space) {
                    give(raw_item(Kind::HEADER), leaves, out);
                    if (header++ == words) {
                        sent = true;
                        at = any_wanted() ? S_COUNT : S_END;
                    }
                }
                break;
            case S_COUNT:
                part = 0;
                at = S_COUNTED;
                break;
            case S_COUNTED:
                at = left[level] ? S_VALUE : S_RESTORE;
                if (left[level]) --left[level];
                break;
            case S_RESTORE:
                restore();
                last_tap |= level == L_T1;
                at = level == L_T1 || level == L_M1 ? S_VALUE : S_COUNT;
                --level;
                break;
            case S_VALUE:
                // the tap itself, before its state moves on
                if (taps && part == 0) made = tap_item(banks);
                at = taps && part >= 2 ? S_LIMIT : S_DELTA;
                break;
            case S_LIMIT:
                at = S_DELTA;
                break;
            case S_DELTA:
                at = S_VALUE;
                if (++part == PARTS) {
                    step_state();
                    at = taps ? S_SEGMENT : S_ROW;
                    part = 0;
                }
                break;
            case S_SEGMENT:
                if (space) {
                    if (made.words > 0) give(made, leaves, out);
                    level = L_T0;
                    at = last_tap ? S_END : S_COUNT;
                }
                break;
            case S_END:
                taps = false;
                level = L_M0;
                if (space) {
                    give(raw_item(Kind::END), leaves, out);
                    next_row = true;
                    index = (index + 1) & 0xffff;
                    at = S_ROWS;
                }
                break;
            case S_ROWS:
                at = index == field(ROWS) ? S_TAKEN : S_COUNT;
                break;
            case S_TAKEN:
                taken = true;
                at = S_IDLE;
                state = F_IDLE;
                break;
        }
        step_run_fifo(takes_word);

        if (config->lanes_per_cluster == 1) choose_ring(room, next_row, old_index);
        else choose(room, next_row, old_index);
        return leaves;
    }

    void begin_run(bool& next_row) {
        run = runs.front();
        runs.erase(runs.begin());
        word_number = 0;
        next_row = true;
        index = 0;
        row_seg = wrap16(field(SEG));
        row_k = static_cast<int>(field(K) & (config->k_depth - 1));
        row_x = wrap16(field(X));
        row_y = wrap16(field(Y));
        const int columns = static_cast<int>(field(COLUMNS));
        for (int n = 0; n < config->mask_words(); ++n) {
            limits[n] = columns >> 5 == n ? ~0u >> (31 - (columns & 31)) : columns >> 5 > n ? ~0u : 0;
        }
        level = L_M1;
        state = F_RUN;
        at = S_COPY;
    }

    void restore() {
        constexpr RunField counts[] = {M0, M1, M0, T1, T0};     // the first one is not used
        left[level] = static_cast<uint16_t>(field(counts[level]));
    }
};

}  // namespace maskwork
