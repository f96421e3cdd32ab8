//! The one error type of the library, and the place where panics are caught. Used by every other module.

use std::any::Any;
use std::cell::RefCell;
use std::fmt::Display;
use std::panic::{catch_unwind, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

/// Values of `QserveTextCode`, less OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Invalid = 1,
    Limit = 2,
    Internal = 3,
}

#[derive(Debug)]
pub struct Failure {
    pub code: Code,
    pub message: String,
}

/// Messages may quote input; this bounds what reaches a log or a client.
const MAX_MESSAGE_BYTES: usize = 2048;

impl Failure {
    fn new(code: Code, message: impl Display) -> Self {
        let mut message = message.to_string();
        if message.len() > MAX_MESSAGE_BYTES {
            let mut end = MAX_MESSAGE_BYTES;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            message.push_str("...");
        }
        Failure { code, message }
    }

    pub fn invalid(message: impl Display) -> Self {
        Failure::new(Code::Invalid, message)
    }

    pub fn limit(message: impl Display) -> Self {
        Failure::new(Code::Limit, message)
    }
}

thread_local! {
    /// What the panic hook saw last on this thread: the payload alone does not say where.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The panic's message and the end of its source path: whole paths say where the library was built.
fn describe(info: &PanicHookInfo) -> String {
    let payload = info.payload();
    let message = payload
        .downcast_ref::<&str>()
        .map(|text| text.to_string())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    let Some(location) = info.location() else { return message };
    let mut end: Vec<&str> = location.file().rsplit('/').take(3).collect();
    end.reverse();
    format!("{message} ({}:{})", end.join("/"), location.line())
}

/// Panics are errors here, reported through the status, so they print nothing to stderr.
fn install_quiet_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let text = describe(info);
            LAST_PANIC.with(|last| {
                if let Ok(mut last) = last.try_borrow_mut() {
                    *last = text;
                }
            });
        }));
    });
}

fn panic_failure(payload: Box<dyn Any + Send>) -> Failure {
    let text = LAST_PANIC.with(|last| last.take());
    // Dropping a payload may panic in turn; what that one carries is given up.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    Failure::new(Code::Internal, format!("the text library failed: {text}"))
}

/// Runs `body`; a panic in it becomes a `Code::Internal` failure.
pub fn catch<T>(body: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    install_quiet_hook();
    // Handles are immutable and their caches hold no broken state half-way, so going on after a panic is sound.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| Err(panic_failure(payload)))
}
