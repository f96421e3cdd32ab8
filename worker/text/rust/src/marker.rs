//! Marks special tokens that untrusted text spells, so that the tokenizer takes them for ordinary text.
//!
//! A marker is one private-use character that occurs nowhere else in the text at hand. It is put after the first character of
//! every special token spelled by untrusted text, which keeps the tokenizer's added-token search from finding it, survives
//! template filters such as `trim`, and is taken out again after that search (tokenizer.rs), before pre-tokenization. The
//! tokens of all other text are therefore exactly those of the unmarked text.

use std::collections::HashSet;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::failure::Failure;

/// Supplementary Private Use Area-A: text has these only on purpose.
const FIRST_MARKER: u32 = 0xF0000;
const LAST_MARKER: u32 = 0xFFFFD;

/// Finds the spellings of a tokenizer's special tokens. Immutable.
pub struct SpecialFinder {
    automaton: Option<AhoCorasick>,
    /// Bytes of the first character of each pattern.
    first_sizes: Vec<usize>,
    /// Proper, non-empty beginnings of the special tokens.
    prefixes: HashSet<String>,
    longest_prefix: usize,
}

impl SpecialFinder {
    /// Tokens of a single character cannot be broken by a marker and are left out.
    pub fn new<'a>(specials: impl Iterator<Item = &'a str>) -> Result<Self, Failure> {
        let specials: Vec<&str> = specials.filter(|token| token.chars().nth(1).is_some()).collect();
        let mut prefixes = HashSet::new();
        for token in &specials {
            for (at, _) in token.char_indices().skip(1) {
                prefixes.insert(token[..at].to_string());
            }
        }
        let automaton = if specials.is_empty() {
            None
        } else {
            // Standard matching reports overlapping occurrences too: each of them must be broken.
            let built = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&specials);
            Some(built.map_err(Failure::invalid)?)
        };
        Ok(SpecialFinder {
            automaton,
            first_sizes: specials.iter().map(|token| first_size(token)).collect(),
            longest_prefix: prefixes.iter().map(String::len).max().unwrap_or(0),
            prefixes,
        })
    }

    /// Byte offsets where a marker belongs in `text`, ascending and unique; empty for nearly all text.
    fn cuts(&self, text: &str) -> Vec<usize> {
        let Some(automaton) = &self.automaton else { return Vec::new() };
        let mut cuts: Vec<usize> = automaton
            .find_overlapping_iter(text)
            .map(|found| found.start() + self.first_sizes[found.pattern().as_usize()])
            .collect();
        // A beginning of a special token at the very end could be completed by whatever follows it after rendering.
        let tail_start = text.len().saturating_sub(self.longest_prefix);
        for (at, _) in text.char_indices().rev().take_while(|(at, _)| *at >= tail_start) {
            if self.prefixes.contains(&text[at..]) {
                cuts.push(at + first_size(&text[at..]));
            }
        }
        cuts.sort_unstable();
        cuts.dedup();
        cuts
    }

    /// `text` with markers, or None when it needs none.
    pub fn mark(&self, text: &str, marker: char) -> Option<String> {
        let cuts = self.cuts(text);
        if cuts.is_empty() {
            return None;
        }
        let mut marked = String::with_capacity(text.len() + cuts.len() * marker.len_utf8());
        let mut done = 0;
        for cut in cuts {
            marked.push_str(&text[done..cut]);
            marked.push(marker);
            done = cut;
        }
        marked.push_str(&text[done..]);
        Some(marked)
    }
}

fn first_size(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

/// Collects the private-use characters of all text that a marker must differ from, then picks one.
#[derive(Clone, Default)]
pub struct MarkerChoice {
    taken: HashSet<u32>,
}

impl MarkerChoice {
    pub fn avoid(&mut self, text: &str) {
        // A four-byte lead of this area is F3; most text has none, and bytes are scanned faster than characters.
        if text.as_bytes().contains(&0xF3) {
            let private = |c: &u32| (FIRST_MARKER..=LAST_MARKER).contains(c);
            self.taken.extend(text.chars().map(u32::from).filter(private));
        }
    }

    pub fn choose(&self) -> Result<char, Failure> {
        (FIRST_MARKER..=LAST_MARKER)
            .find(|candidate| !self.taken.contains(candidate))
            .and_then(char::from_u32)
            .ok_or_else(|| Failure::limit("text uses every private-use character"))
    }
}
