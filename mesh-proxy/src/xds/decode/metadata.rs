//! The few values that are read from metadata. Metadata of other filters is information and is left alone.

use std::collections::HashMap;

use mesh_common::xds::proto::config::core::v3::Metadata;
use mesh_common::xds::protobuf::value::Kind;
use mesh_common::xds::protobuf::{Struct, Value};

use super::errors::Errors;

/// The metadata of one filter; `None` when there is none.
pub(super) fn filter(metadata: Option<Metadata>, name: &str) -> HashMap<String, Value> {
    let Some(Metadata { mut filter_metadata, typed_filter_metadata: _ }) = metadata else {
        return HashMap::new();
    };
    filter_metadata.remove(name).map(|Struct { fields }| fields).unwrap_or_default()
}

/// Takes a text out of a structure; empty when it is absent.
pub(super) fn text(errors: &mut Errors, fields: &mut HashMap<String, Value>, key: &str) -> Option<String> {
    match fields.remove(key).and_then(|value| value.kind) {
        Some(Kind::StringValue(text)) => Some(text),
        None | Some(Kind::NullValue(_)) => Some(String::new()),
        Some(_) => errors.refuse_at(key, "a text is expected"),
    }
}

/// Refuses what nobody took out.
pub(super) fn nothing_else(errors: &mut Errors, fields: &HashMap<String, Value>) {
    let mut keys: Vec<&String> = fields.keys().collect();
    keys.sort();
    for key in keys {
        errors.refuse_at::<()>(key, "this field is not supported");
    }
}
