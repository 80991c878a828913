// A lane: its FIFO of row words, PEs and drain (rtl/lane.py, lane_fifo.py, drain.py), and what its cluster's lanes
// share. The control between FIFO and PEs is in front.hpp, for all lanes at once.
#pragma once

#include "pe.hpp"

namespace maskwork {

enum Reason { FETCH, IMBALANCE, DRAIN, LOAD, DISPATCH, IDLE, OUTER };   // OUTER: one of the three before, see Cluster
constexpr int REASONS = 6;

constexpr int TOKEN_RING = 32;      // tokens queued and staged, and those of a chunk
constexpr int DRAIN_LATENCY = 9;    // rtl/drain.py
constexpr int STEAL_LATENCY = 2;    // rtl/drain.py: from a column to the issue slot that it takes

using Lanes = uint64_t;             // a bit a lane of a Front

enum class PostKind : uint8_t { START, VALUE, END, NONE };

// A word on its way from a drain to post-processing.
struct alignas(4) PostWord {
    PostKind kind = PostKind::NONE;
    bool nonzero = false, post = false;
};

// A word of a drain's pipeline, with what it needs of its row.
struct alignas(8) DrainWord {
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
    Time retire_at = NEVER;             // no Shared::retire_at is before
};

enum DrainState : uint8_t { D_SCRUB, D_IDLE, D_META, D_ROW, D_REQUEST, D_MASK, D_COLUMNS, D_NEXT };

// The columns of a row that a drain comes to (see drain.hpp).
struct Columns {
    DrainState state = D_SCRUB;
    bool given = false;
    int part = 0;                       // of the row's mask
    BitIterator iterator;
};

// What a drain does ahead of time from the first column of a row on, which depends on the row's mask alone.
struct Plan {
    bool known = false;
    uint32_t mask[MASK_WORDS];
    Columns end;
    Time cycles, first;                 // how many, and up to the first column
    std::array<uint64_t, MAX_PES> taken;
    uint64_t values;
};

// Values of a row by the cycles in which they leave a drain's pipeline, from the first one on, a bit a cycle.
struct Values {
    bool post = false;
    Time first = 0;
    uint64_t present = 0, nonzero = 0;

    bool at(Time time) const { return time >= first && time < first + Stolen::SIZE && (present >> (time - first) & 1); }
    PostWord word_at(Time time) const {
        if (!at(time)) return {};
        return {PostKind::VALUE, (nonzero >> (time - first) & 1) != 0, post};
    }
};

// What the lanes of a cluster share.
struct Shared {
    Plan plan;                          // of the last row whose columns followed each other from column 0 on
    int bank_rows[2] = {};              // rows in the lanes, by bank of the weights
    int undrained = 0;                  // rows whose sums stayed, whose last word has not left
    int drained_lane = -1;              // in this cycle: its drain has ended a row whose sums stayed
    Reason outer = IDLE;
    uint32_t drains = 0;                // lanes whose drains do something in the next cycle
    Time drain_at = 0;                  // when another one has to be looked at again, at the earliest
    std::array<Time, MAX_LANES> drains_at{};    // and when which one
    Time retire_at = NEVER;             // no row whose sums stay has left the PEs before
};

struct ExpanderToken {
    uint32_t weights;       // row of Lane::weights, which is of all PEs
    uint8_t context;
    bool end, nonzero;
};

// Weights of four PEs at one k: which are not skipped, and which are not 0.
struct Weights {
    Four mask, nonzero;
};

struct Lane {
    const Config* config;
    Totals* totals;
    Shared* shared;

    // ---- FIFO
    uint32_t at = 0, ring_words = 0;
    uint32_t written[MAX_RINGS] = {}, taken[MAX_RINGS] = {};
    std::vector<Word> ram;
    Word head{};
    int reading = 0, header_index = 0;

    // ---- expander: its tokens, those of a chunk from the chunk's first cycle on
    unsigned tokens_head = 0, tokens_end = 0;
    ExpanderToken tokens[TOKEN_RING] = {};

