// Fetch unit, lane choice and RUN FIFO of a cluster (rtl/fetch.py, lane_choice.py, run_fifo.py).
#pragma once

#include "lane.hpp"

namespace maskwork {

constexpr int SETTLED = 3;          // rtl/lane_choice.py
constexpr int ITEM_QUEUE = 16, ITEM_MARGIN = 6;

// One item for the copier: a word, or a segment of the activation buffer.
struct Item {
    uint8_t lanes = 0, ring = 0, bank = 0;
    bool raw = false;
    uint16_t k = 0;
    int32_t start = 0, words = 0;
    Word word{};
};

// A RUN that was accepted.
struct Run {
    int64_t fields[RUN_FIELDS];
    int64_t result;     // see Row::result
};

inline int16_t wrap16(int64_t value) { return static_cast<int16_t>(value); }

struct Fetch {
    const Config* config;
    enum State : uint8_t { F_IDLE, F_RUN, F_CHOOSE, F_START, F_HEADER, F_TAPS, F_END, F_TAKEN };
    State state = F_IDLE;

    // RUN FIFO: words of accepted RUNs that were not taken
    std::vector<Run> runs;          // accepted and not begun
    int64_t run_words_left = 0;
    bool run_shown = false;         // the memory shows a word
    bool run_ready = false;
    int word_number = 0;
    bool run_space = true;          // register; for the sequencer

    Run run{};
    int row_words = 0;
    int index = 0;
    int m0 = 0, m1 = 0, t0 = 0, t1 = 0;
    int16_t row_seg = 0, row_x = 0, row_y = 0, tap_seg = 0, tap_x = 0, tap_y = 0;
    int row_k = 0, tap_k = 0;
    int header = 0, mask_step = 0;      // masks are there from `mask_words` + 2 on
    uint32_t limits[MASK_WORDS] = {};
    std::vector<Row> pool;
    unsigned pool_at = 0;
    Row* row = nullptr;
    uint8_t chosen_lanes = 0, chosen_ring = 0;

    // lane choice: bit n of these is ring n % rings of lane n / rings
    uint32_t able = 0, lane_free = 0, pick = 0;
    struct Place { uint8_t lanes = 0, ring = 0, slot = 0; };
    std::vector<Place> table;
    Place kept{}, read_data{};
    Place place{};
    bool able_now = false;
    int wait = 0;
    int used[MAX_LANES * MAX_RINGS] = {}, next_slot[MAX_LANES * MAX_RINGS] = {};
    uint32_t with_slot = ~0u;           // rings with a slot for another row that stays
    uint32_t first_rings = 0;           // ring 0 of each lane
    uint32_t had = 0, last_lanes = 0;   // lanes that had a row in this round; that the last row went to
    bool sent = false;                  // in this cycle: the last row's masks

    // two registers between an item's making and the queue
    Item stage1, stage2;
    bool push1 = false, push2 = false;

    // what a cycle tells others
    uint32_t coming = 0;
    bool taken = false;

    void create(const Config& c) {
        config = &c;
        pool.resize(4096);
        for (int n = 0; n < c.lanes_per_cluster; ++n) first_rings |= 1u << (n * c.rings);
        table.resize(static_cast<size_t>(std::max(2, c.lanes_per_cluster * c.psum_rows)));
    }

    int64_t field(RunField name) const { return run.fields[name]; }
    bool active() const { return state != F_IDLE || run_ready || word_number; }

    // Cycles without a change; inputs of the last one. After SETTLED + 1 of them all stages of the choice have followed,
    // and the same inputs change nothing.
    int steady = 0;
    uint32_t last_room = 0;
    bool last_space = true;
    bool rests(bool space, uint32_t room) const {
        return steady > SETTLED + 1 && room == last_room && space == last_space;
    }

    void accept(const Run& accepted) {
        steady = 0;
        runs.push_back(accepted);
        run_words_left += config->run_words;
    }

