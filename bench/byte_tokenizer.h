// A tokenizer.json in which every byte is a token (ids 0-255), so that a random checkpoint can be
// served like any other. Called by make_model.cc.
#pragma once

#include <string>

namespace qserve::bench {

std::string ByteTokenizerJson();
std::string ByteTokenizerConfigJson();

}  // namespace qserve::bench
