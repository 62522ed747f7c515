//! Collects the reasons why a resource cannot be used, each with the path of its field. It never stops at the
//! first one: a person who mends a resource wants all of them at once.

use std::fmt::Display;
use std::time::Duration;

use mesh_common::xds::protobuf;
use prost::{Message, Name};

/// The reasons found so far, and the field that is being looked at.
#[derive(Debug, Default)]
pub struct Errors {
    path: Vec<String>,
    list: Vec<String>,
}

/// Takes a message apart. Every field stands in one of three lists, so nothing can be forgotten: `used` is
/// bound to a variable, `ignored` carries only information or what has no effect here, `unset` has no
/// code behind it and is an error when it is set.
macro_rules! take {
    ($errors:expr, $message:expr => $type:path {
        used: [$($used:ident),*], ignored: [$($ignored:ident),*], unset: [$($unset:ident),*],
    }) => {
        #[allow(deprecated)]
        let $type { $($used,)* $($ignored: _,)* $($unset,)* } = $message;
        $( $errors.unset(stringify!($unset), &$unset); )*
    };
}
pub(super) use take;

impl Errors {
    /// Looks at a field: reasons found in `look` carry its name in their path.
    pub fn within<T>(&mut self, field: impl Display, look: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(field.to_string());
        let result = look(self);
        self.path.pop();
        result
    }

    /// A reason at the field that is being looked at. `None`, so that a decoder can end with it.
    pub fn refuse<T>(&mut self, reason: impl Display) -> Option<T> {
        let path = self.path.join(".");
        self.list.push(if path.is_empty() { reason.to_string() } else { format!("{path}: {reason}") });
        None
    }

    /// A reason at a field of what is being looked at.
    pub fn refuse_at<T>(&mut self, field: impl Display, reason: impl Display) -> Option<T> {
        self.within(field, |errors| errors.refuse(reason))
    }

    /// The value, or its error at the field.
    pub fn check<T, E: Display>(&mut self, field: impl Display, result: Result<T, E>) -> Option<T> {
        result.map_or_else(|error| self.refuse_at(field, error), Some)
    }

    /// A field without code behind it must not be set.
    pub fn unset<T: Default + PartialEq>(&mut self, field: &str, value: &T) {
        if *value != T::default() {
            self.refuse_at::<()>(field.trim_start_matches("r#"), "this field is not supported");
        }
    }

    /// A field that must be set.
    pub fn required<T>(&mut self, field: &str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            return self.refuse_at(field, "this field must be set");
        }
        value
    }

    /// Every item; `None` when one of them cannot be used, after all have been looked at.
    pub fn all<T, U>(
        &mut self,
        field: &str,
        items: Vec<T>,
        mut look: impl FnMut(&mut Self, T) -> Option<U>,
    ) -> Option<Vec<U>> {
        let before = self.list.len();
        let mut good = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            good.extend(self.within(format_args!("{field}[{index}]"), |errors| look(errors, item)));
        }
        (self.list.len() == before).then_some(good)
    }

    /// A duration; negative and absurd ones are refused.
    pub fn duration(&mut self, field: &str, value: Option<protobuf::Duration>) -> Option<Duration> {
        let protobuf::Duration { seconds, nanos } = value?;
        match (u64::try_from(seconds), u32::try_from(nanos)) {
            // A year is more than any timeout means; far larger values overflow timers.
            (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 && seconds <= 31_536_000 => {
                Some(Duration::new(seconds, nanos))
            }
            _ => self.refuse_at(field, format_args!("{seconds} s {nanos} ns is not a usable duration")),
        }
    }

    /// A timeout where zero means none, with the value that Envoy takes when it is absent.
    pub fn timeout(
        &mut self,
        field: &str,
        value: Option<protobuf::Duration>,
        absent: Duration,
    ) -> Option<Duration> {
        let timeout = if value.is_some() { self.duration(field, value)? } else { absent };
        (!timeout.is_zero()).then_some(timeout)
    }

    /// The message inside an `Any`, which must be of the expected type.
    pub fn message<M: Message + Name + Default>(&mut self, any: &protobuf::Any) -> Option<M> {
        self.message_of(any, &M::type_url())
    }

    /// As [`Self::message`], for a message that does not know its own type.
    pub fn message_of<M: Message + Default>(&mut self, any: &protobuf::Any, url: &str) -> Option<M> {
        if any.type_url != url {
            return self.refuse(format_args!("the type is {:?}, not {url:?}", any.type_url));
        }
        match M::decode(any.value.as_slice()) {
            Ok(message) => Some(message),
            Err(error) => self.refuse(format_args!("cannot be decoded: {error}")),
        }
    }

    /// The result: a value only when nothing was refused.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Vec<String>> {
        match value {
            Some(value) if self.list.is_empty() => Ok(value),
            _ if self.list.is_empty() => Err(vec!["it cannot be used".to_owned()]),
            _ => Err(self.list),
        }
    }
}
