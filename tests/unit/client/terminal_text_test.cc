// What a server may show on a terminal, and what counts as UTF-8.
#include <gtest/gtest.h>

#include "client/terminal_text.h"

namespace qserve::client {
namespace {

TEST(SafeForTerminal, LeavesTextAlone) {
  const std::string text = "a\tb\nGr\u00fc\u00dfe \u4f60\u597d \U0001f600";
  EXPECT_EQ(SafeForTerminal(text), text);
  EXPECT_EQ(SafeForTerminal(""), "");
}

TEST(SafeForTerminal, EscapesWhatCommandsATerminal) {
  EXPECT_EQ(SafeForTerminal("\x1b[2Jx"), "\\x1b[2Jx");
  EXPECT_EQ(SafeForTerminal("over\rwritten\b\x7f"), "over\\x0dwritten\\x08\\x7f");
  EXPECT_EQ(SafeForTerminal(std::string("\0", 1)), "\\x00");
  EXPECT_EQ(SafeForTerminal("\u009b2J"), "\\u{9b}2J");    // the C1 form of ESC [
  EXPECT_EQ(SafeForTerminal("a\u202eb"), "a\\u{202e}b");  // right-to-left override
}

TEST(SafeForTerminal, EscapesBytesThatAreNoUtf8) {
  EXPECT_EQ(SafeForTerminal("a\xff\xc3"), "a\\xff\\xc3");
  EXPECT_EQ(SafeForTerminal("\xe2\x82z"), "\\xe2\\x82z");
  // A lone continuation byte that a terminal of one byte a character would obey.
  EXPECT_EQ(SafeForTerminal("\x9b"), "\\x9b");
}

TEST(OneLine, HasNoNewlines) { EXPECT_EQ(OneLine("a\nb\tc\x1b"), "a b c\\x1b"); }

TEST(IsUtf8, FollowsTheStandard) {
  EXPECT_TRUE(IsUtf8(""));
  EXPECT_TRUE(IsUtf8("abc \u00e9 \u20ac \U0010ffff"));
  EXPECT_FALSE(IsUtf8("\xc0\xaf"));          // overlong
  EXPECT_FALSE(IsUtf8("\xe0\x80\xaf"));      // overlong
  EXPECT_FALSE(IsUtf8("\xed\xa0\x80"));      // surrogate
  EXPECT_FALSE(IsUtf8("\xf4\x90\x80\x80"));  // above U+10FFFF
  EXPECT_FALSE(IsUtf8("\xe2\x82"));          // cut off
  EXPECT_FALSE(IsUtf8("\x80"));
}

}  // namespace
}  // namespace qserve::client
