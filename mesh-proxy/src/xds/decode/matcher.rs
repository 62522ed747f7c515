//! Conditions of routes. A condition that cannot be checked refuses the route: left out, it would match more
//! than was meant.

use http::{HeaderName, Method};
use mesh_common::xds::REGEX_SIZE_LIMIT;
use mesh_common::xds::proto::config::route::v3 as pb;
use mesh_common::xds::proto::r#type::matcher::v3 as matcher;

use super::errors::{Errors, take};
use crate::config::route::{HeaderMatch, PathMatch, QueryMatch, RouteMatch, ValueMatch};

/// The conditions of a route.
pub(super) fn route_match(errors: &mut Errors, message: pb::RouteMatch) -> Option<RouteMatch> {
    take!(errors, message => pb::RouteMatch {
        used: [case_sensitive, headers, query_parameters, path_specifier],
        ignored: [],
        unset: [runtime_fraction, cookies, grpc, tls_context, dynamic_metadata, filter_state],
    });
    if case_sensitive.is_some_and(|sensitive| !sensitive.value) {
        errors.refuse_at::<()>("case_sensitive", "only true is supported");
    }
    let path = path(errors, path_specifier);
    let matches = errors.all("headers", headers, header);
    let query = errors.all("query_parameters", query_parameters, query);
    let (mut headers, mut method) = (Vec::new(), None);
    for found in matches? {
        match found {
            HeaderOrMethod::Header(header) => headers.push(header),
            HeaderOrMethod::Method(name) if method.is_none() => method = Some(name),
            HeaderOrMethod::Method(_) => return errors.refuse_at("headers", "the method is named twice"),
        }
    }
    Some(RouteMatch { path: path?, headers, query: query?, method })
}

fn path(errors: &mut Errors, path: Option<pb::route_match::PathSpecifier>) -> Option<PathMatch> {
    use pb::route_match::PathSpecifier;
    match path {
        Some(PathSpecifier::Path(path)) => Some(PathMatch::Exact(path)),
        Some(PathSpecifier::Prefix(prefix)) => Some(PathMatch::Prefix(prefix)),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            if !prefix.starts_with('/') || prefix.ends_with('/') || prefix.contains(['?', '#']) {
                let reason = format_args!("{prefix:?} must begin with a slash, and not end with one");
                return errors.refuse_at("path_separated_prefix", reason);
            }
            Some(PathMatch::PathSeparatedPrefix(prefix))
        }
        Some(PathSpecifier::SafeRegex(regex)) => {
            errors.within("safe_regex", |errors| whole(errors, regex)).map(PathMatch::Regex)
        }
        Some(PathSpecifier::ConnectMatcher(_)) => {
            errors.refuse_at("connect_matcher", "this field is not supported")
        }
        Some(PathSpecifier::PathMatchPolicy(_)) => {
            errors.refuse_at("path_match_policy", "this field is not supported")
        }
        None => errors.refuse("a path condition must be set"),
    }
}

enum HeaderOrMethod {
    Header(HeaderMatch),
    Method(Method),
}

fn header(errors: &mut Errors, message: pb::HeaderMatcher) -> Option<HeaderOrMethod> {
    take!(errors, message => pb::HeaderMatcher {
        used: [name, invert_match, header_match_specifier],
        ignored: [],
        unset: [treat_missing_header_as_empty],
    });
    let (value, inverted) = header_value(errors, header_match_specifier)?;
    let invert = invert_match != inverted;
    if name == ":method" {
        return match value {
            ValueMatch::Exact(method) if !invert => {
                let method = Method::from_bytes(method.as_bytes());
                errors.check("string_match.exact", method).map(HeaderOrMethod::Method)
            }
            _ => errors.refuse("only an exact method is supported"),
        };
    }
    let name = errors.check(
        "name",
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is not the name of a header")),
    )?;
    Some(HeaderOrMethod::Header(HeaderMatch { name, value, invert }))
}

