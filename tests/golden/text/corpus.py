"""Texts for make_text_goldens.py: what the small tokenizers are trained on, and what is encoded with them."""

TRAINING = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps, and the fox is gone before the sun is up.",
    "A server that is asked for a completion reads the prompt, runs the model, and streams the answer back.",
    "There is no place like the place where there is nothing to do and all the time to do it in.",
    "What does the function return? It returns the number of tokens that were read, or an error.",
    "def main(arguments):\n    for index, value in enumerate(arguments):\n        print(index, value)\n    return 0\n",
    "int main(int argc, char** argv) {\n  for (int i = 0; i < argc; ++i) {\n    std::printf(\"%s\\n\", argv[i]);\n  }\n}\n",
    "Les élèves étaient à l'école; l'été, ils allaient à la plage où il faisait très chaud.",
    "Der Müller mahlt das Korn, während die Bäckerin früh über die Brücke zum Markt läuft.",
    "今天天气很好，我们去公园散步。今天我们学习中文。你好，世界！",
    "こんにちは、世界。今日は天気がいいですね。",
    "Привет, мир! Сегодня хорошая погода, и мы идём гулять.",
    "In 2024 there were 366 days, in 2023 only 365; 1000000 is one million and 3.14159 is nearly pi.",
    "It's what they'd said we'll do, isn't it? I'm sure you've seen that they're here.",
    "system user assistant message content role tool question answer instruction response",
]

TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    " leading space",
    "trailing space ",
    "two  spaces,   three,    four",
    "tabs\tand\t\ttabs\nnewline\n\ntwo newlines\r\nwindows",
    "    \n        \n",
    "It's what THEY'LL say, isn't it?",
    "élèves à l'école, naïve café",
    "e\u0301le\u0300ves cafe\u0301 A\u030a",
    "Stra\u00dfe \u0130stanbul \ufb01ne \u2460 \uff21\uff22\uff23",
    "今天天气很好，我们去公园散步。",
    "日本語とEnglishの混在テキスト",
    "Привет, мир! 한국어 텍스트 עברית العربية हिन्दी",
    "\U0001f600 smile, \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family, \U0001f1eb\U0001f1f7 flag, \U0001f44d\U0001f3fd thumbs",
    "def f(x):\n    return {\"a\": [1, 2.5, None], 'b': x ** 2}  # comment\n",
    "if (a && b || !c) { x <<= 2; y->z[0] = ~0x1F; }",
    "0 1 12 123 1234 12345 1234567890 3.14159e-10",
    "control \x00 \x01 \x1b[31m \x7f \u0085 \u00a0 nbsp",
    "\u200b zero width \ufeff bom \u2028 separators \u2029",
    "private \ue000 \U000f0000 \U0010fffd use",
    "replacement \ufffd character \ufffd\ufffd",
    "http://example.org/a?b=c&d=e#f user@example.org",
    "wordwordwordwordwordwordwordwordwordword " * 4,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\u2581 looks like a space \u2581\u2581",
    "<0x41> is not a byte, <s is not a token, <|im_ nor this|>",
]


def special_texts(specials):
    """Texts that spell the special tokens of a tokenizer."""
    first, last = specials[0], specials[-1]
    return [
        first,
        f"{first}{last}",
        f"before {last} after",
        f"{last} start and end {first}",
        f"  {last}  ",
        f"glued{last}together{first}now",
        f"{last[:-1]} {last[1:]} {last[:2]}{last}{last[2:]}",
        f"多{last}语\n{first}\n",
    ]
