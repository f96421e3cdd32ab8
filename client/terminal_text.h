// Text of others on its way to a terminal, and text of ours on its way to a server. Pure; any
// thread.
#pragma once

#include <string>
#include <string_view>

namespace qserve::client {

// `text` with everything escaped that could do more to a terminal than show itself: control
// characters but newline and tab (\x1b), C1 controls and marks that reorder text (\u{202e}), bytes
// that are no UTF-8 (\xff). Everything else is unchanged.
std::string SafeForTerminal(std::string_view text);

// The same, and newlines and tabs become spaces: for messages of one line.
std::string OneLine(std::string_view text);

// RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF.
bool IsUtf8(std::string_view text);

}  // namespace qserve::client
