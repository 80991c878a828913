// A lane: FIFO of row words, expander, PEs and drain (rtl/lane.py, lane_fifo.py, expander.py, drain.py).
#pragma once

#include "pe.hpp"

namespace maskwork {

enum Reason { FETCH, IMBALANCE, DRAIN, LOAD, DISPATCH, IDLE, OUTER };   // OUTER: one of the three before, see Cluster
constexpr int REASONS = 6;

constexpr int TURN_CHUNKS = 2;      // rtl/expander.py
constexpr int TOKEN_QUEUE = 8, STAGED = 3, SKID = 2;
constexpr int DRAIN_LATENCY = 9;    // rtl/drain.py

enum class PostKind : uint8_t { START, VALUE, END, NONE };

// A word on its way from a drain to post-processing.
struct PostWord {
    PostKind kind = PostKind::NONE;
    bool nonzero = false, post = false;
};

// A word of a drain's pipeline, with what it needs of its row.
struct DrainWord {
    PostWord word;
    bool final = false;
    uint8_t bank = 0;
};

// What lanes add up for the whole accelerator.
struct Totals {
    int64_t reasons[REASONS] = {};      // PE-cycles
    int64_t multiplies = 0, stolen = 0;
    int64_t tokens = 0;
    bool token = false, finished = false;       // in this cycle: a nonzero entered the PEs, a row left a lane
};

struct ExpanderToken {
    uint16_t k;
    uint8_t bank, context;
    bool end, nonzero;
};

// When a lane's parts have to be looked at again; a cluster's are side by side.
struct Times {
    Time sleep_until = 0;               // front
    Time drain_at = 0;
    Time retire_at = NEVER;             // no row whose sums stay has left the PEs before
};

struct Lane {
    Times* times = nullptr;
    const Config* config;
    Totals* totals;
    const uint32_t* results = nullptr;  // bitmaps of result rows, or null: what was added to is not 0
    int number = 0;                     // in its cluster

    // ---- FIFO
    std::vector<Word> ram;
    unsigned ring_words = 0;
    uint32_t written[MAX_RINGS] = {}, taken[MAX_RINGS] = {}, at = 0;
    int reading = 0;
    bool fetched = false, moved = false, held = false;
    uint32_t filled = 0;                // a bit a ring
    Word head{};

    // ---- expander
    enum State : uint8_t { SELECT, HEAD, HEADER, VALUES } state = SELECT;
    uint32_t rows = 0, busy = 0;        // a bit a context
    bool others = false, some = false;
    int turn_ring = 0, turn_left = 0, header_index = 0, value = 0, more = 0, index = 0;
    uint16_t bits = 0, chunk_nonzero = 0, chunk_k = 0;
    bool last_element = false, last_of_word = false;
    bool staged = false;
    ExpanderToken staged_token{};
    ExpanderToken tokens[TOKEN_QUEUE];
    unsigned tokens_head = 0;
    int tokens_level = 0;
    bool tokens_space = true;

    // ---- rows
    Row* context_row[MAX_RINGS] = {};
    uint32_t column_mask[MAX_RINGS][MAX_PES] = {};
    uint32_t touched[MAX_RINGS][MAX_PES] = {};
    std::vector<std::array<uint32_t, MAX_PES>> kept;    // touched, of partial sums
    int started = -1;                   // ring whose row has started in the last step
    int* rows_of_bank = nullptr;        // of the whole cluster
    uint32_t ends_sent = 0;             // contexts whose END token has left for the PEs, and drains the row
    // psum_in_pe: rows whose END token has left for the PEs, where their sums stay, by context
    Row* stays[MAX_RINGS] = {};
    std::vector<std::pair<Row*, Time>> finished_rows;   // to be drained, and from when on, as a ring by their number
    unsigned finished_head = 0, finished_end = 0;
    int undrained = 0;                  // of these, their last word has not left
    std::vector<uint8_t> owed;          // slots that hold results
    int drained_slot = -1;              // in this cycle
    bool start_free = false;            // the START that shows finds its slot free

    // ---- weights: masks as skipped, patterns of nonzeros, by bank, k and PE
    std::vector<uint32_t> b_mask, b_nonzero;
    int last_slot[2] = {};

    // ---- PEs
    std::vector<Pe> pes;
    std::vector<Token> token_rings;
    Time hist_at = 0;
    bool counting = false;              // no mask of B or C: every slot in turn
    bool block = false;                 // PE queues in block RAM, a skid buffer instead of the token queue
    Time to_queue = LOOKUP_LATENCY;     // from a token that leaves to the cycle before the queue can show it

