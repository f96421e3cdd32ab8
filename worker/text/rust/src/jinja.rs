//! The Jinja environment of chat templates: what `transformers` gives them, beyond Jinja itself. Used by template.rs.

use std::cell::Cell;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{escape_formatter, Environment, Error, ErrorKind, Output, State};

use crate::json::{dumps, Style};

/// A template's own refusal (`raise_exception`), told from a template's failure by its type in the error's source chain.
#[derive(Debug)]
pub struct Raised(pub String);

impl std::fmt::Display for Raised {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

thread_local! {
    /// The caller's clock during a render; a template that asks for the date must get it from there.
    static NOW: Cell<i64> = const { Cell::new(0) };
}

pub fn set_now(unix_seconds: i64) {
    NOW.with(|now| now.set(unix_seconds));
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message)))
}

/// Longest formatted date, and so the largest `strftime` format times its widest directive.
const MAX_DATE_BYTES: usize = 512;

fn strftime_now(format: String) -> Result<String, Error> {
    let bad = || Error::new(ErrorKind::InvalidOperation, "strftime_now: bad or too long format");
    if format.is_empty() {
        return Ok(format);
    }
    let format = std::ffi::CString::new(format).map_err(|_| bad())?;
    let seconds: libc::time_t = NOW.with(Cell::get);
    let mut buffer = [0u8; MAX_DATE_BYTES];
    // SAFETY: `time` is plain data that gmtime_r fills; strftime writes at most the buffer's size and says how much.
    let size = unsafe {
        let mut time: libc::tm = std::mem::zeroed();
        if libc::gmtime_r(&seconds, &mut time).is_null() {
            return Err(bad());
        }
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), format.as_ptr(), &time)
    };
    if size == 0 {
        return Err(bad());
    }
    String::from_utf8(buffer[..size].to_vec()).map_err(|_| bad())
}

fn tojson(value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let mut style = Style {
        indent: kwargs.get::<Option<usize>>("indent")?,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ascii_only: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        ..Style::default()
    };
    if style.indent.is_some_and(|width| width > 64) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: indent is too large"));
    }
    if let Some(separators) = kwargs.get::<Option<Vec<String>>>("separators")? {
        let [item, key] = <[String; 2]>::try_from(separators).map_err(|_| {
            Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two strings")
        })?;
        style.item_separator = item;
        style.key_separator = key;
    }
    kwargs.assert_all_used()?;
    let failed = |message: String| Error::new(ErrorKind::BadSerialization, message);
    let value = serde_json::to_value(&value).map_err(|error| failed(error.to_string()))?;
    dumps(value, &style).map(Value::from_safe_string).map_err(|failure| failed(failure.message))
}

/// Python spells these three differently from JSON.
fn print_like_python(out: &mut Output, state: &State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.write_str("None").map_err(Error::from),
        ValueKind::Bool => {
            out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from)
        }
        _ => escape_formatter(out, state, value),
    }
}

pub fn new_environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(print_like_python);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    environment
}

/// `{% generation %}` marks what training may learn from; in serving it is a block that changes nothing.
pub fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(size) = rest[start..].find("%}") else { break };
        let (tag, after) = rest[start..].split_at(size);
        result.push_str(&rest[..start]);
        match tag[2..].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => result.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => result.push_str(&tag.replace("endgeneration", "endif")),
            _ => result.push_str(tag),
        }
        rest = after;
    }
    result.push_str(rest);
    result
}
