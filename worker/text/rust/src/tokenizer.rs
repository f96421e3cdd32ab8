//! A Hugging Face tokenizer: loading, encoding with and without parsing of special tokens, decoding. Immutable.

use std::collections::HashSet;

use tokenizers::{Model, OffsetType, PreTokenizer, Token};

use crate::failure::Failure;
use crate::marker::{MarkerChoice, SpecialFinder};

/// No vocabulary comes near; a file that claims more is broken, and tables below are sized by it.
const MAX_VOCAB_SIZE: u32 = 1 << 24;

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Whether each id below the vocabulary size has a token.
    known: Vec<bool>,
    special_ids: Vec<u32>,
    /// Special ids that ordinary text may not give: all but those the model uses for unknown text.
    control_ids: HashSet<u32>,
    finder: SpecialFinder,
}

fn failure(error: Box<dyn std::error::Error + Send + Sync>) -> Failure {
    Failure::invalid(error)
}

/// `known[id]` for every id of the vocabulary, or an error for ids beyond reason.
fn known_ids(inner: &tokenizers::Tokenizer) -> Result<Vec<bool>, Failure> {
    let vocab = inner.get_vocab(true);
    let highest = vocab.values().copied().max();
    let size = match highest {
        Some(id) if id >= MAX_VOCAB_SIZE => {
            return Err(Failure::invalid(format!("token id {id} is beyond {MAX_VOCAB_SIZE}")))
        }
        Some(id) => id + 1,
        None => return Err(Failure::invalid("the vocabulary is empty")),
    };
    let mut known = vec![false; size as usize];
    for id in vocab.into_values() {
        known[id as usize] = true;
    }
    Ok(known)
}

impl Tokenizer {
    pub fn from_json(json: &[u8]) -> Result<Self, Failure> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(failure)?;
        // Lengths are the caller's business: a prompt is refused, never silently cut.
        inner.with_truncation(None).map_err(failure)?;
        inner.with_padding(None);
        let known = known_ids(&inner)?;

        let added = inner.get_added_vocabulary();
        let mut specials: Vec<(u32, &str)> = added
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| added.is_special_token(&token.content))
            .map(|(id, token)| (*id, token.content.as_str()))
            .collect();
        specials.sort_unstable();
        let finder = SpecialFinder::new(specials.iter().map(|(_, content)| *content))?;
        let special_ids: Vec<u32> = specials.iter().map(|(id, _)| *id).collect();

        // A character that no vocabulary has shows which special ids stand for unknown text (if any).
        let unknown = inner.get_model().tokenize("\u{10FFFF}").unwrap_or_default();
        let mut control_ids: HashSet<u32> = special_ids.iter().copied().collect();
        for token in unknown {
            control_ids.remove(&token.id);
        }
        Ok(Tokenizer { inner, known, special_ids, control_ids, finder })
    }

    pub fn vocab_size(&self) -> u32 {
        self.known.len() as u32
    }

    pub fn special_ids(&self) -> &[u32] {
        &self.special_ids
    }

    pub fn finder(&self) -> &SpecialFinder {
        &self.finder
    }

    pub fn encode(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, Failure> {
        if !parse_special {
            let mut choice = MarkerChoice::default();
            choice.avoid(text);
            let marker = choice.choose()?;
            if let Some(marked) = self.finder.mark(text, marker) {
                return self.encode_marked(&marked, marker, add_special);
            }
        }
        let encoding = self.inner.encode_fast(text, add_special).map_err(failure)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Encodes text in which `marker` breaks the special tokens that are not to be parsed (marker.rs). The steps are those of
    /// `tokenizers::TokenizerImpl::encode`, with the markers taken out between the search for added tokens and the rest.
    pub fn encode_marked(
        &self,
        text: &str,
        marker: char,
        add_special: bool,
    ) -> Result<Vec<u32>, Failure> {
        let inner = &self.inner;
        let mut pieces =
            inner.get_added_vocabulary().extract_and_normalize(inner.get_normalizer(), text);
        pieces.normalize(|piece| piece.replace(marker, "")).map_err(failure)?;
        if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(failure)?;
        }
        pieces.tokenize(|piece| self.plain_tokens(piece.get())).map_err(failure)?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::None).map_err(failure)?;
        let encoding = inner.post_process(encoding, None, add_special).map_err(failure)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The model's tokens of `text`, none of them a control token: a vocabulary may be able to merge up to one, and then its
    /// first character is tokenized apart from its rest.
    fn plain_tokens(&self, text: &str) -> tokenizers::Result<Vec<Token>> {
        let mut plain = Vec::new();
        for token in self.inner.get_model().tokenize(text)? {
            if !self.control_ids.contains(&token.id) {
                plain.push(token);
                continue;
            }
            let spelled = text.get(token.offsets.0..token.offsets.1).unwrap_or_default();
            let first = spelled.chars().next().map_or(0, char::len_utf8);
            if first == 0 || first == spelled.len() {
                return Err(format!("text spells the control token {}", token.id).into());
            }
            plain.extend(self.inner.get_model().tokenize(&spelled[..first])?);
            plain.extend(self.plain_tokens(&spelled[first..])?);
        }
        Ok(plain)
    }

    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, Failure> {
        if let Some(id) = ids.iter().find(|id| !self.has(**id)) {
            return Err(self.no_token(*id));
        }
        self.inner.decode(ids, skip_special).map_err(failure)
    }

    pub fn id_to_token(&self, id: u32) -> Result<String, Failure> {
        self.inner.id_to_token(id).ok_or_else(|| self.no_token(id))
    }

    pub fn token_to_id(&self, token: &str) -> Result<u32, Failure> {
        self.inner.token_to_id(token).ok_or_else(|| Failure::invalid("no such token"))
    }

    fn has(&self, id: u32) -> bool {
        self.known.get(id as usize).copied().unwrap_or(false)
    }

    fn no_token(&self, id: u32) -> Failure {
        Failure::invalid(format!(
            "token id {id} is not in the vocabulary of {} ids",
            self.known.len()
        ))
    }
}
