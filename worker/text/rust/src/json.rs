//! JSON text as Python's `json.dumps` writes it, which is what chat templates were written and models trained against.

use std::io;

use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use serde_json::Value;

use crate::failure::Failure;

pub struct Style {
    /// Spaces per level; None is one line.
    pub indent: Option<usize>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
    pub ascii_only: bool,
}

impl Default for Style {
    fn default() -> Self {
        Style {
            indent: None,
            item_separator: ", ".to_string(),
            key_separator: ": ".to_string(),
            sort_keys: false,
            ascii_only: false,
        }
    }
}

/// One line, with separators of the caller's choice.
struct Line<'a> {
    style: &'a Style,
}

impl Formatter for Line<'_> {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            return Ok(());
        }
        writer.write_all(self.style.item_separator.as_bytes())
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.style.key_separator.as_bytes())
    }
}

fn write<F: Formatter>(value: &Value, formatter: F) -> Result<String, Failure> {
    use serde::Serialize;
    let mut bytes = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
        .map_err(Failure::invalid)?;
    String::from_utf8(bytes).map_err(Failure::invalid)
}

/// Non-ASCII characters as \uXXXX, in UTF-16 as JSON has it.
fn escape_non_ascii(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii() {
            escaped.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            escaped.push_str(&format!("\\u{unit:04x}"));
        }
    }
    escaped
}

pub fn dumps(mut value: Value, style: &Style) -> Result<String, Failure> {
    if style.sort_keys {
        value.sort_all_objects();
    }
    let text = match style.indent {
        Some(width) => write(&value, PrettyFormatter::with_indent(" ".repeat(width).as_bytes()))?,
        None => write(&value, Line { style })?,
    };
    Ok(if style.ascii_only { escape_non_ascii(&text) } else { text })
}