/// What to compare, and whether the result is turned round.
#[allow(deprecated)] // the older spellings mean the same and cost nothing
fn header_value(
    errors: &mut Errors,
    value: Option<pb::header_matcher::HeaderMatchSpecifier>,
) -> Option<(ValueMatch, bool)> {
    use pb::header_matcher::HeaderMatchSpecifier as Specifier;
    let value = match value {
        None => ValueMatch::Present,
        Some(Specifier::PresentMatch(present)) => return Some((ValueMatch::Present, !present)),
        Some(Specifier::ExactMatch(text)) => ValueMatch::Exact(text),
        Some(Specifier::PrefixMatch(text)) => ValueMatch::Prefix(text),
        Some(Specifier::SuffixMatch(text)) => ends_with(errors, &text)?,
        Some(Specifier::ContainsMatch(text)) => contains(errors, &text)?,
        Some(Specifier::SafeRegexMatch(regex)) => {
            errors.within("safe_regex_match", |errors| whole_bytes(errors, regex))?
        }
        Some(Specifier::RangeMatch(_)) => {
            return errors.refuse_at("range_match", "this field is not supported");
        }
        Some(Specifier::StringMatch(text)) => errors.within("string_match", |errors| string(errors, text))?,
    };
    Some((value, false))
}

fn query(errors: &mut Errors, message: pb::QueryParameterMatcher) -> Option<QueryMatch> {
    take!(errors, message => pb::QueryParameterMatcher {
        used: [name, query_parameter_match_specifier],
        ignored: [],
        unset: [],
    });
    use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
    let value = match query_parameter_match_specifier {
        None | Some(Specifier::PresentMatch(true)) => ValueMatch::Present,
        Some(Specifier::PresentMatch(false)) => {
            return errors.refuse_at("present_match", "only true is supported");
        }
        Some(Specifier::StringMatch(text)) => errors.within("string_match", |errors| string(errors, text))?,
    };
    Some(QueryMatch { name, value })
}

fn string(errors: &mut Errors, message: matcher::StringMatcher) -> Option<ValueMatch> {
    take!(errors, message => matcher::StringMatcher {
        used: [match_pattern],
        ignored: [],
        unset: [ignore_case],
    });
    use matcher::string_matcher::MatchPattern;
    match match_pattern {
        Some(MatchPattern::Exact(text)) => Some(ValueMatch::Exact(text)),
        Some(MatchPattern::Prefix(text)) => Some(ValueMatch::Prefix(text)),
        Some(MatchPattern::Suffix(text)) => ends_with(errors, &text),
        Some(MatchPattern::Contains(text)) => contains(errors, &text),
        Some(MatchPattern::SafeRegex(regex)) => {
            errors.within("safe_regex", |errors| whole_bytes(errors, regex))
        }
        Some(MatchPattern::Custom(_)) => errors.refuse_at("custom", "this field is not supported"),
        None => errors.refuse("a pattern must be set"),
    }
}

fn ends_with(errors: &mut Errors, text: &str) -> Option<ValueMatch> {
    bytes_regex(errors, &format!("(?s-u:.)*{}", regex::escape(text)))
}

fn contains(errors: &mut Errors, text: &str) -> Option<ValueMatch> {
    bytes_regex(errors, &format!("(?s-u:.)*{}(?s-u:.)*", regex::escape(text)))
}

fn whole_bytes(errors: &mut Errors, message: matcher::RegexMatcher) -> Option<ValueMatch> {
    let text = pattern(errors, message)?;
    bytes_regex(errors, &text)
}

fn bytes_regex(errors: &mut Errors, text: &str) -> Option<ValueMatch> {
    // Compiled by itself first, so that a stray parenthesis cannot reach out of the group.
    let compile = |text: &str| regex::bytes::RegexBuilder::new(text).size_limit(REGEX_SIZE_LIMIT).build();
    let regex = compile(text).and_then(|_| compile(&format!("^(?:{text})$")));
    errors.check("regex", regex).map(ValueMatch::Regex)
}

/// A regex that must match the whole text.
fn whole(errors: &mut Errors, message: matcher::RegexMatcher) -> Option<regex::Regex> {
    let text = pattern(errors, message)?;
    compile(errors, &text)?;
    compile(errors, &format!("^(?:{text})$"))
}

/// A regex that may match anywhere.
pub(super) fn anywhere(errors: &mut Errors, message: matcher::RegexMatcher) -> Option<regex::Regex> {
    let text = pattern(errors, message)?;
    compile(errors, &text)
}

fn compile(errors: &mut Errors, text: &str) -> Option<regex::Regex> {
    errors.check("regex", regex::RegexBuilder::new(text).size_limit(REGEX_SIZE_LIMIT).build())
}

fn pattern(errors: &mut Errors, message: matcher::RegexMatcher) -> Option<String> {
    // The engine is RE2 in every version; its options were never more than a limit on size.
    let matcher::RegexMatcher { regex, engine_type: _ } = message;
    if regex.is_empty() {
        return errors.refuse_at("regex", "this field must be set");
    }
    Some(regex)
}
