//! Matches of a rule. A condition that cannot be tested is left out and the rule fails closed: it then answers for
//! more requests than were meant, and never lets one through.

use gateway_api::experimental::httproutes::{
    HttpRouteRulesMatches, HttpRouteRulesMatchesHeaders, HttpRouteRulesMatchesHeadersType as HeaderType,
    HttpRouteRulesMatchesMethod as Method, HttpRouteRulesMatchesPath,
    HttpRouteRulesMatchesPathType as PathType, HttpRouteRulesMatchesQueryParams,
    HttpRouteRulesMatchesQueryParamsType as QueryType,
};
use http::HeaderName;

use super::filters::Filters;
use super::{Broken, Context, UNSUPPORTED};
use crate::model::route::{PathMatch, RouteMatch, StringMatch};

impl Context {
    pub(super) fn matches(
        &mut self,
        rule: &str,
        matches: &[HttpRouteRulesMatches],
        filters: &Filters,
        broken: &mut Broken,
    ) -> Vec<RouteMatch> {
        let everything = [HttpRouteRulesMatches::default()];
        let matches = if matches.is_empty() { &everything } else { matches };
        let mut result = Vec::new();
        for (i, item) in matches.iter().enumerate() {
            let path = format!("{rule}.matches[{i}]");
            let item = self.one_match(&path, item, broken);
            if filters.needs_prefix && !matches!(item.path, PathMatch::Prefix(_)) {
                let what = "the rule replaces a prefix, so it must match by PathPrefix";
                self.refuse(broken, UNSUPPORTED, &format!("{path}.path"), what);
            }
            result.push(item);
        }
        result
    }

    fn one_match(&mut self, at: &str, item: &HttpRouteRulesMatches, broken: &mut Broken) -> RouteMatch {
        let HttpRouteRulesMatches { headers, method, path, query_params } = item;
        RouteMatch {
            path: self.path_match(&format!("{at}.path"), path.as_ref(), broken),
            headers: self.headers(at, headers.as_deref().unwrap_or_default(), broken),
            query: self.query(at, query_params.as_deref().unwrap_or_default(), broken),
            method: method.as_ref().map(|method| method_name(method).to_owned()),
        }
    }

    fn path_match(
        &mut self,
        at: &str,
        path: Option<&HttpRouteRulesMatchesPath>,
        broken: &mut Broken,
    ) -> PathMatch {
        let Some(HttpRouteRulesMatchesPath { r#type, value }) = path else { return everything() };
        let value = value.clone().unwrap_or_else(|| "/".to_owned());
        let kind = r#type.as_ref().unwrap_or(&PathType::PathPrefix);
        if *kind != PathType::RegularExpression && !value.starts_with('/') {
            self.refuse(broken, UNSUPPORTED, &format!("{at}.value"), "a path starts with /");
            return everything();
        }
        match kind {
            PathType::Exact => PathMatch::Exact(value),
            PathType::PathPrefix => {
                let trimmed = value.trim_end_matches('/');
                PathMatch::Prefix(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() })
            }
            PathType::RegularExpression => {
                if self.regex(&format!("{at}.value"), &value, broken) {
                    PathMatch::Regex(value)
                } else {
                    everything()
                }
            }
        }
    }

    fn headers(
        &mut self,
        at: &str,
        headers: &[HttpRouteRulesMatchesHeaders],
        broken: &mut Broken,
    ) -> Vec<(String, StringMatch)> {
        let mut result: Vec<(String, StringMatch)> = Vec::new();
        for (i, header) in headers.iter().enumerate() {
            let HttpRouteRulesMatchesHeaders { name, r#type, value } = header;
            let at = format!("{at}.headers[{i}]");
            let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
                let what = format!("{name:?} is not the name of a header");
                self.refuse(broken, UNSUPPORTED, &format!("{at}.name"), &what);
                continue;
            };
            let regex = matches!(r#type, Some(HeaderType::RegularExpression));
            let condition = self.string_match(&at, regex, value, broken);
            // Of equal names only the first counts (Gateway API).
            if let Some(condition) =
                condition.filter(|_| result.iter().all(|(known, _)| known != parsed.as_str()))
            {
                result.push((parsed.as_str().to_owned(), condition));
            }
        }
        result
    }

    fn query(
        &mut self,
        at: &str,
        parameters: &[HttpRouteRulesMatchesQueryParams],
        broken: &mut Broken,
    ) -> Vec<(String, StringMatch)> {
        let mut result: Vec<(String, StringMatch)> = Vec::new();
        for (i, parameter) in parameters.iter().enumerate() {
            let HttpRouteRulesMatchesQueryParams { name, r#type, value } = parameter;
            let regex = matches!(r#type, Some(QueryType::RegularExpression));
            let condition = self.string_match(&format!("{at}.queryParams[{i}]"), regex, value, broken);
            if let Some(condition) = condition.filter(|_| result.iter().all(|(known, _)| known != name)) {
                result.push((name.clone(), condition));
            }
        }
        result
    }

    fn string_match(
        &mut self,
        at: &str,
        regex: bool,
        value: &str,
        broken: &mut Broken,
    ) -> Option<StringMatch> {
        if !regex {
            return Some(StringMatch::Exact(value.to_owned()));
        }
        let valid = self.regex(&format!("{at}.value"), value, broken);
        valid.then(|| StringMatch::Regex(value.to_owned()))
    }

    fn regex(&mut self, at: &str, pattern: &str, broken: &mut Broken) -> bool {
        // As a proxy compiles it, bound included: it would refuse the whole route configuration otherwise.
        let bounded = |pattern: &str| {
            let size = mesh_common::xds::REGEX_SIZE_LIMIT;
            regex::RegexBuilder::new(pattern).size_limit(size).build().is_ok()
                && regex::bytes::RegexBuilder::new(pattern).size_limit(size).build().is_ok()
        };
        let valid = bounded(pattern) && bounded(&format!("^(?:{pattern})$"));
        if !valid {
            let what = format!("{pattern:?} is not a regular expression in RE2 syntax");
            self.refuse(broken, UNSUPPORTED, at, &what);
        }
        valid
    }
}

fn everything() -> PathMatch {
    PathMatch::Prefix("/".to_owned())
}

fn method_name(method: &Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
        Method::Connect => "CONNECT",
        Method::Options => "OPTIONS",
        Method::Trace => "TRACE",
        Method::Patch => "PATCH",
    }
}