    // Rows that are sent without their number and masks, which the lane has.
    bool known() const { return config->psum_in_pe && !field(FIRST); }
    bool any_wanted() const {
        return std::any_of(row->mask, row->mask + config->mask_words(), [](uint32_t word) { return word != 0; });
    }
    void begin_taps() {
        tap_seg = row_seg;
        tap_k = row_k;
        tap_x = row_x;
        tap_y = row_y;
        t0 = static_cast<int>(field(T0));
        t1 = static_cast<int>(field(T1));
    }

    // The registers of the RUN FIFO, from which a word is taken.
    void step_run_fifo(bool takes_word) {
        run_space = run_words_left <= (1 << clog2(config->run_depth * config->run_words)) - 2 * config->run_words;
        if (config->hop_stages) {       // a register between
            if (run_ready && !takes_word) {
                run_shown = run_words_left > 0;
                return;
            }
            run_ready = run_shown;
            run_words_left -= run_shown;
        } else {
            run_words_left -= takes_word;
            run_ready = run_words_left > 0;
        }
        run_shown = run_words_left > 0;
    }

    // Choice of lane and ring, a pipeline of registers that runs all the time.
    void choose(uint32_t room, bool run_begins, int index) {
        const int lanes = config->lanes_per_cluster, rings = config->rings;
        const int ring_shift = log2_of(rings), own_slots = config->psum_rows >> ring_shift;
        const bool first = field(FIRST), share = field(SHARE), keeps = first && !field(FINAL);
        const uint32_t ring_mask = (1u << rings) - 1;
        const uint32_t own = room & ~coming, has_slot = keeps ? with_slot : ~0u;
        uint32_t free_lanes = own & first_rings;
        for (int n = 1; n < rings; ++n) free_lanes &= own >> n;
        const uint32_t next_free = has_slot & (free_lanes * ring_mask);
        uint32_t allowed = ~0u;
        if (config->in_turn) allowed = ring_mask << ((index & (lanes - 1)) << ring_shift);
        const uint32_t candidates = (lane_free & allowed ? lane_free : able) & allowed;
        // ---- registers, last stage first
        if (share) {
            place.lanes = static_cast<uint8_t>((1u << lanes) - 1);
            place.ring = static_cast<uint8_t>(index & (rings - 1));
            place.slot = static_cast<uint8_t>(index);
            able_now = (able >> (index & (rings - 1)) & first_rings) == first_rings;
        } else if (first) {
            place.lanes = 0;
            able_now = pick != 0;
            if (pick) {
                const int n = std::countr_zero(pick);
                place.lanes = static_cast<uint8_t>(1u << (n >> ring_shift));
                place.ring = static_cast<uint8_t>(n & (rings - 1));
                const int slot = config->psum_in_pe ? next_slot[n] & (own_slots - 1) : used[n];
                place.slot = static_cast<uint8_t>((n & (rings - 1)) | slot << ring_shift);
            }
        } else {
            place = kept;
            uint32_t any = 0;
            for (uint32_t bits = kept.lanes; bits; bits &= bits - 1) {
                any |= able >> ((std::countr_zero(bits) << ring_shift) + kept.ring);
            }
            able_now = any & 1;
        }
        kept = read_data;
        if (!read_data.lanes) kept.lanes = 1;
        read_data = table[static_cast<size_t>(index) & (table.size() - 1)];
        pick = candidates & (~candidates + 1);
        able = own & has_slot;
        lane_free = next_free;
        wait = (coming || run_begins) ? 0 : std::min(wait + 1, SETTLED);
        if (coming && first && !share) {
            for (int n = 0; n < lanes * rings; ++n) next_slot[n] += coming >> n & 1;
        }
        if (taken) {
            std::fill(std::begin(used), std::end(used), 0);
            had = 0;
        } else if (keeps && !share && coming) {
            last_lanes = 0;
            for (int n = 0; n < lanes * rings; ++n) {
                used[n] += coming >> n & 1;
                last_lanes |= (coming >> n & 1) << (n >> ring_shift);
            }
            had |= last_lanes;
        } else if (keeps && !share && sent) {
            end_of_row(lanes, rings, own_slots);
        } else {
            return;
        }
        with_slot = 0;
        for (int n = 0; n < lanes * rings; ++n) {
            const bool waits = !config->in_turn && (had >> (n >> ring_shift) & 1);
            with_slot |= static_cast<uint32_t>(used[n] != own_slots && !waits) << n;
        }
    }

