//! Changes to headers. Envoy's values are format strings: one that would be filled in at run time is refused,
//! never sent as it stands.

use http::{HeaderName, HeaderValue, header};
use mesh_common::xds::proto::config::core::v3 as core;

use super::errors::{Errors, take};
use crate::config::route::HeaderMutation;

/// The changes in a pair of fields named `<what>_headers_to_add` and `<what>_headers_to_remove`.
pub(super) fn mutation(
    errors: &mut Errors,
    what: &str,
    add: Vec<core::HeaderValueOption>,
    remove: Vec<String>,
) -> Option<HeaderMutation> {
    let remove = errors.all(&format!("{what}_headers_to_remove"), remove, |errors, text| name(errors, &text));
    let add = errors.all(&format!("{what}_headers_to_add"), add, change);
    let mut mutation = HeaderMutation { remove: remove?, ..HeaderMutation::default() };
    for change in add? {
        match change {
            Change::Set(name, value) => mutation.set.push((name, value)),
            Change::Add(name, value) => mutation.add.push((name, value)),
            Change::Nothing => {}
        }
    }
    Some(mutation)
}

enum Change {
    Set(HeaderName, HeaderValue),
    Add(HeaderName, HeaderValue),
    /// An empty value that is not to be kept.
    Nothing,
}

fn change(errors: &mut Errors, message: core::HeaderValueOption) -> Option<Change> {
    use core::header_value_option::HeaderAppendAction::{AppendIfExistsOrAdd, OverwriteIfExistsOrAdd};
    take!(errors, message => core::HeaderValueOption {
        used: [header, append, append_action, keep_empty_value],
        ignored: [],
        unset: [],
    });
    let core::HeaderValue { key, value: text, raw_value } = errors.required("header", header)?;
    errors.within("header", |errors| errors.unset("raw_value", &raw_value));
    let name = errors.within("header.key", |errors| name(errors, &key))?;
    let value = errors.within("header.value", |errors| literal(errors, &text))?;
    if value.is_empty() && !keep_empty_value {
        return Some(Change::Nothing);
    }
    match append.map(|append| append.value) {
        Some(false) => Some(Change::Set(name, value)),
        _ if append_action == AppendIfExistsOrAdd as i32 => Some(Change::Add(name, value)),
        _ if append_action == OverwriteIfExistsOrAdd as i32 => Some(Change::Set(name, value)),
        _ => errors.refuse_at("append_action", format_args!("the value {append_action} is not supported")),
    }
}

fn name(errors: &mut Errors, text: &str) -> Option<HeaderName> {
    match HeaderName::from_bytes(text.as_bytes()) {
        Ok(name) if name != header::HOST => Some(name),
        Ok(_) => errors.refuse("the host is changed by host_rewrite_literal only"),
        Err(_) => errors.refuse(format_args!("{text:?} is not the name of a header that can be changed")),
    }
}

/// A value without commands; `%%` stands for a percent sign.
fn literal(errors: &mut Errors, text: &str) -> Option<HeaderValue> {
    if text.replace("%%", "").contains('%') {
        return errors.refuse(format_args!("commands are not supported, and a percent sign is %%: {text:?}"));
    }
    HeaderValue::from_str(&text.replace("%%", "%"))
        .map_or_else(|_| errors.refuse(format_args!("{text:?} cannot be the value of a header")), Some)
}
