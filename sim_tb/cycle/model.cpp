// Cycle model of the generated accelerator: command words in, cycles and counters out. engine.py loads it.

#include "sequencer.hpp"

#define MW_API extern "C" __attribute__((visibility("default")))

using maskwork::Model;

namespace {
thread_local std::string message;
}

MW_API int mw_cycle_run(const maskwork::Config* config, const uint32_t* words, const uint8_t* lasts, int64_t beats,
                        const uint32_t* results, int64_t limit, maskwork::Result* result) {
    try {
        auto model = std::make_unique<Model>(*config, results);
        model->run(words, lasts, beats, limit);
        *result = model->result;
        return 0;
    } catch (const maskwork::BankOverflow& error) {
        message = error.what();
        return 2;
    } catch (const std::exception& error) {
        message = error.what();
        return 1;
    }
}

MW_API const char* mw_cycle_message() { return message.c_str(); }