    // A row that nobody wanted was no turn; a round ends once all lanes with slots had theirs.
    void end_of_row(int lanes, int rings, int own_slots) {
        uint32_t full = 0;
        for (int n = 0; n < lanes; ++n) {
            bool all = true;
            for (int ring = 0; ring < rings; ++ring) all &= used[n * rings + ring] == own_slots;
            full |= static_cast<uint32_t>(all) << n;
        }
        if (!any_wanted()) had &= ~last_lanes;
        if (((had | full) & ((1u << lanes) - 1)) == (1u << lanes) - 1) had = 0;
    }

    void push(Item item) {
        item.lanes = chosen_lanes;
        item.ring = chosen_ring;
        made = item;
        pushes = true;
    }
    Item made;
    bool pushes = false;

    void step_row(RunField seg, RunField k, RunField x, RunField y) {
        row_seg = wrap16(row_seg + field(seg));
        row_k = static_cast<int>((row_k + field(k)) & (config->k_depth - 1));
        row_x = wrap16(row_x + field(x));
        row_y = wrap16(row_y + field(y));
    }
    void step_tap(RunField seg, RunField k, RunField x, RunField y) {
        tap_seg = wrap16(tap_seg + field(seg));
        tap_k = static_cast<int>((tap_k + field(k)) & (config->k_depth - 1));
        tap_x = wrap16(tap_x + field(x));
        tap_y = wrap16(tap_y + field(y));
    }

    // One cycle. `masks` are those of both banks; answers whether an item enters the queue (`out`).
    bool step(bool space, uint32_t room, const Banks& banks, const std::vector<uint32_t>* masks, Item& out) {
        coming = 0;
        taken = sent = false;
        pushes = false;
        const State was = state;
        steady = room == last_room && space == last_space && !push1 && !push2 ? steady + 1 : 0;
        last_room = room;
        last_space = space;
        bool run_begins = false;
        const bool leaves = push2;
        if (leaves) out = stage2;
        const int words = config->mask_words();
        const int old_index = index;
        bool takes_word = false, read_masks = false;
        switch (state) {
            case F_IDLE:
                if (run_ready) {
                    takes_word = true;
                    if (word_number == config->run[ROW_WORDS].word) row_words = static_cast<int>(runs.front().fields[ROW_WORDS]);
                    if (++word_number == config->run_words) {
                        run = runs.front();
                        runs.erase(runs.begin());
                        run_begins = true;
                        word_number = 0;
                        index = m0 = m1 = 0;
                        row_seg = wrap16(field(SEG));
                        row_k = static_cast<int>(field(K) & (config->k_depth - 1));
                        row_x = wrap16(field(X));
                        row_y = wrap16(field(Y));
                        const int columns = static_cast<int>(field(COLUMNS));
                        for (int n = 0; n < words; ++n) {
                            limits[n] = columns >> 5 == n ? ~0u >> (31 - (columns & 31)) : columns >> 5 > n ? ~0u : 0;
                        }
                        state = F_RUN;
                    }
                }
                break;
            case F_RUN:
                read_masks = true;
                state = F_CHOOSE;
                break;
            case F_CHOOSE:
                header = 0;
                if (able_now && wait == SETTLED && space && (!known() || mask_step >= words + 1)) {
                    const int rings = config->rings;
                    for (int n = 0; n < config->lanes_per_cluster; ++n) {
                        coming |= static_cast<uint32_t>(place.lanes >> n & 1) << (n * rings + place.ring);
                    }
                    if (field(FIRST) && !field(SHARE)) table[static_cast<size_t>(index) & (table.size() - 1)] = place;
                    chosen_lanes = place.lanes;
                    chosen_ring = place.ring;
                    make_row(masks);
                    index = (index + 1) & 0xffff;
                    if (known()) read_masks = true;
                    state = F_START;
                }
                break;
            case F_START:
                push(raw_item(Kind::START));
                begin_taps();
                state = F_HEADER;
                if (known()) {
                    state = any_wanted() ? F_TAPS : F_END;
                }
                break;
            case F_HEADER:
                if (space) {
                    push(raw_item(Kind::HEADER));
                    if (header++ == words) {
                        read_masks = sent = true;
                        state = any_wanted() ? F_TAPS : F_END;
                    }
                }
                break;
            case F_TAPS:
                if (space) {
                    push(tap_item(banks));
                    if (t0) {
                        --t0;
                        step_tap(T0_SEG, T0_K, T0_X, T0_Y);
                    } else {
                        if (!t1) state = F_END;
                        t0 = static_cast<int>(field(T0));
                        --t1;
                        step_tap(T1_SEG, T1_K, T1_X, T1_Y);
                    }
                }
                break;
            case F_END:
                if (space) {
                    push(raw_item(Kind::END));
                    state = index == field(ROWS) ? F_TAKEN : F_CHOOSE;
                    if (m0 != field(M0)) {
                        ++m0;
                        step_row(M0_SEG, M0_K, M0_X, M0_Y);
                    } else if (m1 != field(M1)) {
                        m0 = 0;
                        ++m1;
                        step_row(M1_SEG, M1_K, M1_X, M1_Y);
                    } else {
                        m0 = m1 = 0;
                        step_row(M2_SEG, M2_K, M2_X, M2_Y);
                    }
                }
                break;
            case F_TAKEN:
                taken = true;
                state = F_IDLE;
                break;
        }
        step_run_fifo(takes_word);
        if (read_masks) mask_step = 0;
        else if (mask_step != words + 2) ++mask_step;

        push2 = push1 && (stage1.raw || stage1.words);
        stage2 = stage1;
        push1 = pushes && (made.raw || made.words >= 0);
        stage1 = made;
        choose(room, run_begins, old_index);
        if (state != was || pushes || takes_word || (run_words_left && state == F_IDLE) || mask_step != words + 2) steady = 0;
        return leaves;
    }