    // ---- drain (see drain.hpp)
    enum DrainState : uint8_t { D_SCRUB, D_IDLE, D_META, D_ROW, D_REQUEST, D_MASK, D_COLUMNS, D_NEXT };
    DrainState drain_state = D_SCRUB;
    bool active = false;                // from ROW to COLUMNS
    int idle_context = 0;               // context looked at in cycle `idle_since`, the next one a cycle later
    Time idle_since = 0;
    int drain_context = 0, scrub_count = 0, part = 0;
    bool go = false, given = false;
    BitIterator columns;
    Row drain_row{};
    std::array<uint32_t, MAX_PES> drain_touched{};
    DrainWord drain_line[16];           // on their way, by the cycle in which they leave
    Time drain_line_until = LONG_AGO;
    int8_t steals[4] = {-1, -1, -1, -1};        // by cycle: the PE that loses its issue slot

    // ---- accounts
    Time accounted = 0;                 // all cycles before have been charged
    Reason reason = OUTER;
    bool blocked = false;               // tokens wait for the PEs' space

    void create(const Config& c, Totals& t, int n, Times& own, int* bank_rows) {
        rows_of_bank = bank_rows;
        times = &own;
        config = &c;
        totals = &t;
        number = n;
        ring_words = static_cast<unsigned>(c.fifo_depth / c.rings);
        ram.resize(static_cast<size_t>(c.fifo_depth));
        pes.resize(static_cast<size_t>(c.pes));
        const size_t ring = std::bit_ceil(static_cast<unsigned>(c.queue_depth + QUEUE_MARGIN + 1));
        token_rings.resize(ring * pes.size());
        for (size_t pe = 0; pe < pes.size(); ++pe) {
            pes[pe].ring = &token_rings[ring * pe];
            pes[pe].ring_mask = static_cast<unsigned>(ring - 1);
        }
        kept.resize(static_cast<size_t>(c.psum_rows));
        owed.assign(kept.size(), 0);
        finished_rows.resize(kept.size());
        b_mask.assign(static_cast<size_t>(2 * c.k_depth * c.pes), 0);
        b_nonzero = b_mask;
        counting = !c.skip_b && !c.skip_c;
        block = !c.lut_ram;
        to_queue = LOOKUP_LATENCY + block;
    }

    // ------------------------------------------------------------------ accounts

    // Charge the PEs without work of all cycles before `until`.
    void account(Time until, Reason outer) {
        if (accounted >= until) return;
        int64_t cycles = 0;
        for (Pe& pe : pes) {
            if (pe.ends >= until - 1) continue;         // at work all the time
            pe.advance(until - 1, counting);
            if (pe.waiting) continue;
            const Time from = std::max(accounted, pe.ends + 1);
            if (from < until) cycles += until - from;
        }
        totals->reasons[reason == OUTER ? outer : reason] += cycles;
        accounted = until;
    }

    // The reason that applies from cycle `now` on.
    void charge(Time now, Reason next, Reason outer) {
        if (next == reason) return;
        account(now, outer);
        reason = next;
    }

    Reason reason_now() const {
        if (!tokens_level && rows) return FETCH;
        if (blocked) return IMBALANCE;
        return active || busy || (state == SELECT && filled) ? DRAIN : OUTER;
    }

    // ------------------------------------------------------------------ PEs

    // Whether all PEs have space in cycle `now`; else `sleep_until` is when to ask again.
    bool pes_have_space(Time now) {
        const int most = config->queue_depth - QUEUE_MARGIN;
        const Time age = now - hist_at;
        for (Pe& pe : pes) {
            if (pe.waiting <= most - 1) continue;       // at most one of them left in the cycle before
            pe.advance(now - 1, counting);
            const uint32_t in_flight = age > 3 ? 0 : (pe.pushes << age) & 15;
            const int level = pe.level(now, in_flight);
            if (level > most) {
                const bool recent = pe.popped >= now - 1;
                times->sleep_until = recent && level - 1 <= most ? now + 1
                                                          : pe.space_from(level - most - recent, counting);
                if (times->sleep_until <= now) times->sleep_until = now + 1;
                return false;
            }
        }
        return true;
    }

