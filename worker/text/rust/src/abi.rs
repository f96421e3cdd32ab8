//! The C side of the library, one function per declaration of `qserve_text.h`. Each converts its arguments, calls safe code
//! under `catch`, and writes either the output or the error. All `unsafe` of the crate's own is here.

use std::slice;

use crate::failure::{catch, Failure};
use crate::template::{Input, Limits, Template};
use crate::tokenizer::Tokenizer;

#[repr(C)]
pub struct Bytes {
    data: *mut u8,
    size: usize,
}

#[repr(C)]
pub struct Ids {
    data: *mut u32,
    size: usize,
}

#[repr(C)]
pub struct TemplateLimits {
    fuel: u64,
    recursion: u64,
    max_output_size: u64,
}

#[repr(C)]
pub struct TemplateInput {
    context: *const u8,
    context_size: usize,
    variables: *const u8,
    variables_size: usize,
    now_unix_seconds: i64,
}

impl TemplateInput {
    unsafe fn borrow(&self) -> Result<Input<'_>, Failure> {
        Ok(Input {
            context: utf8(input(self.context, self.context_size))?,
            variables: utf8(input(self.variables, self.variables_size))?,
            now_unix_seconds: self.now_unix_seconds,
        })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(value: Vec<u8>) -> Self {
        let boxed = value.into_boxed_slice();
        let size = boxed.len();
        Bytes { data: Box::into_raw(boxed).cast(), size }
    }
}

impl From<Vec<u32>> for Ids {
    fn from(value: Vec<u32>) -> Self {
        let boxed = value.into_boxed_slice();
        let size = boxed.len();
        Ids { data: Box::into_raw(boxed).cast(), size }
    }
}

/// A borrowed input. The caller vouches that `size` items at `data` are readable for the call.
unsafe fn input<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if data.is_null() || size == 0 {
        &[]
    } else {
        slice::from_raw_parts(data, size)
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, Failure> {
    std::str::from_utf8(bytes).map_err(|error| {
        Failure::invalid(format!("text is not valid UTF-8 at byte {}", error.valid_up_to()))
    })
}

/// Runs `body` and stores its value in `*out` or its failure in `*error`; the return value is a `QserveTextCode`.
unsafe fn deliver<T>(
    out: *mut T,
    error: *mut Bytes,
    body: impl FnOnce() -> Result<T, Failure>,
) -> i32 {
    match catch(body) {
        Ok(value) => {
            out.write(value);
            0
        }
        Err(failure) => {
            error.write(Bytes::from(failure.message.into_bytes()));
            failure.code as i32
        }
    }
}

#[no_mangle]
pub unsafe extern "C" fn qserve_text_bytes_free(bytes: Bytes) {
    if !bytes.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(bytes.data, bytes.size)));
    }
}

#[no_mangle]
pub unsafe extern "C" fn qserve_text_ids_free(ids: Ids) {
    if !ids.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(ids.data, ids.size)));
    }
}

#[no_mangle]
pub unsafe extern "C" fn qserve_tokenizer_create(
    json: *const u8,
    json_size: usize,
    out: *mut *mut Tokenizer,
    error: *mut Bytes,
) -> i32 {
    let json = input(json, json_size);
    deliver(out, error, || Ok(Box::into_raw(Box::new(Tokenizer::from_json(json)?))))
}

#[no_mangle]
pub unsafe extern "C" fn qserve_tokenizer_destroy(tokenizer: *mut Tokenizer) {
    if !tokenizer.is_null() {
        let _ = catch(|| {
            drop(Box::from_raw(tokenizer));
            Ok(())
        });
    }
}

#[no_mangle]
pub unsafe extern "C" fn qserve_tokenizer_vocab_size(tokenizer: *const Tokenizer) -> u32 {
    (*tokenizer).vocab_size()
}

#[no_mangle]
pub unsafe extern "C" fn qserve_tokenizer_special_ids(
    tokenizer: *const Tokenizer,
    out: *mut Ids,
    error: *mut Bytes,
) -> i32 {
    let tokenizer = &*tokenizer;
    deliver(out, error, || Ok(Ids::from(tokenizer.special_ids().to_vec())))
}