    Item raw_item(Kind kind) const {
        Item item;
        item.raw = true;
        item.word.kind = kind;
        item.word.row = row;
        return item;
    }

    void make_row(const std::vector<uint32_t>* masks) {
        row = &pool[pool_at++ & (pool.size() - 1)];
        const size_t stride = std::bit_ceil(static_cast<unsigned>(config->mask_words()));
        const auto& bank = masks[field(C_BANK)];
        for (int n = 0; n < config->mask_words(); ++n) {
            const size_t word = static_cast<size_t>(field(C_ROW) + index) * stride + static_cast<size_t>(n);
            row->mask[n] = limits[n] & (!field(USE_C) ? ~0u : word < bank.size() ? bank[word] : 0);
        }
        row->slot = place.slot & (config->psum_rows - 1);
        row->bank = static_cast<uint8_t>(field(B_BANK));
        row->first = field(FIRST) != 0;
        row->final = field(FINAL) != 0;
        row->post = field(POST) != 0;
        row->share = field(SHARE) != 0;
        const int64_t each = row->share ? config->lanes_per_cluster : 1;
        row->result = row->final && run.result >= 0 ? run.result + index * each : -1;
    }

    // A tap outside, or of a segment that is not loaded, has -1 words; an empty segment 0.
    Item tap_item(const Banks& banks) const {
        const auto& segments = banks[static_cast<size_t>(field(A_BANK))]->directory;
        Item item;
        item.words = -1;
        if (tap_x >= 0 && tap_x < field(X_LIMIT) && tap_y >= 0 && tap_y < field(Y_LIMIT) && tap_seg >= 0 &&
            tap_seg < static_cast<int>(segments.size())) {
            item.start = segments[static_cast<size_t>(tap_seg)].start;
            item.words = segments[static_cast<size_t>(tap_seg)].words;
            item.bank = static_cast<uint8_t>(field(A_BANK));
            item.k = static_cast<uint16_t>(tap_k);
        }
        return item;
    }
};

}  // namespace maskwork
