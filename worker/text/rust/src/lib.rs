//! The text library of the worker: Hugging Face tokenizers and Jinja chat templates behind the C ABI of `qserve_text.h`.
//! Called by the C++ classes of `worker/text` only. `abi` is the boundary; everything else is safe Rust that returns `Result`.

mod abi;
mod failure;
mod jinja;
mod json;
mod marker;
mod template;
mod tokenizer;
