//! Conditions of a rule. All of them are written: one that is left out would widen the rule.

use mesh_common::xds::proto::config::route::v3::{
    HeaderMatcher, QueryParameterMatcher, RouteMatch as MatchProto, header_matcher, query_parameter_matcher,
    route_match,
};
use mesh_common::xds::proto::r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher};

use crate::model::route::{PathMatch, RouteMatch, StringMatch};

/// The conditions of a rule.
pub(super) fn encode(matches: &RouteMatch) -> MatchProto {
    let RouteMatch { path, headers, query, method } = matches;
    let method = method.iter().map(|method| header(":method", &StringMatch::Exact(method.clone())));
    let named = headers.iter().map(|(name, value)| header(name, value));
    MatchProto {
        path_specifier: Some(path_specifier(path)),
        headers: method.chain(named).collect(),
        query_parameters: query.iter().map(|(name, value)| query_parameter(name, value)).collect(),
        ..Default::default()
    }
}

/// A prefix by segment, in the form that matching and rewriting agree on: no slash at its end, so empty for
/// the prefix that everything has.
pub(super) fn segments(prefix: &str) -> &str {
    prefix.trim_end_matches('/')
}

/// A regular expression.
pub(super) fn regex(pattern: &str) -> RegexMatcher {
    RegexMatcher { regex: pattern.to_owned(), engine_type: None }
}

fn path_specifier(path: &PathMatch) -> route_match::PathSpecifier {
    use route_match::PathSpecifier::{Path, PathSeparatedPrefix, Prefix, SafeRegex};
    match path {
        PathMatch::Exact(path) => Path(path.clone()),
        // Envoy refuses an empty regex, and with it the whole resource; it matches the empty text only.
        PathMatch::Regex(pattern) if pattern.is_empty() => Path(String::new()),
        PathMatch::Regex(pattern) => SafeRegex(regex(pattern)),
        PathMatch::Prefix(prefix) => match segments(prefix) {
            "" => Prefix("/".to_owned()),
            // Likewise refused as a prefix by segment; no path has such a prefix, by segment or by text.
            prefix if prefix.contains(['?', '#']) => Prefix(prefix.to_owned()),
            prefix => PathSeparatedPrefix(prefix.to_owned()),
        },
    }
}

fn header(name: &str, value: &StringMatch) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(header_matcher::HeaderMatchSpecifier::StringMatch(string(value))),
        ..Default::default()
    }
}

fn query_parameter(name: &str, value: &StringMatch) -> QueryParameterMatcher {
    use query_parameter_matcher::QueryParameterMatchSpecifier;
    QueryParameterMatcher {
        name: name.to_owned(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(string(value))),
    }
}

fn string(value: &StringMatch) -> StringMatcher {
    let pattern = match value {
        StringMatch::Exact(text) => string_matcher::MatchPattern::Exact(text.clone()),
        StringMatch::Regex(pattern) if pattern.is_empty() => {
            string_matcher::MatchPattern::Exact(String::new())
        }
        StringMatch::Regex(pattern) => string_matcher::MatchPattern::SafeRegex(regex(pattern)),
    };
    StringMatcher { match_pattern: Some(pattern), ignore_case: false }
}