#[no_mangle]
pub unsafe extern "C" fn qserve_tokenizer_encode(
    tokenizer: *const Tokenizer,
    text: *const u8,
    text_size: usize,
    add_special: i32,
    parse_special: i32,
    out: *mut Ids,
    error: *mut Bytes,
) -> i32 {
    let (tokenizer, text) = (&*tokenizer, input(text, text_size));
    deliver(out, error, || {
        let ids = tokenizer.encode(utf8(text)?, add_special != 0, parse_special != 0)?;
        Ok(Ids::from(ids))
    })
}

#[no_mangle]
pub unsafe extern "C" fn qserve_tokenizer_decode(
    tokenizer: *const Tokenizer,
    ids: *const u32,
    id_count: usize,
    skip_special: i32,
    out: *mut Bytes,
    error: *mut Bytes,
) -> i32 {
    let (tokenizer, ids) = (&*tokenizer, input(ids, id_count));
    deliver(out, error, || Ok(Bytes::from(tokenizer.decode(ids, skip_special != 0)?.into_bytes())))
}

#[no_mangle]
pub unsafe extern "C" fn qserve_tokenizer_id_to_token(
    tokenizer: *const Tokenizer,
    id: u32,
    out: *mut Bytes,
    error: *mut Bytes,
) -> i32 {
    let tokenizer = &*tokenizer;
    deliver(out, error, || Ok(Bytes::from(tokenizer.id_to_token(id)?.into_bytes())))
}

#[no_mangle]
pub unsafe extern "C" fn qserve_tokenizer_token_to_id(
    tokenizer: *const Tokenizer,
    token: *const u8,
    token_size: usize,
    out: *mut u32,
    error: *mut Bytes,
) -> i32 {
    let (tokenizer, token) = (&*tokenizer, input(token, token_size));
    deliver(out, error, || tokenizer.token_to_id(utf8(token)?))
}

#[no_mangle]
pub unsafe extern "C" fn qserve_template_create(
    source: *const u8,
    source_size: usize,
    globals: *const u8,
    globals_size: usize,
    limits: TemplateLimits,
    out: *mut *mut Template,
    error: *mut Bytes,
) -> i32 {
    let (source, globals) = (input(source, source_size), input(globals, globals_size));
    let limits = Limits {
        fuel: limits.fuel,
        recursion: usize::try_from(limits.recursion).unwrap_or(usize::MAX),
        max_output_size: usize::try_from(limits.max_output_size).unwrap_or(usize::MAX),
    };
    deliver(out, error, || {
        let template = Template::new(utf8(source)?, utf8(globals)?, limits)?;
        Ok(Box::into_raw(Box::new(template)))
    })
}

#[no_mangle]
pub unsafe extern "C" fn qserve_template_destroy(chat_template: *mut Template) {
    if !chat_template.is_null() {
        let _ = catch(|| {
            drop(Box::from_raw(chat_template));
            Ok(())
        });
    }
}

#[no_mangle]
pub unsafe extern "C" fn qserve_template_render(
    chat_template: *const Template,
    template_input: TemplateInput,
    out: *mut Bytes,
    error: *mut Bytes,
) -> i32 {
    let chat_template = &*chat_template;
    deliver(out, error, || {
        Ok(Bytes::from(chat_template.render(template_input.borrow()?)?.into_bytes()))
    })
}

#[no_mangle]
pub unsafe extern "C" fn qserve_template_tokenize(
    chat_template: *const Template,
    tokenizer: *const Tokenizer,
    template_input: TemplateInput,
    out: *mut Ids,
    error: *mut Bytes,
) -> i32 {
    let (chat_template, tokenizer) = (&*chat_template, &*tokenizer);
    deliver(out, error, || {
        Ok(Ids::from(chat_template.tokenize(tokenizer, template_input.borrow()?)?))
    })
}
