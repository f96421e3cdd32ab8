//! A chat template: compiled once, rendered per request under limits, tokenized so that untrusted strings cannot spell control
//! tokens. Immutable.

use std::error::Error as _;
use std::io;

use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::jinja::{new_environment, set_now, without_generation_tags, Raised};
use crate::marker::{MarkerChoice, SpecialFinder};
use crate::tokenizer::Tokenizer;

const NAME: &str = "chat_template";

pub struct Limits {
    pub fuel: u64,
    pub recursion: usize,
    pub max_output_size: usize,
}

/// One render's input, still as JSON (qserve_text.h says what is in each).
pub struct Input<'a> {
    pub context: &'a str,
    pub variables: &'a str,
    pub now_unix_seconds: i64,
}

pub struct Template {
    environment: Environment<'static>,
    max_output_size: usize,
    /// Characters that a marker must differ from whatever the request.
    own_text: MarkerChoice,
}

/// Takes rendered text up to a limit.
struct CappedWriter {
    bytes: Vec<u8>,
    max_size: usize,
    overflowed: bool,
}

impl io::Write for &mut CappedWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.len() > self.max_size - self.bytes.len() {
            self.overflowed = true;
            return Err(io::Error::other("the rendered text is too long"));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn object(json: &str) -> Result<Map<String, Value>, Failure> {
    serde_json::from_str(json)
        .map_err(|error| Failure::invalid(format!("template variables: {error}")))
}

fn failure(error: Error) -> Failure {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref::<Raised>() {
            return Failure::invalid(message);
        }
        source = cause.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return Failure::limit("chat template: too many instructions");
    }
    Failure::invalid(format!("chat template: {error}"))
}

impl Template {
    pub fn new(source: &str, globals: &str, limits: Limits) -> Result<Self, Failure> {
        let mut own_text = MarkerChoice::default();
        own_text.avoid(source);
        let mut environment = new_environment();
        environment.set_fuel(Some(limits.fuel));
        environment.set_recursion_limit(limits.recursion);
        for (name, value) in object(globals)? {
            visit_strings(&value, &mut |text| own_text.avoid(text));
            environment.add_global(name, minijinja::Value::from_serialize(value));
        }
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(failure)?;
        Ok(Template { environment, max_output_size: limits.max_output_size, own_text })
    }

    pub fn render(&self, input: Input) -> Result<String, Failure> {
        self.render_variables(self.variables(&input)?, input.now_unix_seconds)
    }

    pub fn tokenize(&self, tokenizer: &Tokenizer, input: Input) -> Result<Vec<u32>, Failure> {
        let mut variables = self.variables(&input)?;
        let mut choice = self.own_text.clone();
        for value in variables.values() {
            visit_strings(value, &mut |text| choice.avoid(text));
        }
        let marking = Marking { finder: tokenizer.finder(), marker: choice.choose()? };
        // The names of the variables are the template's, and so left alone.
        let mut marked = false;
        for value in variables.values_mut() {
            marked |= marking.apply(value);
        }
        let text = self.render_variables(variables, input.now_unix_seconds)?;
        if marked {
            tokenizer.encode_marked(&text, marking.marker, false)
        } else {
            tokenizer.encode(&text, false, true)
        }
    }

    /// The caller's and the client's variables in one, with the names that every template may look at.
    fn variables(&self, input: &Input) -> Result<Map<String, Value>, Failure> {
        let mut variables = object(input.context)?;
        if !input.variables.is_empty() {
            for (name, value) in object(input.variables)? {
                if variables.contains_key(&name)
                    || self.environment.globals().any(|(global, _)| global == name)
                {
                    return Err(Failure::invalid(format!(
                        "template variable '{name}' is reserved"
                    )));
                }
                variables.insert(name, value);
            }
        }
        for name in ["tools", "documents"] {
            variables.entry(name).or_insert(Value::Null);
        }
        Ok(variables)
    }

    fn render_variables(
        &self,
        variables: Map<String, Value>,
        now_unix_seconds: i64,
    ) -> Result<String, Failure> {
        set_now(now_unix_seconds);
        let mut writer =
            CappedWriter { bytes: Vec::new(), max_size: self.max_output_size, overflowed: false };
        let template = self.environment.get_template(NAME).map_err(failure)?;
        let rendered =
            template.render_captured_to(Value::Object(variables), &mut writer).map(|_| ());
        if writer.overflowed {
            let limit = self.max_output_size;
            return Err(Failure::limit(format!("chat template: more than {limit} bytes rendered")));
        }
        rendered.map_err(failure)?;
        String::from_utf8(writer.bytes).map_err(Failure::invalid)
    }
}

fn visit_strings(value: &Value, visit: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => visit(text),
        Value::Array(items) => items.iter().for_each(|item| visit_strings(item, visit)),
        Value::Object(fields) => fields.iter().for_each(|(key, item)| {
            visit(key);
            visit_strings(item, visit);
        }),
        _ => {}
    }
}

struct Marking<'a> {
    finder: &'a SpecialFinder,
    marker: char,
}

impl Marking<'_> {
    /// Marks every string in `value`, keys included; true when there was something to mark.
    fn apply(&self, value: &mut Value) -> bool {
        match value {
            Value::String(text) => match self.finder.mark(text, self.marker) {
                Some(marked) => {
                    *text = marked;
                    true
                }
                None => false,
            },
            Value::Array(items) => items.iter_mut().fold(false, |any, item| self.apply(item) | any),
            Value::Object(fields) => self.apply_fields(fields),
            _ => false,
        }
    }

    fn apply_fields(&self, fields: &mut Map<String, Value>) -> bool {
        let mut any = false;
        let old = std::mem::take(fields);
        for (key, mut item) in old {
            // A plain role is compared by templates and concatenated into control tokens by some ('<|' + role + '|>').
            if !(key == "role" && item.as_str().is_some_and(is_plain_word)) {
                any |= self.apply(&mut item);
            }
            // So are plain field names looked up.
            let marked =
                if is_plain_word(&key) { None } else { self.finder.mark(&key, self.marker) };
            any |= marked.is_some();
            fields.insert(marked.unwrap_or(key), item);
        }
        any
    }
}

fn is_plain_word(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}