    // ---- PEs
    Reason reason = OUTER;
    Time accounted = 0;                 // all cycles before have been charged
    Pes pes;

    // ---- weights by bank, k and PEs
    std::vector<Weights> weights;
    size_t fours = 1;                   // of PEs
    int last_slot[2] = {};

    // ---- rows
    const uint32_t* results = nullptr;  // bitmaps of result rows, or null: what was added to is not 0
    int number = 0;                     // in its cluster
    Row* context_row[MAX_RINGS] = {};
    uint32_t column_mask[MAX_RINGS][MAX_PES] = {};
    uint32_t row_mask[MAX_RINGS][MASK_WORDS] = {};      // that column_mask is of
    uint32_t touched[MAX_RINGS][MAX_PES] = {};
    std::vector<std::array<uint32_t, MAX_PES>> kept;    // touched, of partial sums
    uint32_t ends_sent = 0;             // contexts whose END token has left for the PEs, and drains the row
    // psum_in_pe: rows whose END token has left for the PEs, where their sums stay, by context
    Row* stays[MAX_RINGS] = {};
    Time retire_at = NEVER;
    std::vector<std::pair<Row*, Time>> finished_rows;   // to be drained, and from when on, as a ring by their number
    unsigned finished_head = 0, finished_end = 0;
    std::vector<uint8_t> owed;          // slots that hold results

    // ---- drain (see drain.hpp)
    Time drain_again = 0;               // its next cycle, when it has been stepped
    bool active = false;                // from ROW to COLUMNS
    int idle_context = 0;               // context looked at in cycle `idle_since`, the next one a cycle later
    Time idle_since = 0;
    int drain_context = 0, scrub_count = 0;
    int part_width = 0, parts = 0;      // of a row's mask, as the iterator takes it
    bool go = false;
    Columns columns;
    Row drain_row{};
    std::array<uint32_t, MAX_PES> drain_touched{};
    // cycles of it that are over ahead of time (see drain.hpp): from one to another, and its state before
    struct Ahead {
        Time from = 0, until = 0;
        Columns columns;
        bool interrupted = false;
        Values values;
    } ahead;
    DrainWord drain_line[16];           // on their way, by the cycle in which they leave
    Time drain_line_until = LONG_AGO;

    void create(const Config& c, Totals& t, int n, Shared& s, Time now) {
        shared = &s;
        config = &c;
        totals = &t;
        number = n;
        ring_words = static_cast<unsigned>(c.fifo_depth / c.rings);
        ram.resize(static_cast<size_t>(c.fifo_depth));
        pes.create(c, now, t.stolen);
        fours = static_cast<size_t>(Pes::padded(c.pes) / FOUR);
        part_width = std::min(16, c.columns());
        parts = c.columns() / part_width;
        kept.resize(static_cast<size_t>(c.psum_rows));
        owed.assign(kept.size(), 0);
        finished_rows.resize(kept.size());
        const Four present = same(c.skip_b ? 0 : -1);
        for (auto& masks : column_mask) std::fill(std::begin(masks), std::end(masks), c.skip_c ? 0 : ~0u);
        weights.assign(static_cast<size_t>(2 * c.k_depth) * fours, {present, Four{}});
    }

    void wake_drain(Time time) {
        Time& own = shared->drains_at[static_cast<size_t>(number)];
        own = std::min(own, time);
        shared->drain_at = std::min(shared->drain_at, time);
    }

    // ------------------------------------------------------------------ accounts

    // Charge the PEs without work of all cycles before `until`.
    void account(Time until) {
        if (until > pes.idle_from && until > accounted) {
            totals->reasons[reason == OUTER ? shared->outer : reason] += pes.idle_cycles(accounted, until);
        }
        accounted = std::max(accounted, until);
    }

    // See Pes; what is charged does not look back so far.
    void bring_near(Time now) {
        if (now - accounted > FAR / 2) account(now);
        pes.bring_near(now);
    }

    // ------------------------------------------------------------------ PEs