    void fire(Time now, Reason outer) {
        account(now, outer);
        const ExpanderToken token = tokens[tokens_head % TOKEN_QUEUE];
        ++tokens_head;
        const Time age = now - hist_at;
        hist_at = now + 1;
        const int count = config->pes;
        accounted = now + LOOKUP_LATENCY + 1;
        auto remember = [&](Pe& pe, bool pushed) { pe.pushes = (age > 3 ? 0 : pe.pushes << (age + 1)) | pushed; };
        if (token.end) {
            for (Pe& pe : pes) {
                pe.push({now + to_queue, 1, 1, static_cast<int8_t>(token.context)});
                remember(pe, true);
            }
            Row& row = *context_row[token.context];
            if (config->psum_in_pe) {
                stays[token.context] = &row;
                if (row.final) owed[row.slot] = 1;
                times->retire_at = std::min(times->retire_at, now + 1);
                auto& sums = kept[row.slot];
                for (int n = 0; n < count; ++n) {
                    sums[static_cast<size_t>(n)] = touched[token.context][n] | (row.first ? 0 : sums[static_cast<size_t>(n)]);
                }
                return;
            }
            ends_sent |= 1u << token.context;
            times->drain_at = std::min(times->drain_at, now + 1);
            return;
        }
        totals->token = true;
        ++totals->tokens;
        const size_t base = static_cast<size_t>((token.bank * config->k_depth + token.k) * count);
        const uint32_t* own_mask = column_mask[token.context];
        for (int n = 0; n < count; ++n) {
            Pe& pe = pes[static_cast<size_t>(n)];
            if (token.nonzero) touched[token.context][n] |= b_nonzero[base + static_cast<size_t>(n)];
            uint32_t wanted = ~0u;
            int service, tail;
            if (counting) {
                service = last_slot[token.bank] + 1;
                tail = service;
            } else {
                if (config->skip_b) wanted &= b_mask[base + static_cast<size_t>(n)];
                if (config->skip_c) wanted &= own_mask[n];
                service = std::popcount(wanted);
                if (!service) {
                    remember(pe, false);
                    continue;
                }
                tail = std::popcount(wanted >> ((31 - std::countl_zero(wanted)) & ~3));
            }
            totals->multiplies += service;
            pe.push({now + to_queue, static_cast<uint8_t>(service), static_cast<uint8_t>(tail), -1});
            remember(pe, true);
        }
    }

    // Rows whose END has been issued by all PEs before `now` and whose sums stay.
    void retire(Time now) {
        times->retire_at = NEVER;
        for (int n = 0; n < config->rings; ++n) {
            if (!stays[n]) continue;
            Time done = 0;
            for (Pe& pe : pes) {
                pe.advance(now - 1, counting);
                done = std::max(done, pe.done_from(n));
            }
            if (done > now) {
                times->retire_at = std::min(times->retire_at, done);
                continue;
            }
            Row* row = stays[n];
            stays[n] = nullptr;
            for (Pe& pe : pes) pe.done[n] = NEVER;
            --rows_of_bank[row->bank];
            times->sleep_until = 0;
            if (row->final) {
                // the queue shows it a cycle later, in block RAM two
                finished_rows[finished_end++ % finished_rows.size()] = {row, now + 1 + block};
                times->drain_at = std::min(times->drain_at, now + 1 + block);
                ++undrained;
            } else {
                totals->finished = true;
            }
        }
    }

    // ------------------------------------------------------------------ FIFO and expander

    void write(int ring, const Word& word) {
        ram[static_cast<size_t>(ring) * ring_words + (written[ring] & (ring_words - 1))] = word;
        ++written[ring];
        times->sleep_until = 0;
    }

    void start_row(Row* row) {
        context_row[reading] = row;
        for (int n = 0; n < config->pes; ++n) {
            uint32_t mask = 0;
            for (int slot = 0; slot < config->slots; ++slot) {
                const int column = slot * config->pes + n;
                mask |= (row->mask[column >> 5] >> (column & 31) & 1) << slot;
            }
            column_mask[reading][n] = mask;
            touched[reading][n] = 0;
        }
    }

    // Whether the token that leaves now is the END of a row whose sums stay in the PEs, so that its context is free.
    bool fires_and_stays(bool space) const {
        return space && config->psum_in_pe && tokens[tokens_head % TOKEN_QUEUE].end;
    }

    // One cycle; `release` has a bit for every context that the drain gives free in it.
    template <int rings_count>
    void step(Time now, uint32_t release, Reason outer);
};

}  // namespace maskwork