    // The oldest token leaves for the PEs.
    void fire(Time now, const ExpanderToken& token) {
        account(now);
        ++tokens_head;
        accounted = now + LOOKUP_LATENCY + 1;
        if (token.end) fire_end(now, token.context);
        else fire_value(now, token);
    }

    // What the next token needs comes near, as it was used long ago.
    void fetch_next() const {
        __builtin_prefetch(weights.data() + tokens[tokens_head % TOKEN_RING].weights * fours);
        pes.fetch_next();
    }

    void fire_end(Time now, int context) {
        const auto count = static_cast<size_t>(config->pes);
        Pes::Sender(pes, now).end(context);
        Row& row = *context_row[context];
        if (!config->psum_in_pe) {
            ends_sent |= 1u << context;
            wake_drain(now + 1);
            return;
        }
        stays[context] = &row;
        if (row.final) owed[row.slot] = 1;
        retire_from(now + 1);
        auto& sums = kept[row.slot];
        for (size_t n = 0; n < count; ++n) sums[n] = touched[context][n] | (row.first ? 0 : sums[n]);
    }

    [[gnu::always_inline]] inline void fire_value(Time now, const ExpanderToken& token) {
        totals->token = true;
        ++totals->tokens;
        const Weights* const row = &weights[token.weights * fours];
        if (token.nonzero && !results) {
            uint32_t* of_context = touched[token.context];
            for (size_t n = 0; n < fours; ++n, of_context += FOUR) {
                put(of_context, four_at(of_context) | row[n].nonzero);
            }
        }
        Pes::Sender send(pes, now);
        if (pes.counting) {
            const int service = last_slot[token.weights >= static_cast<uint32_t>(config->k_depth)] + 1;
            for (int n = 0; n < config->pes; n += FOUR) {
                send(static_cast<size_t>(n) / FOUR, same(service) & pes.present(n), same(0));
            }
            totals->multiplies += service * config->pes;
            return;
        }
        const uint32_t* own_mask = column_mask[token.context];
        Four services = same(0);
        size_t n = 0;
        do {
            const Bits wanted = count_bits(row[n].mask & four_at(own_mask + FOUR * n));
            services += wanted.all;
            send(n, wanted.all, wanted.last);
        } while (++n < fours);
        totals->multiplies += sum_of(services);
    }

    // Rows may retire from a cycle on.
    void retire_from(Time time) {
        retire_at = std::min(retire_at, time);
        shared->retire_at = std::min(shared->retire_at, time);
        totals->retire_at = std::min(totals->retire_at, time);
    }

    // Rows whose END has been issued by all PEs before `now` and whose sums stay; whether there was one.
    bool retire(Time now) {
        retire_at = NEVER;
        bool any = false;
        for (int n = 0; n < config->rings; ++n) {
            if (!stays[n]) continue;
            const Time done = pes.done_from(n, now);
            if (done > now) {
                retire_at = std::min(retire_at, done);
                continue;
            }
            any = true;
            Row* row = stays[n];
            stays[n] = nullptr;
            --shared->bank_rows[row->bank];
            if (row->final) {
                // the queue shows it a cycle later, in block RAM two
                finished_rows[finished_end++ % finished_rows.size()] = {row, now + 1 + !config->lut_ram};
                wake_drain(now + 1 + !config->lut_ram);
                ++shared->undrained;
            } else {
                totals->finished = true;
            }
        }
        return any;
    }

    void start_row(Row* row) {
        context_row[reading] = row;
        std::fill(std::begin(touched[reading]), std::end(touched[reading]), 0);
        uint32_t(&known)[MASK_WORDS] = row_mask[reading];
        if (!config->skip_c || std::equal(known, known + config->mask_words(), row->mask)) return;
        std::copy(row->mask, row->mask + config->mask_words(), known);
        for (int n = 0; n < config->pes; ++n) {
            uint32_t mask = 0;
            for (int slot = 0; slot < config->slots; ++slot) {
                const int column = slot * config->pes + n;
                mask |= (row->mask[column >> 5] >> (column & 31) & 1) << slot;
            }
            column_mask[reading][n] = mask;
        }
    }
};

}  // namespace maskwork
